"""Reading MindFormers' loss lines from a rank's log while it is being written.

One training step is two lines: ``{ Epoch:[…], step:[…], loss: …`` and then the bar with ``… samples/s/p …}``.
The formats of MindFormers 0.8 to 1.5 are understood, with sink mode (``loss: x``) and without (``loss:[x/mean]``).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

LONGEST_LINE = 65536
"""Bytes of an unfinished line that are kept; MindFormers' lines have about 250."""

_NUMBER = r"[-+]?(?:nan|inf(?:inity)?|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?)"
_HEAD = re.compile(
    r"\{ Epoch:\[\s*(?P<epoch>\d+)/\s*(?P<epochs>\d+)\], step:\[\s*(?P<step>\d+)/\s*(?P<steps>\d+)\], "
    rf"loss:\s*(?:\[\s*(?P<now>{_NUMBER})/\s*{_NUMBER}\]|(?P<loss>{_NUMBER})), per_step_time:\s*(?P<time>\d+)ms",
    re.IGNORECASE,
)
_LR = re.compile(rf", lr:\s*\[?\s*({_NUMBER})", re.IGNORECASE)
_OVERFLOW = re.compile(r", overflow cond:\s*\[?\s*(True|False)")
_LOSS_SCALE = re.compile(rf", loss_scale:\s*\[?\s*({_NUMBER})", re.IGNORECASE)
_GLOBAL_NORM = re.compile(rf", global_norm:\s*\[?\s*({_NUMBER})\s*[,\]]", re.IGNORECASE)
_RATE = re.compile(rf"\|\s*({_NUMBER}) samples/s/p\s", re.IGNORECASE)


@dataclass
class Step:
    """What MindFormers says about one step."""

    step: int
    """Global step, from 1: over all epochs, not within one."""
    total_steps: int
    epoch: int
    loss: float
    """Of this step alone, not the mean over the epoch."""
    per_step_time_ms: int
    """The first one of a process includes the compilation of the graph."""
    lr: Optional[float] = None
    loss_scale: Optional[float] = None
    overflow: Optional[bool] = None
    """True: gradients overflowed, and the update was skipped."""
    global_norm: Optional[float] = None
    samples_per_second_per_rank: Optional[float] = None
    """Global batch / ranks / seconds of the step."""

    def to_dict(self) -> Dict[str, Any]:
        """For a line of JSON: numbers that are not finite become None, which JSON knows."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


class LossReader:
    """Feed it the bytes of a log in any portions; it returns the steps that they complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._open: Optional[Step] = None  # its second line, with the throughput, is still to come

    def feed(self, data: bytes) -> List[Step]:
        """Steps completed by ``data``. A last line without its end waits for the next portion."""
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = rest[-LONGEST_LINE:]
        found: List[Step] = []
        for line in lines:
            # Two looks at bytes, as most lines of a log are something else.
            if b"Epoch:[" in line:
                step = parse_loss(line[-LONGEST_LINE:].decode("utf-8", "replace"))
                if step is not None:
                    found += self._flush()
                    self._open = step
            elif b"samples/s/p" in line and self._open is not None:
                rate = _RATE.search(line[-LONGEST_LINE:].decode("utf-8", "replace"))
                if rate:
                    self._open.samples_per_second_per_rank = float(rate.group(1))
                    found += self._flush()
        return found

    def close(self) -> List[Step]:
        """The log has ended: what is left is complete."""
        return self.feed(b"\n") + self._flush()

    def _flush(self) -> List[Step]:
        found = [self._open] if self._open is not None else []
        self._open = None
        return found


def parse_loss(line: str) -> Optional[Step]:
    """A step from the first of its two lines; None when it is another line."""
    head = _HEAD.search(line)
    if head is None:
        return None
    rest = line[head.end() :]
    overflow = _OVERFLOW.search(rest)
    steps, epoch = int(head["steps"]), int(head["epoch"])
    return Step(
        step=(epoch - 1) * steps + int(head["step"]),
        total_steps=int(head["epochs"]) * steps,
        epoch=epoch,
        loss=float(head["now"] or head["loss"]),
        per_step_time_ms=int(head["time"]),
        lr=_first(_LR, rest),
        loss_scale=_first(_LOSS_SCALE, rest),
        overflow=overflow.group(1) == "True" if overflow else None,
        global_norm=_first(_GLOBAL_NORM, rest),
    )


def _first(pattern: re.Pattern, text: str) -> Optional[float]:
    found = pattern.search(text)
    return float(found.group(1)) if found else None


class Follower:
    """New bytes of a file that another process is writing; a file that is not there yet has none."""

    def __init__(self, path: Union[str, Path]):
        self.path, self.offset = Path(path), 0

    def read(self, most: int = 2**20) -> bytes:
        """At most ``most`` bytes that were not read before; from the beginning again when the file was cut."""
        try:
            with open(self.path, "rb") as stream:
                if stream.seek(0, 2) < self.offset:
                    self.offset = 0
                stream.seek(self.offset)
                data = stream.read(most)
        except FileNotFoundError:
            return b""
        self.offset += len(data)
        return data
