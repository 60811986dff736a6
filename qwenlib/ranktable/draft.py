"""Walk a rank table document of either format into plain records, noting every problem of form with its JSON path."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional

from qwenlib.ascend.hccn import is_ip
from qwenlib.ranktable.rules import FAIL, WARN, Problem, shown

MAX_SERVER_ID = 64
NUMBER = re.compile(r"[0-9]{1,9}")
ADDRESS_LIKE = re.compile(r"[0-9xX*]+(\.[0-9xX*]+){3}")


@dataclass
class CardDraft:
    """A card as found; None for what could not be read."""

    path: str
    entry: Optional[Mapping[str, Any]]
    """None when the place holds something else than an object."""
    device_id: Optional[int] = None
    device_ip: Optional[str] = None
    rank_id: Optional[int] = None
    pod: str = ""


@dataclass
class ServerDraft:
    """A server as found; a v0 server collects the cards of all its pods."""

    path: str
    entry: Optional[Mapping[str, Any]]
    server_id: str = ""
    cards: List[CardDraft] = field(default_factory=list)
    pods: List[str] = field(default_factory=list)
    """Paths of the v0 pods on this server."""


class Walk:
    """One pass over a document: ``servers`` and ``problems`` are its result."""

    def __init__(self, document: Mapping[str, Any], kind: str):
        self.problems: List[Problem] = []
        self.servers: List[ServerDraft] = []
        self._status(document)
        if kind == "v1.0":
            self._version_1(document)
        else:
            self._version_0(document)

    def fail(self, path: str, rule: int, message: str, said: Optional[str] = None) -> None:
        """Note a broken rule; ``said``: HCCL's words when they are not the rule's usual ones."""
        self.problems.append(Problem(FAIL, path, rule, message, said))

    def warn(self, path: str, rule: int, message: str) -> None:
        """Note something that HCCL takes and that is still worth a look."""
        self.problems.append(Problem(WARN, path, rule, message))

    def text(self, entry: Mapping[str, Any], key: str, path: str, rule: int, required: bool = True) -> Optional[str]:
        """``entry[key]`` as a text; a bare number is a problem (rule 5) and is read on as if it were quoted."""
        if key not in entry:
            if required:
                self.fail(path, rule, f"{key} is missing")
            return None
        value = entry[key]
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            self.fail(path, 5, f"found the bare number {shown(value)[1:-1]}; write it as a text, in quotes")
            return str(value)
        self.fail(path, 5, f"must be a text, found {_kind(value)}")
        return None

    def number(self, entry: Mapping[str, Any], key: str, path: str, rule: int, required: bool = True) -> Optional[int]:
        """A whole number written as a text."""
        value = self.text(entry, key, path, rule, required)
        if value is None:
            return None
        if not NUMBER.fullmatch(value):
            self.fail(path, rule, f"must be a whole number written as a text, found {shown(value)}")
            return None
        return int(value)

    def objects(self, entry: Mapping[str, Any], key: str, path: str, rule: int) -> List[Optional[Mapping[str, Any]]]:
        """A list of objects; an entry that is none is a problem and comes back as None, to keep the positions."""
        value = entry.get(key)
        if not isinstance(value, list):
            self.fail(path, 33, f"must be a list, found {_kind(value)}" if key in entry else f"{key} is missing")
            return []
        if not value:
            self.fail(path, rule, "is empty")
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                self.fail(f"{path}[{index}]", 33, f"must be an object, found {_kind(item)}")
        return [item if isinstance(item, dict) else None for item in value]

    def _status(self, document: Mapping[str, Any]) -> None:
        status = self.text(document, "status", "status", 4)
        if status == "initializing":
            self.fail("status", 4, "is initializing: the platform has not filled the table yet; wait for it")
        elif status is not None and status != "completed":
            self.fail("status", 4, f"must be completed (or initializing while it is filled), found {shown(status)}")

    def _server_id(self, entry: Mapping[str, Any], path: str) -> str:
        if "server_id" not in entry:
            self.fail(path, 8, "server_id is missing", "")
            return ""
        server_id = self.text(entry, "server_id", path, 8)
        if server_id is None:
            return ""
        if not server_id.strip():
            self.fail(path, 8, "is empty", "serverId[] is empty")
        elif len(server_id) > MAX_SERVER_ID:
            self.fail(path, 8, f"has {len(server_id)} characters; at most {MAX_SERVER_ID} are allowed", "")
        elif server_id != server_id.strip():
            self.warn(path, 8, f"has blanks around it: {server_id!r} is another name than {server_id.strip()!r}")
        elif len(server_id) == MAX_SERVER_ID:
            self.warn(path, 8, "has 64 characters; older CANN allows 63")
        elif ADDRESS_LIKE.fullmatch(server_id) and not is_ip(server_id):
            self.warn(path, 8, f"{server_id!r} looks like an address and is none: mistyped, or a sample's placeholder?")
        return server_id

    def _card(self, entry: Optional[Mapping[str, Any]], path: str) -> CardDraft:
        card = CardDraft(path, entry)
        if entry is None:
            return card
        card.device_id = self.number(entry, "device_id", f"{path}.device_id", 10)
        card.device_ip = self.text(entry, "device_ip", f"{path}.device_ip", 13, required=False)
        return card

    def _version_1(self, document: Mapping[str, Any]) -> None:
        version = self.text(document, "version", "version", 32)
        if version is not None and version != "1.0":
            self.fail("version", 32, f'must be "1.0", found {shown(version)}')
        entries = self.objects(document, "server_list", "server_list", 7)
        count = self.number(document, "server_count", "server_count", 6, required=False)
        if count is not None and count != len(entries):
            self.fail("server_count", 6, f"is {count}, but server_list has {len(entries)} servers")
        elif "server_count" not in document:
            self.warn("server_count", 6, "is missing; HCCL counts server_list, upstream's merge_hccl.py does not")
        for index, entry in enumerate(entries):
            path = f"server_list[{index}]"
            server = ServerDraft(path, entry)
            self.servers.append(server)
            if entry is None:
                continue
            server.server_id = self._server_id(entry, f"{path}.server_id")
            if "host_nic_ip" in entry:
                self.text(entry, "host_nic_ip", f"{path}.host_nic_ip", 5)
            if "host_ip" in entry:
                message = "makes HCCL use the host's network instead of the cards' (host_nic_ip does not); meant so?"
                self.warn(f"{path}.host_ip", 35, message)
            for position, item in enumerate(self.objects(entry, "device", f"{path}.device", 9)):
                card = self._card(item, f"{path}.device[{position}]")
                if item is not None:
                    card.rank_id = self.number(item, "rank_id", f"{card.path}.rank_id", 15)
                server.cards.append(card)

    def _version_0(self, document: Mapping[str, Any]) -> None:
        groups = self.objects(document, "group_list", "group_list", 7)
        self._agree(document, "group_count", "group_count", len(groups), "group_list")
        by_id: Dict[str, ServerDraft] = {}
        pods: Dict[str, str] = {}
        rank = 0
        for index, group in enumerate(groups):
            path = f"group_list[{index}]"
            if group is None or group.get("device_count") == "0":  # Huawei's launcher skips a group without cards
                continue
            if "group_name" in group:
                self.text(group, "group_name", f"{path}.group_name", 5)
            instances = self.objects(group, "instance_list", f"{path}.instance_list", 7)
            self._agree(group, "instance_count", f"{path}.instance_count", len(instances), f"{path}.instance_list")
            cards = 0
            for position in self._pod_order(index, instances, path):
                where = f"{path}.instance_list[{position}]"
                entry = instances[position]
                if entry is None:
                    continue
                pod = self.text(entry, "pod_name", f"{where}.pod_name", 31) or ""
                if "pod_name" in entry and isinstance(entry["pod_name"], str) and not pod.strip():
                    self.fail(f"{where}.pod_name", 31, "is empty")
                if pod and pod in pods:
                    self.fail(f"{where}.pod_name", 31, f"{shown(pod)} is used already at {pods[pod]}")
                pods.setdefault(pod, f"{where}.pod_name")
                server_id = self._server_id(entry, f"{where}.server_id")
                server = by_id.setdefault(server_id or where, ServerDraft(where, {}, server_id))
                server.pods.append(where)
                items = self.objects(entry, "devices", f"{where}.devices", 9)
                for number, item in enumerate(items):
                    card = self._card(item, f"{where}.devices[{number}]")
                    card.rank_id, card.pod = rank, pod
                    rank += 1
                    server.cards.append(card)
                cards += len(items)
            self._agree(group, "device_count", f"{path}.device_count", cards, f"{path}.instance_list in all")
        self.servers = list(by_id.values())
        if groups and not self.servers and not self.problems:
            self.fail("group_list", 7, "no group has cards (every device_count is 0)")

    def _agree(self, entry: Mapping[str, Any], key: str, path: str, found: int, what: str) -> None:
        count = self.number(entry, key, path, 31)
        if count is not None and count != found:
            self.fail(path, 31, f"is {count}, but {what} has {found}: pods are missing, or the file was edited")

    def _pod_order(self, group: int, instances: List[Optional[Mapping[str, Any]]], path: str) -> List[int]:
        """Positions in the order of the number behind the last ``-`` of pod_name; list order when one has none.

        Huawei's launcher sorts the first group only; the same here, for the ranks must come out equal.
        """
        names = [str((entry or {}).get("pod_name", "")) for entry in instances]
        suffixes = [re.fullmatch(r"(?:.*-)?([0-9]{1,9})", name, re.DOTALL) for name in names]
        if not all(suffixes):
            for position, suffix in enumerate(suffixes):
                if any(suffixes) and suffix is None:
                    message = (
                        "has no number behind the last -, other pods have one: the ranks follow the order of the list"
                    )
                    self.warn(f"{path}.instance_list[{position}].pod_name", 31, message)
            return list(range(len(instances)))
        order = sorted(range(len(instances)), key=lambda position: int(suffixes[position].group(1)))  # type: ignore[union-attr]
        if group and order != list(range(len(instances))):
            self.warn(
                f"{path}.instance_list",
                31,
                "pods of a later group are out of order; kept so, as Huawei's launcher does",
            )
            return list(range(len(instances)))
        return order


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", float: "a bare number", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {str(value)[:40]!r}")
