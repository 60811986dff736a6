"""Which server of the table this host is, and the environment of each of its ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

from qwenlib.ascend.devices import visible_devices
from qwenlib.ascend.hccn import is_ip
from qwenlib.errors import Refused
from qwenlib.ranktable.model import Device, RankTable, Server

PER_RANK = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "ASCEND_DEVICE_ID")
"""Variables of one rank; the launcher gives each rank its own."""

SCRUB = ("RANK_TABLE_FILE", "RANK_TABLE_FILE_V_1_0", "MINDSPORE_HCCL_CONFIG_PATH", *PER_RANK)
"""Variables to take away from a job on one card: left over from the platform, they make HCCL start."""

CONNECT_TIMEOUT = 1800
"""Seconds that ranks wait for each other (HCCL_CONNECT_TIMEOUT) unless the user set it; HCCL's own 120 are too few."""

POD_VARIABLES = ("BATCH_TASK_CURRENT_INSTANCE", "MA_CURRENT_INSTANCE_NAME", "HOSTNAME")


@dataclass(frozen=True)
class Me:
    """This host's place in a table. ``server`` None: not identifiable, and ``reason`` says what was tried."""

    server: Optional[Server]
    reason: str
    pod: str = ""
    warning: str = ""

    @property
    def devices(self) -> Tuple[Device, ...]:
        """The cards that are ours: the pod's own when the pod is known, else all of the server."""
        if self.server is None:
            return ()
        return tuple(d for d in self.server.devices if not self.pod or d.pod == self.pod)


def who_am_i(
    table: RankTable,
    environ: Mapping[str, str] = os.environ,
    addresses: Optional[Sequence[str]] = None,
) -> Me:
    """Find this host: by pod name, MA_CURRENT_HOST_IP, worker number, own addresses, or as the only server.

    Args:
        addresses: this host's addresses and names (default: asked from the system).
    """
    tried: List[str] = []
    for name in POD_VARIABLES:
        value = environ.get(name, "")
        if name == "HOSTNAME" and not value and addresses is None:
            value = socket.gethostname()
        found = [server for server in table.servers if value and value in server.pods]
        if found:
            return Me(found[0], f"{name}={value} is a pod of server {found[0].server_id}", value)
    by_id = {server.server_id: server for server in table.servers}
    for name in ("MA_CURRENT_HOST_IP", "MA_CURRENT_IP"):
        value = environ.get(name, "")
        if value in by_id:
            return Me(by_id[value], f"{name}={value} is its server_id")
        tried.append(f"{name}={value} is no server_id" if value else f"{name} is not set")
    number, source = worker_index(environ)
    if number is not None:
        me = _by_worker(table, number, source)
        if me.server is not None:
            return dataclasses.replace(me, warning=_contradicted(me.server, environ))
        tried.append(me.reason)
    else:
        tried.append(source)
    own = list(local_addresses() if addresses is None else addresses)
    for value in own:
        if value in by_id:
            reason = f"{value} is an address or name of this host"
            return Me(by_id[value], reason, warning=_contradicted(by_id[value], environ))
    tried.append(f"none of this host's addresses ({', '.join(own[:6]) or 'none'}) is a server_id")
    if len(table.servers) == 1:
        server = table.servers[0]
        warning = _contradicted(server, environ)
        if not warning and not server.server_id.startswith("127."):
            warning = f"nothing here proves that this is server {server.server_id}"
        return Me(server, "the table has one server only", warning=warning)
    return Me(None, "; ".join(tried))


def _contradicted(server: Server, environ: Mapping[str, str]) -> str:
    """A warning when the platform calls this host by another address than the table ("" when both are names)."""
    told = environ.get("MA_CURRENT_HOST_IP") or environ.get("MA_CURRENT_IP") or ""
    if not told or not is_ip(server.server_id) or server.server_id.startswith("127."):
        return ""
    return f"the platform calls this host {told}, the table {server.server_id}: is it the table of this job?"


def worker_index(environ: Mapping[str, str]) -> Tuple[Optional[int], str]:
    """The number of this worker: VC_TASK_INDEX, or the number behind ``-worker-`` in a host or pod name.

    The whole number is read (worker-10 is not worker-1).
    """
    value = environ.get("VC_TASK_INDEX", "")
    if re.fullmatch(r"[0-9]{1,6}", value):
        return int(value), f"VC_TASK_INDEX={value}"
    for name in ("MA_CURRENT_INSTANCE_NAME", "BATCH_TASK_CURRENT_INSTANCE", "HOSTNAME"):
        match = re.search(r"-worker-([0-9]{1,6})(?![0-9])", environ.get(name, ""))
        if match:
            return int(match.group(1)), f"{name}={environ[name]}"
    return None, "VC_TASK_INDEX is not set and no name holds -worker-N"


def _by_worker(table: RankTable, number: int, source: str) -> Me:
    pods = [(server, pod) for server in table.servers for pod in server.pods]
    for server, pod in pods:
        match = re.search(r"-worker-([0-9]{1,6})$", pod)
        if match and int(match.group(1)) == number:
            return Me(server, f"{source}: pod {pod} of server {server.server_id}", pod)
    ordered = table.by_rank
    if len(pods) > len(ordered):
        return Me(None, f"{source} does not say which of the {len(pods)} pods this is")
    if number < len(ordered):
        return Me(ordered[number], f"{source}: server {number} in the order of the ranks")
    return Me(None, f"{source}, but the table has {len(ordered)} server(s)")


def local_addresses() -> List[str]:
    """This host's addresses (loopback last) and names."""
    found: List[str] = []
    try:
        import psutil

        for interface in psutil.net_if_addrs().values():
            found += [
                item.address.split("%")[0] for item in interface if item.family in (socket.AF_INET, socket.AF_INET6)
            ]
    except (ImportError, OSError):
        pass
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        found.append(socket.gethostbyname(name))
    found.append(name)
    unique = list(dict.fromkeys(found))
    return sorted(unique, key=lambda value: value.startswith("127.") or value == "::1")


def visible_ids(nodes: Sequence[int], environ: Mapping[str, str] = os.environ) -> List[int]:
    """Physical ids in the order in which a process numbers its cards: entry N has the DEVICE_ID N.

    That is the order of the ids of ``nodes`` (``/dev/davinci*``), of which ASCEND_RT_VISIBLE_DEVICES may pick some.

    Raises:
        Refused: ASCEND_RT_VISIBLE_DEVICES picks a card that is not here.
    """
    visible = sorted(nodes)
    picked = [part.strip() for part in visible_devices(environ).split(",") if part.strip()]
    if not picked or not visible:
        return visible
    if not all(re.fullmatch("[0-9]{1,6}", part) and int(part) < len(visible) for part in picked):
        raise Refused(
            f"ASCEND_RT_VISIBLE_DEVICES={visible_devices(environ)} must pick from the {len(visible)} card(s) in here, "
            "counted from 0, like 0,1; correct or unset it."
        )
    return [visible[int(part)] for part in picked]


def logical_ids(
    devices: Sequence[Device], nodes: Sequence[int] = (), environ: Mapping[str, str] = os.environ
) -> Dict[int, int]:
    """``{physical id: logical id}`` in this container.

    A container numbers the cards it sees from 0 (:func:`visible_ids`). ``nodes`` are the physical ids of
    ``/dev/davinci*``; empty: the container is taken to have just the cards of ``devices``.

    Raises:
        Refused: a card of the table is not visible here.
    """
    visible = visible_ids(nodes, environ) or sorted(device.device_id for device in devices)
    lost = [str(device.device_id) for device in devices if device.device_id not in visible]
    if lost:
        raise Refused(
            f"the table gives this server the card(s) {', '.join(lost)}, but only {', '.join(map(str, visible))} "
            "are here (/dev/davinci*, ASCEND_RT_VISIBLE_DEVICES): it is the table of another job or host."
        )
    return {number: index for index, number in enumerate(visible)}


def rank_environments(
    table: RankTable,
    me: Me,
    path: Union[str, Path],
    nodes: Sequence[int] = (),
    environ: Mapping[str, str] = os.environ,
) -> List[Dict[str, str]]:
    """The environment of each rank of this host, in rank order.

    DEVICE_ID is the logical number of the card in this container; the table's ``device_id`` is physical. A job of one
    rank gets no table at all: take :data:`SCRUB` away from its environment.

    Raises:
        Refused: this host is not identifiable, or lacks a card.
    """
    if me.server is None:
        raise Refused(f"this host is none of the {len(table.servers)} servers of {path}: {me.reason}.")
    logical = logical_ids(me.devices, nodes, environ)
    result = []
    for device in sorted(me.devices, key=lambda item: item.rank_id):
        number = str(logical[device.device_id])
        if table.ranks == 1:
            result.append({"DEVICE_ID": number})
            continue
        result.append(
            {
                "RANK_ID": str(device.rank_id),
                "RANK_SIZE": str(table.ranks),
                "DEVICE_ID": number,
                "ASCEND_DEVICE_ID": number,
                "RANK_TABLE_FILE": str(path),
                "HCCL_CONNECT_TIMEOUT": environ.get("HCCL_CONNECT_TIMEOUT", str(CONNECT_TIMEOUT)),
            }
        )
    return result
