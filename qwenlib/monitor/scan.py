"""Looking for signatures in a log of any size, piece by piece, in bounded memory."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Optional, Sequence, Set, Tuple, Union

from qwenlib.monitor.signatures import Signature, groups

PIECE = 2**20
AHEAD = 1024
"""Bytes behind a line that a pattern may look at: CANN's reports have several lines."""
LONGEST_LINE = 65536
STAMP_NEAR = 8192
"""Bytes before a line without a time stamp in which the last one is looked for."""
SHOWN = 400
"""Bytes of a line that a report shows."""

_TIME = re.compile(rb"(\d{4}-\d\d-\d\d)[- T](\d\d:\d\d:\d\d)[.,](\d{3})")
_CHATTER = re.compile(rb"\[(?:WARNING|INFO|DEBUG|EVENT)\]|[^\n]{0,160}? - (?:WARNING|INFO|DEBUG) - ")
_ERROR_MARKS = (b"ERROR", b"CRITICAL", b"Error", b"Exception", b"Segmentation", b"core dumped", b"terminate called")
_ERROR = re.compile(
    rb"^\[(?:ERROR|CRITICAL|FATAL)\]|^[^\n]{0,160}? - (?:ERROR|CRITICAL) - "
    rb"|^(?:[A-Za-z_][\w.]{0,100}\.)?[A-Z]\w{0,80}(?:Error|Exception)(?::|\s*$)"
    rb"|^Fatal Python error|^Segmentation fault|core dumped\)?\s*$|^terminate called"
)


@dataclass
class Hit:
    """The first line of a log that has a signature (or, without one, that looks like an error)."""

    line: str
    number: int
    """Line number, from 1."""
    time: Optional[float] = None
    """Seconds since 1970, by the line's own time stamp or the one before it, taken as local time."""
    values: Dict[str, str] = field(default_factory=dict)
    chatter: bool = False
    """The line is marked WARNING, INFO or DEBUG: no error by itself."""
    count: int = 1
    """Lines with this signature."""
    last: bool = False
    """It is in the last line that says anything."""


class LogScan:
    """Feed it the bytes of one log in any portions; ``hits`` has the first line of each signature that was there."""

    def __init__(self, signatures: Sequence[Signature]):
        self.signatures = signatures
        self.hits: Dict[str, Hit] = {}
        self.error: Optional[Hit] = None
        """The first line that looks like an error, recognised or not."""
        self.lines = 0
        self.size = 0
        self._rest = b""
        self._last_line = self._before = b""
        self._taken_back: Set[str] = set()
        self._begins = {match.find[:2] for signature in signatures for match in signature.match}

    def feed(self, data: bytes) -> None:
        """Look through the lines that ``data`` completes."""
        self.size += len(data)
        buffer = self._rest + data
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r", b"\n")
        cut = buffer.rfind(b"\n", 0, max(0, len(buffer) - AHEAD)) + 1
        if not cut and len(buffer) > LONGEST_LINE + AHEAD:
            cut = len(buffer) - AHEAD  # a line without an end: its beginning will do
        self._scan(buffer, cut)
        self._rest = buffer[cut:]

    def close(self) -> LogScan:
        """The log has ended: look through what is left, and settle what depends on the end."""
        self._scan(self._rest, len(self._rest))
        self._rest = b""
        for signature in self.signatures:
            hit = self.hits.get(signature.id)
            if hit is None:
                continue
            hit.last = any(match.find in self._last_line for match in signature.match)
            few = hit.count < signature.at_least
            if few or signature.id in self._taken_back or (signature.last_line and not hit.last):
                del self.hits[signature.id]
        return self

    def _scan(self, buffer: bytes, end: int) -> None:
        if not end:
            return
        # Most texts are not there: the codes begin alike, so one look for "EI" spares those for EI0001, EI0002, …
        begins = {begin for begin in self._begins if buffer.find(begin, 0, end) >= 0}
        for signature in self.signatures:
            if signature.unless and buffer.find(signature.unless, 0, end) >= 0:
                self._taken_back.add(signature.id)
            self._look(signature, buffer, end, begins)
        if self.error is None:
            self._look_for_error(buffer, end)
        last = buffer[:end].rstrip()[-LONGEST_LINE:]
        if last:
            self._last_line = last[last.rfind(b"\n") + 1 :]
        self._before = (self._before + buffer[max(0, end - STAMP_NEAR) : end])[-STAMP_NEAR:]
        self.lines += buffer.count(b"\n", 0, end)

    def _look(self, signature: Signature, buffer: bytes, end: int, begins: Set[bytes]) -> None:
        found: Dict[int, Tuple[int, re.Match]] = {}  # by the line's beginning: two patterns count a line once
        for match in signature.match:
            place = buffer.find(match.find, 0, end) if match.find[:2] in begins else -1
            while place >= 0:
                begin = max(buffer.rfind(b"\n", 0, place) + 1, place - LONGEST_LINE)
                stop = _line_end(buffer, place)
                hit = match.regex.search(buffer[begin : min(stop + AHEAD, len(buffer))])
                if hit and hit.start() <= stop - begin:
                    found.setdefault(begin, (place, hit))
                place = buffer.find(match.find, stop, end)
        for begin in sorted(found):
            place, hit = found[begin]
            known = self.hits.get(signature.id)
            count = 1 + (known.count if known else 0)
            if known is None or (known.chatter and not _CHATTER.match(buffer, begin)):
                known = self._hit(buffer, begin, _line_end(buffer, begin), place)
                known.values = groups(hit)
            known.count, self.hits[signature.id] = count, known

    def _look_for_error(self, buffer: bytes, end: int) -> None:
        first: Optional[int] = None
        for mark in _ERROR_MARKS:
            place = buffer.find(mark, 0, end if first is None else first)
            while place >= 0:
                begin, stop = buffer.rfind(b"\n", 0, place) + 1, _line_end(buffer, place)
                if _ERROR.search(buffer[begin:stop]):
                    first = begin if first is None else min(first, begin)
                    break
                place = buffer.find(mark, stop, end if first is None else first)
        if first is not None:
            self.error = self._hit(buffer, first, _line_end(buffer, first), first)

    def _hit(self, buffer: bytes, begin: int, stop: int, place: int) -> Hit:
        line = buffer[begin:stop]
        shown = line if len(line) <= SHOWN else buffer[max(begin, place - 80) : stop][:SHOWN] + b" ..."
        stamp = _TIME.search(line)
        if stamp is None:
            before = self._before + buffer[max(0, begin - STAMP_NEAR) : begin]
            for stamp in _TIME.finditer(before[-STAMP_NEAR:]):  # noqa: B007 (the last one is meant)
                pass
        return Hit(
            shown.decode("utf-8", "replace").strip(),
            self.lines + buffer.count(b"\n", 0, begin) + 1,
            _seconds(stamp),
            chatter=bool(_CHATTER.match(line)),
        )


def _line_end(buffer: bytes, place: int) -> int:
    end = buffer.find(b"\n", place)
    return len(buffer) if end < 0 else end


def _seconds(stamp: Optional[re.Match]) -> Optional[float]:
    if stamp is None:
        return None
    try:
        whole = time.mktime(time.strptime(f"{stamp[1].decode()} {stamp[2].decode()}", "%Y-%m-%d %H:%M:%S"))
    except (ValueError, OverflowError):
        return None
    return whole + int(stamp[3]) / 1000


def scan_file(path: Union[str, Path], signatures: Sequence[Signature]) -> LogScan:
    """Scan a whole file, a piece at a time. A file that cannot be read has no hits."""
    scan = LogScan(signatures)
    try:
        with open(path, "rb") as stream:
            for data in iter(lambda: stream.read(PIECE), b""):
                scan.feed(data)
    except OSError:
        pass
    return scan.close()


def scan_bytes(data: bytes, signatures: Sequence[Signature]) -> LogScan:
    """Scan a text that is in memory."""
    scan = LogScan(signatures)
    scan.feed(data)
    return scan.close()
