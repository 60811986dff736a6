"""Read a JSON array or JSON Lines one value at a time, in bounded memory, and say where each value stands."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Optional

from qwenlib.data.foreign import advice
from qwenlib.errors import Refused

BLOCK = 2**20
LARGEST = 2**26
"""Characters that one value of an array may take; more is taken for a missing bracket or quote."""

_SPACE = " \t\n\r"


@dataclass(frozen=True)
class Item:
    """A value of the file: ``index`` counts from 0, ``line`` (where the value begins) from 1."""

    index: int
    line: int
    value: Any

    def where(self, path: Path) -> str:
        """The place, for an error."""
        return f"{path}, record {self.index} (line {self.line})"


OnBroken = Callable[[Item, Refused], None]
"""Told of a line that is not JSON: an item whose value is the line's text, and the error."""


def read_items(path: Path, on_broken: Optional[OnBroken] = None) -> Iterator[Item]:
    """Yield the values of ``path``: the elements of an array when it begins with ``[``, else one value a line.

    ``on_broken``: called for each line that is not JSON, which is then passed over. (In an array nobody can say where
    the next record begins: there an error always ends the reading.)

    Raises:
        Refused: no such file, nothing in it, not UTF-8, or not JSON (line and column).
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise Refused(f"there is no data file {path} (found {found}). Give a JSON array or JSON Lines file.")
    with open(path, "rb") as stream:
        text = _Text(path, stream)
        text.skip_space()
        if text.ended():
            raise Refused(f"{path} is empty. Give a JSON array or JSON Lines of records.")
        items = _array(text) if text.peek() == "[" else _lines(text, on_broken)
        empty = True
        for item in items:
            empty = False
            yield item
        if empty and not text.broken:
            raise Refused(f"{path} holds no records. Give a JSON array or JSON Lines of records.")


class _Text:
    """A window on the decoded file: ``buffer[at:]`` is what has not been used; ``line`` is the line of ``at``."""

    def __init__(self, path: Path, stream: BinaryIO):
        self.path, self.stream = path, stream
        self.buffer, self.at, self.line, self.column = "", 0, 1, 1
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.broken = False
        self._lines_read, self._whole = 1, False

    def fill(self, size: int = BLOCK) -> bool:
        """Read at least one more character; False at the end of the file."""
        if self._whole:
            return False
        block = self.stream.read(size)
        self._whole = not block
        try:
            more = self._decoder.decode(block, final=self._whole)
        except UnicodeDecodeError as error:
            line = self._lines_read + error.object[: error.start].count(b"\n")
            found = f"not UTF-8 text (byte 0x{error.object[error.start]:02x})"
            if self._whole:  # no byte is wrong, but some are missing
                found = "the file ends within a character; it may have been cut off"
            raise Refused(f"{self.path}, line {line}: {found}. {advice(self.path)}".rstrip()) from None
        if not more:  # positions in the window stay valid at the end of the file
            return not self._whole and self.fill(size)
        self._lines_read += more.count("\n")
        self.buffer, self.at = self.buffer[self.at :] + more, 0
        return True

    def peek(self) -> str:
        return self.buffer[self.at]

    def ended(self) -> bool:
        return self.at >= len(self.buffer) and not self.fill()

    def advance(self, end: int) -> None:
        """Move on to ``buffer[end]``."""
        newlines = self.buffer.count("\n", self.at, end)
        if newlines:
            self.line += newlines
            self.column = end - self.buffer.rfind("\n", self.at, end)
        else:
            self.column += end - self.at
        self.at = end

    def skip_space(self) -> None:
        while not self.ended():
            end = self.at
            while end < len(self.buffer) and self.buffer[end] in _SPACE:
                end += 1
            stop = end < len(self.buffer)
            self.advance(end)
            if stop:
                return

    def refuse(self, message: str, position: int, advice: str = "") -> Refused:
        """An error at ``buffer[position]``."""
        self.advance(min(position, len(self.buffer)))
        return Refused(f"{self.path}, line {self.line}, column {self.column}: not JSON ({message}). {advice}".rstrip())


def _array(text: _Text) -> Iterator[Item]:
    text.advance(text.at + 1)
    index = 0
    while True:
        text.skip_space()
        if text.ended():
            raise text.refuse("the array is not closed by ]; the file may have been cut off", text.at)
        if text.peek() == "]":
            if index:
                raise text.refuse("a comma before ], with no record between", text.at, "Take the comma away.")
            break
        line = text.line
        yield Item(index, line, _value(text))
        index += 1
        text.skip_space()
        if text.ended():
            raise text.refuse("the array is not closed by ]; the file may have been cut off", text.at)
        mark = text.peek()
        if mark not in ",]":
            raise text.refuse(f"expected , or ] after record {index - 1}, found {mark!r}", text.at)
        if mark == "]":
            break
        text.advance(text.at + 1)
    text.advance(text.at + 1)
    text.skip_space()
    if not text.ended():
        raise text.refuse("something follows behind the array", text.at)


def _value(text: _Text) -> Any:
    """Parse one value at the window's beginning, widening the window until it fits."""
    decoder = json.JSONDecoder()
    size = BLOCK
    while True:
        try:
            value, end = decoder.raw_decode(text.buffer, text.at)
        except json.JSONDecodeError as error:
            # A value that is cut off by the window's end looks like an error: read more, twice as much each time.
            if len(text.buffer) - text.at < LARGEST and text.fill(size):
                size *= 2
                continue
            raise text.refuse(error.msg, error.pos) from None
        except (RecursionError, ValueError) as error:
            raise text.refuse(_reason(error), text.at) from None
        if end == len(text.buffer) and text.fill(size):
            continue  # a number may go on
        text.advance(end)
        return value


def _lines(text: _Text, on_broken: Optional[OnBroken]) -> Iterator[Item]:
    index = 0
    while not text.ended():
        end = text.buffer.find("\n", text.at)
        if end < 0:
            if len(text.buffer) - text.at > LARGEST:
                raise text.refuse(f"a line of more than {LARGEST} characters", text.at)
            if text.fill():
                continue
            end = len(text.buffer)
        line = text.buffer[text.at : end]
        if line.strip(_SPACE):
            number = text.line
            try:
                item = Item(index, number, _parse(text, line))
            except Refused as error:
                if on_broken is None:
                    raise
                text.broken = True
                on_broken(Item(index, number, line), error)
            else:
                yield item
            index += 1
        text.advance(min(max(end + 1, text.at), len(text.buffer)))


def _parse(text: _Text, line: str) -> Any:
    """The value of the line at the window's beginning."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        advice = ""
        if not line.lstrip(_SPACE).startswith("{"):
            advice = "Give a JSON array or JSON Lines of records."
        elif error.pos >= len(line.rstrip(_SPACE)):
            advice = (
                "The line ends within an object: records that go over several lines must stand in an array "
                "([{…}, {…}]); outside of one, each has a line to itself."
            )
        raise text.refuse(error.msg, text.at + error.pos, advice) from None
    except (RecursionError, ValueError) as error:
        raise text.refuse(_reason(error), text.at) from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
