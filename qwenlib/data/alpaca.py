"""Records in Alpaca's format: ``instruction``, ``output`` and, optionally, ``input``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Union

from qwenlib.data.reader import Item, read_items
from qwenlib.errors import Refused


@dataclass(frozen=True)
class Record:
    """One question and its answer; ``index`` counts from 0, ``line`` is where it begins in the file."""

    index: int
    line: int
    instruction: str
    input: str
    output: str


def read(path: Union[str, Path]) -> Iterator[Record]:
    """Yield the records of a JSON array or of JSON Lines, one at a time.

    An absent or null ``input`` is "". Other keys are not looked at.

    Raises:
        Refused: the file cannot be read (see :func:`qwenlib.data.reader.read_items`), or a record lacks a field or
            has one of the wrong type: with index, line and field.
    """
    path = Path(path)
    for item in read_items(path):
        yield _record(item, path)


def _record(item: Item, path: Path) -> Record:
    value, where = item.value, item.where(path)
    if not isinstance(value, dict):
        raise Refused(f"{where}: a record must be an object with instruction and output, found {_kind(value)}.")
    if "instruction" not in value and "output" not in value and "messages" in value:
        raise Refused(f"{where}: these are messages already; build reads them as they are, without converting.")
    for name in ("instruction", "output"):
        if name not in value:
            raise Refused(f"{where}: no field {name!r}; it has {', '.join(map(repr, value)) or 'none'}.")
    if value.get("input") is None:
        value = {**value, "input": ""}
    for name in ("instruction", "input", "output"):
        check_text(value[name], f"{where}: {name}")
    if not value["instruction"]:
        raise Refused(f"{where}: instruction is empty.")
    return Record(item.index, item.line, value["instruction"], value["input"], value["output"])


def check_text(value: Any, where: str) -> str:
    """``value`` when it is text that can be written as UTF-8.

    Raises:
        Refused: it is not a string, or holds half a surrogate pair (``\\ud83d`` alone).
    """
    if not isinstance(value, str):
        raise Refused(f"{where} must be a string, found {_kind(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        raise Refused(f"{where} holds half a character (\\u{half:04x} at {error.start}), which is no text.") from None
    return value


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
