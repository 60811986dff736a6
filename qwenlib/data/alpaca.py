"""Records in Alpaca's format: ``instruction``, ``output`` and, optionally, ``input``, ``system`` and ``history``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple, Union

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
    system: str = ""
    """The system message; "" where the record has none."""
    history: Tuple[Tuple[str, str], ...] = ()
    """Earlier questions with their answers, oldest first."""


def read(path: Union[str, Path]) -> Iterator[Record]:
    """Yield the records of a JSON array or of JSON Lines, one at a time.

    An absent or null ``input``, ``system`` or ``history`` is empty. Other keys are not looked at.

    Raises:
        Refused: the file cannot be read (see :func:`qwenlib.data.reader.read_items`), or a record lacks a field or
            has one of the wrong type: with index, line and field.
    """
    path = Path(path)
    for item in read_items(path):
        yield to_record(item, item.where(path))


def to_record(item: Item, where: str) -> Record:
    """The record that one value of a file holds; ``where`` is its place, for errors.

    Raises:
        Refused: a field is missing, empty or of the wrong type.
    """
    value = item.value
    if not isinstance(value, dict):
        raise Refused(f"{where}: a record must be an object with instruction and output, found {kind(value)}.")
    if "instruction" not in value and "output" not in value and "messages" in value:
        raise Refused(f"{where}: these are messages already; build reads them as they are, without converting.")
    for name in ("instruction", "output"):
        if name not in value:
            raise Refused(f"{where}: no field {name!r}; it has {', '.join(map(repr, value)) or 'none'}.")
    texts: Dict[str, str] = {}
    for name in ("instruction", "input", "output", "system"):
        found = value.get(name)
        texts[name] = "" if found is None and name in ("input", "system") else check_text(found, f"{where}: {name}")
    if not texts["instruction"]:
        raise Refused(f"{where}: instruction is empty.")
    return Record(item.index, item.line, **texts, history=_history(value.get("history"), where))


def _history(value: Any, where: str) -> Tuple[Tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Refused(f"{where}: history must be an array of [question, answer] pairs, found {kind(value)}.")
    pairs = []
    for place, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"an array of {len(pair)}" if isinstance(pair, list) else kind(pair)
            raise Refused(f"{where}: history[{place}] must be a [question, answer] pair, found {found}.")
        question, answer = (check_text(text, f"{where}: history[{place}][{side}]") for side, text in enumerate(pair))
        pairs.append((question, answer))
    return tuple(pairs)


def check_text(value: Any, where: str) -> str:
    """``value`` when it is text that can be written as UTF-8.

    Raises:
        Refused: it is not a string, or holds half a surrogate pair (``\\ud83d`` alone).
    """
    if not isinstance(value, str):
        raise Refused(f"{where} must be a string, found {kind(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        raise Refused(f"{where} holds half a character (\\u{half:04x} at {error.start}), which is no text.") from None
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
