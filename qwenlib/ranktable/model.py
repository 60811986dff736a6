"""The rank table as a value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple

Extra = Tuple[Tuple[str, Any], ...]


@dataclass(frozen=True)
class Device:
    """One card: ``device_id`` is the physical id (the N of ``/dev/davinciN``), ``rank_id`` the global rank."""

    device_id: int
    device_ip: str
    rank_id: int
    pod: str = ""
    """v0 only: the pod (container) that owns the card; two pods may share a server."""
    extra: Extra = ()


@dataclass(frozen=True)
class Server:
    """One server with its cards, in file order."""

    server_id: str
    devices: Tuple[Device, ...]
    host_nic_ip: str = ""
    extra: Extra = ()

    @property
    def pods(self) -> List[str]:
        """Names of the pods on this server, in order ([] for a v1.0 table)."""
        return list(dict.fromkeys(device.pod for device in self.devices if device.pod))

    @property
    def first_rank(self) -> int:
        """The smallest rank on this server."""
        return min(device.rank_id for device in self.devices)

    def to_dict(self) -> Dict[str, Any]:
        """The ``server_list`` entry, keys in the order in which hccl_tools.py writes them."""
        entry: Dict[str, Any] = {"server_id": self.server_id, "device": [_device_dict(item) for item in self.devices]}
        if self.host_nic_ip:
            entry["host_nic_ip"] = self.host_nic_ip
        return {**entry, **dict(self.extra)}


@dataclass(frozen=True)
class RankTable:
    """A valid, completed rank table. ``source_format`` is ``v1.0`` or ``v0``: what it was read from."""

    servers: Tuple[Server, ...]
    source_format: str = "v1.0"

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return sum(len(server.devices) for server in self.servers)

    @property
    def by_rank(self) -> List[Server]:
        """Servers in the order of their ranks: entry N is worker N."""
        return sorted(self.servers, key=lambda server: server.first_rank)

    def to_dict(self) -> Dict[str, Any]:
        """The v1.0 document; every value is a text, as HCCL demands."""
        return {
            "version": "1.0",
            "server_count": str(len(self.servers)),
            "server_list": [server.to_dict() for server in self.servers],
            "status": "completed",
        }

    def renumbered(self) -> RankTable:
        """The same cards with ranks 0, 1, 2, … in server and device order."""
        rank = 0
        servers = []
        for server in self.servers:
            devices = []
            for device in server.devices:
                devices.append(dataclasses.replace(device, rank_id=rank))
                rank += 1
            servers.append(dataclasses.replace(server, devices=tuple(devices)))
        return dataclasses.replace(self, servers=tuple(servers))


def _device_dict(device: Device) -> Dict[str, Any]:
    entry: Dict[str, Any] = {"device_id": str(device.device_id)}
    if device.device_ip:
        entry["device_ip"] = device.device_ip
    return {**entry, "rank_id": str(device.rank_id), **dict(device.extra)}


def extras(entry: Mapping[str, Any], *known: str) -> Extra:
    """The keys of ``entry`` that are not ``known``: kept, because upstream's merge keeps them."""
    return tuple((key, value) for key, value in entry.items() if key not in known)
