"""Read a rank table by its keys, never by its file name; refuse the formats that a 910A cannot use, by name."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.ranktable.draft import ServerDraft, Walk
from qwenlib.ranktable.model import Device, RankTable, Server, extras
from qwenlib.ranktable.rules import FAIL, WARN, brief
from qwenlib.ranktable.shape import shape_problems

MAX_BYTES = 64 * 2**20
"""A table of 8,192 ranks has about 1 MiB."""


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
        raw = read_raw(path)
    except FileNotFoundError:
        raise Refused(
            f"there is no rank table {path}. qwenlib ranktable generate makes one on an Ascend host."
        ) from None
    except IsADirectoryError:
        raise Refused(f"{path} is a folder; give the file in it, usually {path / 'jobstart_hccl.json'}.") from None
    except OSError as error:
        raise Refused(f"rank table {path} cannot be read: {error.strerror}.") from None
    return decode(raw, str(path))


def read_raw(path: Path) -> bytes:
    """The bytes of a rank table; a pipe (nobody may ever write to it) and a checkpoint are not read at all.

    Raises:
        OSError: it cannot be read, is no ordinary file, or is larger than any rank table (:data:`MAX_BYTES`).
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        if state.st_size > MAX_BYTES:
            size = f"it has {state.st_size / 2**20:.0f} MiB, and no rank table has more than {MAX_BYTES // 2**20}"
            raise OSError(errno.EFBIG, size, str(path))
        return file.read()


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
    key, what = foreign(document)
    if key:
        raise Refused(
            f"{where} is {what}; make one for the 910A: qwenlib ranktable generate, or ask the platform for v1.0."
        )
    if "server_list" in document:
        return "v1.0"
    if "group_list" in document:
        return "v0"
    if document.get("status") == "initializing":
        raise Refused(f"{where}: status is initializing: the platform has not filled the table yet; wait for it.")
    keys = ", ".join(map(repr, list(document)[:8])) or "nothing"
    raise Refused(f"{where} is no rank table: it has neither server_list (v1.0) nor group_list (v0); it has {keys}.")


def foreign(document: Mapping[str, Any]) -> Tuple[str, str]:
    """(the key that tells, the name) of a format for other machines; ("", "") for any other document."""
    if "server_group_list" in document:
        return "server_group_list", "a MindIE global rank table (server_group_list), which HCCL does not read"
    for key in ("rank_list", "rank_count"):
        if key in document:
            return key, "a rank table of Ascend A5 (rank_list), not of a 910A server"
    devices = [
        card
        for server in _list(document.get("server_list"))
        for card in _list(server.get("device") if isinstance(server, dict) else None)
    ]
    super_pods = "a v1.2 rank table (A3 super pods: super_pod_list, super_device_id), not one of a 910A server"
    if "super_pod_list" in document:
        return "super_pod_list", super_pods
    if document.get("version") == "1.2":
        return "version", super_pods
    if any(isinstance(card, dict) and "super_device_id" in card for card in devices[:1]):
        return "server_list[0].device[0].super_device_id", super_pods
    return "", ""


def parse(document: Mapping[str, Any], where: str = "rank table") -> RankTable:
    """The table in a document that obeys all rules.

    Raises:
        Refused: a foreign format, or broken rules: all of them, with their JSON paths.
    """
    kind = format_of(document, where)
    walk = Walk(document, kind)
    found = walk.problems + shape_problems(walk.servers)
    broken = [item for item in found if item.level == FAIL]
    if broken:
        if any(item.rule == 30 for item in broken):  # pod names without a number are what makes ranks interleave
            found = broken + [item for item in found if item.level == WARN and item.rule == 31]
        else:
            found = broken
        raise Refused(
            f"{where} breaks {len(broken)} rule(s): {brief(found)}. All of it: qwenlib ranktable check {where}"
        )
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
