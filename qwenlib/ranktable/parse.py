"""Read a rank table by its keys, never by its file name; refuse the formats that a 910A cannot use, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Union

from qwenlib.errors import Refused
from qwenlib.ranktable.draft import ServerDraft, Walk
from qwenlib.ranktable.model import Device, RankTable, Server, extras
from qwenlib.ranktable.rules import FAIL, Problem, brief
from qwenlib.ranktable.shape import shape_problems


def load(path: Union[str, Path]) -> RankTable:
    """Read, check and return the table in ``path``.

    Raises:
        Refused: no such file, not JSON, a format for other machines, or broken rules (with their JSON paths).
    """
    return parse(read_document(path), str(path))


def read_document(path: Union[str, Path]) -> Dict[str, Any]:
    """The JSON object in ``path``; a byte order mark is ignored.

    Raises:
        Refused: the file cannot be read, or holds something else (with line and column).
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise Refused(
            f"there is no rank table {path}. qwenlib ranktable generate makes one on an Ascend host."
        ) from None
    except IsADirectoryError:
        raise Refused(f"{path} is a folder; give the file in it, usually {path / 'jobstart_hccl.json'}.") from None
    except OSError as error:
        raise Refused(f"rank table {path} cannot be read: {error.strerror}.") from None
    return decode(raw, str(path))


def decode(raw: bytes, where: str) -> Dict[str, Any]:
    """The JSON object in ``raw``.

    Raises:
        Refused: not UTF-8, not JSON, or JSON of another kind than an object.
    """
    try:
        text = raw.decode("utf-8-sig")
        document = json.loads(text)
    except UnicodeDecodeError as error:
        raise Refused(f"{where}: not UTF-8 text (byte {error.start}); save the rank table as UTF-8.") from None
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        line = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
        comment = " JSON has no comments: take away everything from // on." if "//" in line or "#" in line else ""
        raise Refused(
            f"{where}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}).{comment} "
            "HCCL would say EI0004: Invalid ranktable format."
        ) from None
    except (RecursionError, ValueError):
        raise Refused(f"{where}: not a rank table (JSON nested too deeply, or a number too long).") from None
    if not isinstance(document, dict):
        raise Refused(f"{where}: a rank table is a JSON object, found {type(document).__name__}.")
    return document


def format_of(document: Mapping[str, Any], where: str = "rank table") -> str:
    """``v1.0`` (server_list) or ``v0`` (group_list), by keys.

    Raises:
        Refused: a table for other machines, each by its name and with what to do; or no known key at all.
    """
    use = "make one for the 910A: qwenlib ranktable generate"
    if "server_group_list" in document:
        raise Refused(f"{where} is a MindIE global rank table (server_group_list), which HCCL does not read; {use}.")
    if "rank_list" in document or "rank_count" in document:
        raise Refused(f"{where} is a rank table of Ascend A5 (rank_list), not of a 910A server; {use}.")
    devices = [
        card
        for server in _list(document.get("server_list"))
        for card in _list(server.get("device") if isinstance(server, dict) else None)
    ]
    super_pod = any(isinstance(card, dict) and "super_device_id" in card for card in devices[:1])
    if document.get("version") == "1.2" or "super_pod_list" in document or super_pod:
        raise Refused(
            f"{where} is a v1.2 rank table (A3 super pods: super_pod_list, super_device_id), not one of a 910A server; "
            f"{use}, or ask the platform for a v1.0 table."
        )
    if "server_list" in document:
        return "v1.0"
    if "group_list" in document:
        return "v0"
    if document.get("status") == "initializing":
        raise Refused(f"{where}: status is initializing: the platform has not filled the table yet; wait for it.")
    keys = ", ".join(map(repr, list(document)[:8])) or "nothing"
    raise Refused(f"{where} is no rank table: it has neither server_list (v1.0) nor group_list (v0); it has {keys}.")


def problems_of(document: Mapping[str, Any], where: str = "rank table") -> List[Problem]:
    """All problems of a document that can be seen without a machine.

    Raises:
        Refused: see :func:`format_of`.
    """
    walk = Walk(document, format_of(document, where))
    return walk.problems + shape_problems(walk.servers)


def parse(document: Mapping[str, Any], where: str = "rank table") -> RankTable:
    """The table in a document that obeys all rules.

    Raises:
        Refused: a foreign format, or broken rules: all of them, with their JSON paths.
    """
    kind = format_of(document, where)
    walk = Walk(document, kind)
    broken = [item for item in walk.problems + shape_problems(walk.servers) if item.level == FAIL]
    if broken:
        told = brief(broken)
        raise Refused(f"{where} breaks {len(broken)} rule(s): {told}. All of it: qwenlib ranktable check {where}")
    return RankTable(tuple(_server(draft, kind) for draft in walk.servers), kind)


def _server(draft: ServerDraft, kind: str) -> Server:
    cards = []
    for card in draft.cards:
        assert card.entry is not None and card.device_id is not None and card.rank_id is not None
        extra = extras(card.entry, "device_id", "device_ip", "rank_id") if kind == "v1.0" else ()
        cards.append(Device(card.device_id, card.device_ip or "", card.rank_id, card.pod, extra))
    entry = draft.entry or {}
    extra = extras(entry, "server_id", "device", "host_nic_ip")
    return Server(draft.server_id, tuple(cards), str(entry.get("host_nic_ip", "")), extra)


def _list(value: Any) -> List[Any]:
    return value if isinstance(value, list) else []
