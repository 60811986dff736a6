"""The table of failures: what a log line means (``signatures.yaml``, and what a user adds to it)."""

from __future__ import annotations

import os
import re
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from qwenlib.errors import Refused

SIGNATURES = Path(__file__).parent / "signatures.yaml"
VARIABLE = "QWENLIB_SIGNATURES"
"""Environment variable: more files of the same form, separated by ``:``."""
KINDS = ("real", "killed", "maybe", "timeout", "family", "wrapper", "note")
_TEXTS = ("id", "what", "cause", "advice")
_OPTIONAL = ("row", "unless", "at_least", "last_line")


@dataclass(frozen=True)
class Match:
    """``find`` must be in a line; then ``regex`` must match from that line's beginning on."""

    find: bytes
    regex: re.Pattern


@dataclass(frozen=True)
class Signature:
    """One entry of the table; ``signatures.yaml`` says what the fields mean."""

    id: str
    what: str
    kind: str
    cause: str
    advice: str
    match: Tuple[Match, ...]
    unless: bytes = b""
    at_least: int = 1
    last_line: bool = False
    row: str = ""
    """Row of the collection that the entry was made from; the id when empty."""

    def say(self, field: str, values: Mapping[str, str]) -> str:
        """``what``, ``cause`` or ``advice`` with ``$name`` filled in; ``…`` for what the line did not say."""
        template = string.Template(getattr(self, field))
        return template.safe_substitute({name: values.get(name) or "…" for name in self.names})

    @property
    def names(self) -> List[str]:
        """The named groups of all patterns."""
        return [name for match in self.match for name in match.regex.groupindex]


def load_signatures(extra: Sequence[Union[str, Path]] = (), environ: Mapping[str, str] = os.environ) -> List[Signature]:
    """Our table, then the files of ``QWENLIB_SIGNATURES``, then ``extra``; a later id replaces an earlier one.

    Raises:
        Refused: a file that is missing, is no YAML list, or has a wrong entry (file, entry, field).
    """
    found = {signature.id: signature for signature in _ours()}
    more = [name for name in environ.get(VARIABLE, "").split(os.pathsep) if name]
    for path in [*more, *extra]:
        found.update({signature.id: signature for signature in read_signatures(path)})
    return list(found.values())


@lru_cache(maxsize=1)
def _ours() -> Tuple[Signature, ...]:
    return tuple(read_signatures(SIGNATURES))


def read_signatures(path: Union[str, Path]) -> List[Signature]:
    """Read one file of signatures.

    Raises:
        Refused: as :func:`load_signatures`.
    """
    import yaml

    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"the signatures {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list):
        raise Refused(f"{path} must hold a list of signatures, found {type(entries).__name__}.")
    return [_entry(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]


def _entry(entry: Any, where: str) -> Signature:
    if not isinstance(entry, dict):
        raise Refused(f"{where}: a signature is a mapping, found {type(entry).__name__}.")
    unknown = set(entry) - {*_TEXTS, *_OPTIONAL, "kind", "match"}
    if unknown:
        raise Refused(f"{where}: there is no field {sorted(map(str, unknown))[0]!r}.")
    for field in _TEXTS:
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            raise Refused(f"{where}: {field} must be a text, found {entry.get(field)!r}.")
    where = f"{where} ({entry['id']})"
    if entry.get("kind") not in KINDS:
        raise Refused(f"{where}: kind must be one of {', '.join(KINDS)}, found {entry.get('kind')!r}.")
    items = entry.get("match")
    if not isinstance(items, list) or not items:
        raise Refused(f"{where}: match must be a list of texts or of {{find, regex}}, found {items!r}.")
    unless, at_least = entry.get("unless", ""), entry.get("at_least", 1)
    if not isinstance(unless, str) or not isinstance(at_least, int):
        raise Refused(f"{where}: unless must be a text and at_least a whole number, found {unless!r} and {at_least!r}.")
    return Signature(
        **{field: entry[field].strip() for field in _TEXTS},
        kind=entry["kind"],
        match=tuple(_match(item, where) for item in items),
        unless=unless.encode(),
        at_least=at_least,
        last_line=bool(entry.get("last_line", False)),
        row=str(entry.get("row", entry["id"])),
    )


def _match(item: Any, where: str) -> Match:
    if isinstance(item, str) and item:
        return Match(item.encode(), re.compile(re.escape(item.encode())))
    if not isinstance(item, dict) or set(item) != {"find", "regex"} or not all(map(_is_text, item.values())):
        raise Refused(f"{where}: an item of match is a text or {{find: text, regex: pattern}}, found {item!r}.")
    try:
        return Match(item["find"].encode(), re.compile(item["regex"].strip().encode()))
    except re.error as error:
        raise Refused(f"{where}: {item['regex']!r} is no regular expression: {error}.") from None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def groups(found: re.Match) -> Dict[str, str]:
    """The named groups that took part, as text."""
    return {name: value.decode("utf-8", "replace") for name, value in found.groupdict().items() if value is not None}


def by_id(signatures: Sequence[Signature], name: str) -> Optional[Signature]:
    """The signature with this id."""
    return next((signature for signature in signatures if signature.id == name), None)
