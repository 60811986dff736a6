"""Signs of life: what a rank tells while it works, and what the supervisor makes of it.

A rank's program calls :func:`report_ready` once it has joined the others, and :func:`report_step` after each step.
Both replace ``heartbeat.json`` in the rank's folder; a program that calls neither is never judged by them.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any, Deque, Dict, List, Optional, Tuple

BEAT_FILE = "heartbeat.json"
MIN_SECONDS = 0.5
"""Steps come faster than that on a tiny model; not every one of them is written down."""
MOST_SECONDS = 1.5
"""What at most counts of the time between two looks of the watchdog, which are a second apart: when it is more, the
machine stood still (a suspended container, a disk that hangs), and the ranks with it."""
_KEPT = 20
_told: Dict[str, Any] = {}


def report_ready() -> None:
    """Called by a rank's program when it has met the others and begins its work."""
    _told.update(ready=time.time())
    _write()


def report_step(step: int, total: int = 0) -> None:
    """Called by a rank's program after training step ``step`` of ``total`` (0: unknown)."""
    now = time.time()
    if now - _told.get("time", 0.0) < MIN_SECONDS and step != total and _told.get("step"):
        return
    _told.setdefault("ready", now)
    _told.update(step=int(step), total=int(total), time=now)
    _write()


def _write() -> None:
    folder = os.environ.get("QWENLIB_RANK_DIR")
    if not folder:
        return
    path = Path(folder) / BEAT_FILE
    part = path.with_suffix(".part")  # no fsync: after a power cut nobody asks for it
    try:
        part.write_text(json.dumps(_told), encoding="utf-8")
        os.replace(part, path)
    except OSError:  # a full disk must not end a training for a sign of life
        return


def read_beat(folder: Path) -> Dict[str, Any]:
    """``{"ready", "step", "total", "time"}`` of a rank, as far as it has told; {} when it has told nothing."""
    try:
        beat = json.loads((folder / BEAT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return beat if isinstance(beat, dict) else {}


class Watchdog:
    """Judges the ranks of one start by their heartbeats.

    Args:
        folders: rank folder by name.
        ready_timeout, hang_factor, hang_floor: see :class:`qwenlib.launch.plan.Plan`.
    """

    def __init__(self, folders: Dict[str, Path], ready_timeout: float, hang_factor: float, hang_floor: float):
        self.folders = folders
        self.ready_timeout, self.hang_factor, self.hang_floor = ready_timeout, hang_factor, hang_floor
        self._looked = time.monotonic()
        self._lived = 0.0  # seconds since the start, without those in which the machine stood still
        self.beats: Dict[str, Dict[str, Any]] = {name: {} for name in folders}
        self._steps: Dict[str, Deque[Tuple[int, float]]] = {name: deque(maxlen=_KEPT) for name in folders}

    def look(self) -> None:
        """Read all heartbeats; to be called about once a second."""
        now = time.monotonic()
        self._lived += min(now - self._looked, MOST_SECONDS)
        self._looked = now
        for name, folder in self.folders.items():
            beat = self.beats[name] = read_beat(folder)
            step, seen = beat.get("step"), self._steps[name]
            if isinstance(step, int) and (not seen or step != seen[-1][0]):
                seen.append((step, self._lived))

    def late(self) -> List[str]:
        """The ranks that should have been ready by now and are not."""
        if not self.ready_timeout or self._lived < self.ready_timeout:
            return []
        return [name for name, beat in self.beats.items() if not beat.get("ready")]

    def hanging(self) -> Optional[Dict[str, Any]]:
        """``{ranks, step, seconds, usual}`` when no rank took a step for too long; the ranks that are behind come
        first (all of them when none is: collective operations make the others wait). None: all is well.
        """
        if not self.hang_factor:
            return None
        silent: Dict[str, Tuple[int, float, float]] = {}
        for name, seen in self._steps.items():
            usual = self._usual(seen)
            if usual is None or self._finished(name):
                continue
            quiet = self._lived - seen[-1][1]
            if quiet > max(self.hang_floor, self.hang_factor * usual):
                silent[name] = (seen[-1][0], quiet, usual)
        if not silent:
            return None
        behind = min(step for step, _, _ in silent.values())
        ranks = [name for name, (step, _, _) in silent.items() if step == behind]
        _, quiet, usual = silent[ranks[0]]
        return {"ranks": ranks, "step": behind, "seconds": round(quiet, 1), "usual": round(usual, 3)}

    def _finished(self, name: str) -> bool:
        beat = self.beats[name]
        return bool(beat.get("total")) and beat.get("step") == beat.get("total")

    @staticmethod
    def _usual(seen: Deque[Tuple[int, float]]) -> Optional[float]:
        """Median seconds of a step; None before three were seen (the first ones compile)."""
        pairs = list(seen)
        times = [(b[1] - a[1]) / max(1, b[0] - a[0]) for a, b in zip(pairs, pairs[1:])]
        return median(times) if len(times) >= 2 else None
