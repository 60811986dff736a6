"""Make the rank table of this server, as MindFormers' ``hccl_tools.py`` does: same options, file name and content."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple, Union

from qwenlib.ascend.hccn import device_ips, is_ip
from qwenlib.ascend.tools import TIMEOUT
from qwenlib.errors import Refused
from qwenlib.files import atomic_path
from qwenlib.ranktable.model import Device, RankTable, Server
from qwenlib.ranktable.parse import parse
from qwenlib.ranktable.shape import same_group


def device_range(device_num: str, device_num_per_node: int = 8) -> List[int]:
    """``"[0,8)"`` as the logical numbers 0..7; ``"[0,8]"`` is read the same way (upstream's scripts do, too).

    Raises:
        Refused: not a range, outside ``[0, device_num_per_node)``, empty, or across the 910A groups 0-3 and 4-7.
    """
    match = re.fullmatch(r"\s*\[\s*([0-9]{1,3})\s*,\s*([0-9]{1,3})\s*[)\]]\s*", device_num)
    if not match:
        raise Refused(f'device_num must look like "[0,8)" (quoted, the end not included), found {device_num[:80]!r}.')
    first, last = int(match.group(1)), int(match.group(2))
    if not 1 <= device_num_per_node <= 16:
        raise Refused(f"device_num_per_node must be 1 to 16 (a 910A server has 8), found {device_num_per_node}.")
    if last > device_num_per_node:
        raise Refused(f"device_num {device_num} must lie in [0,{device_num_per_node}).")
    if first >= last:
        raise Refused(f"device_num {device_num} is empty: the first number must be less than the last.")
    if first < 4 < last and not (first == 0 and last in (8, 16)):
        raise Refused(
            f"device_num {device_num} crosses the two groups of a 910A server: take cards from [0,4), from [4,8), "
            "or all "
            "of [0,8)."
        )
    if last - first == 3:
        raise Refused(f"device_num {device_num} has 3 cards; HCCL takes 1, 2, 4 or 8 a server.")
    return list(range(first, last))


def generate(
    device_num: str = "[0,8)",
    visible_devices: str = "0,1,2,3,4,5,6,7",
    server_ip: str = "",
    device_num_per_node: int = 8,
    root: Union[str, Path] = "/",
    environ: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
) -> Tuple[str, RankTable, List[str]]:
    """The table of this server: (file name, table, notes on where each part comes from).

    ``device_num`` counts logical cards, ``visible_devices`` lists their physical ids. Addresses come from hccn_tool,
    then ``/etc/hccn.conf``; none is ever made up.

    Raises:
        Refused: a bad range, no server address, a card without an address, or a table that would break the rules.
    """
    logical = device_range(device_num, device_num_per_node)
    physical = card_ids(visible_devices)
    if logical[-1] >= len(physical):
        raise Refused(
            f"device_num {device_num} needs {logical[-1] + 1} visible devices, but visible_devices lists "
            f"{len(physical)}: {visible_devices}."
        )
    ids = [physical[number] for number in logical]
    if len(ids) in (2, 4) and not same_group(ids):
        raise Refused(f"the cards {', '.join(map(str, ids))} lie in both groups of a 910A server (0-3 and 4-7).")
    server_id, notes = server_address(server_ip)
    addresses, said = device_ips(ids, root, environ, timeout)
    missing = [number for number in ids if number not in addresses]
    if missing:
        raise Refused(
            f"no address was found for the card(s) {', '.join(map(str, missing))}: {'; '.join(said)}. A rank "
            "table needs "
            "the real addresses of the cards: run this on the host (not in a container without hccn_tool), or copy the "
            "host's /etc/hccn.conf."
        )
    devices = tuple(Device(number, addresses[number], rank) for rank, number in enumerate(ids))
    table = RankTable((Server(server_id, devices, "reserve"),))
    parse(table.to_dict(), "the generated table")
    name = f"hccl_{len(ids)}p_{''.join(map(str, logical))}_{server_id}.json"
    return name, table, notes + said


def server_address(server_ip: str = "") -> Tuple[str, List[str]]:
    """The ``server_id``: ``server_ip``, or what the host name resolves to; and what to know about it.

    Raises:
        Refused: the host name does not resolve, and no address was given.
    """
    if server_ip:
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", server_ip):
            raise Refused(f"server_ip must be an address or a host name, found {server_ip[:80]!r}.")
        if re.fullmatch(r"[0-9.]+", server_ip) and not is_ip(server_ip):
            raise Refused(f"server_ip {server_ip} is no address: four numbers from 0 to 255 with dots between.")
        return server_ip, [f"server_id {server_ip} was given"]
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        raise Refused(f"the host name {name} has no address; give the server's own with --server_ip.") from None
    note = f"server_id {address} is the address of the host name {name}"
    if address.startswith("127."):
        note += "; it is a loopback address, good for one server only: give --server_ip before merging"
    return address, [note]


def card_ids(text: str, what: str = "visible_devices") -> List[int]:
    """``"4,5,6,7"`` as numbers, in the order given.

    Raises:
        Refused: something else than numbers, or a card named twice; the message begins with ``what``.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,2}", part) for part in parts):
        raise Refused(f'{what} must be physical card ids like "4,5,6,7", found {text[:80]!r}.')
    ids = [int(part) for part in parts]
    if len(set(ids)) != len(ids):
        raise Refused(f"{what} names a card twice: {text}.")
    return ids


def write_table(table: Union[RankTable, Mapping[str, Any]], path: Union[str, Path]) -> Path:
    """Write the v1.0 document, indented by 4 and without a final newline, as upstream's tools do; atomically."""
    import json

    document: Dict[str, Any] = table.to_dict() if isinstance(table, RankTable) else dict(table)
    with atomic_path(path) as part:
        part.write_text(json.dumps(document, indent=4), encoding="utf-8")
    return Path(path)


def table_name(table: RankTable) -> str:
    """The file name upstream gives: hccl_8p_01234567_<server>.json for one server, hccl_2s_16p.json for several."""
    if len(table.servers) > 1:
        return f"hccl_{len(table.servers)}s_{table.ranks}p.json"
    server = table.servers[0]
    ids = "".join(str(device.device_id) for device in server.devices)
    return f"hccl_{len(server.devices)}p_{ids}_{server.server_id}.json".replace("/", "_")
