"""Long texts in pieces that are tokenized one by one, with the ids of the whole.

The tokenizer takes some 400 bytes for each character of a text at a time. Qwen's pattern never looks back, so a text
may be cut wherever one of its matches must end whatever stands around, and the left part matches alike without the
right one: behind a digit, which is always alone; between a letter and a space or a mark; and behind a line break, when
a letter or digit follows. Only signs are used here of which every Unicode version says the same.
"""

from __future__ import annotations

import re
from typing import Iterable, Iterator, List

from qwenlib.errors import Refused

PIECE = 2**16
"""Characters of a piece, when a place to cut is found in its second half."""

LONGEST = 2**20
"""Characters without a place to cut that are tokenized all the same; they take about 0.4 GB."""

_LETTERS = "A-Za-z\u4e00-\u9fa5"
_MARKS = "\t-\r -/:-@\\[-`{-~\u2018-\u201d\u3000-\u3002\u300a-\u300f\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
_CUT = re.compile(f"[0-9]|[{_LETTERS}](?=[{_MARKS}])|\n(?=[0-9{_LETTERS}])")


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """``text``, NFC-normalized, in pieces of ``size`` characters or less, or up to the next place to cut."""
    start = 0
    while len(text) - start > size:
        end = _cut(text, start, size)
        yield text[start:end]
        start = end
    yield text[start:]


def check_pieces(text: str, where: str) -> None:
    """Refuse a text that holds more than :data:`LONGEST` characters without a place to cut.

    Raises:
        Refused: with ``where``, the number of characters and the first of them.
    """
    if len(text) <= LONGEST:
        return
    at = 0
    for piece in pieces(text):
        if len(piece) > LONGEST:
            raise Refused(
                f"{where} holds {len(piece):,} characters, from number {at:,} on ({piece[:20]!r}), without a space, "
                f"digit, line break or punctuation between words; more than {LONGEST:,} cannot be tokenized in bounded "
                "memory. Break them up, or leave the record out."
            )
        at += len(piece)


def _cut(text: str, start: int, size: int) -> int:
    """The last place to cut in the second half of ``size`` characters, else the first one behind them."""
    for window in (size // 64, size // 2):
        ends = [match.end() for match in _CUT.finditer(text, start + size - window, start + size)]
        if ends:
            return ends[-1]
    found = _CUT.search(text, start + size)
    return found.end() if found else len(text)


def groups(texts: Iterable[str], most: int, size: int = PIECE) -> Iterator[List[str]]:
    """The texts in order, in lists of ``most`` characters at most; a text longer than ``size`` is alone in its list."""
    group: List[str] = []
    characters = 0
    for text in texts:
        if group and (len(text) > size or characters + len(text) > most):
            yield group
            group, characters = [], 0
        if len(text) > size:
            yield [text]
            continue
        group.append(text)
        characters += len(text)
    if group:
        yield group
