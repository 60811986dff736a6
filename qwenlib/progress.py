"""Progress of long work: a bar where somebody looks, plain lines where nobody does."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Iterable, Iterator, Optional

PLAIN_SECONDS = 5.0
"""Seconds between two plain lines when headless (``tqdm.auto`` stays at 0 % under papermill)."""


def headless() -> bool:
    """True when no front end shows widgets: under papermill (the workbook runner sets ``QWENLIB_HEADLESS=1``)
    or in a plain process whose stderr is not a terminal."""
    value = os.environ.get("QWENLIB_HEADLESS")
    if value is not None:
        return value not in ("", "0")
    return not (in_kernel() or sys.stderr.isatty())


def in_kernel() -> bool:
    """True inside an ipykernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def tell(line: str) -> None:
    """Print a line about work under way: to stderr, for stdout belongs to ``--json``.

    In a kernel to stdout, where nothing else has a claim on it: front ends show stderr as an error, on red.
    """
    print(line, file=sys.stdout if in_kernel() else sys.stderr, flush=True)


class Progress:
    """``with Progress("convert", total=387, unit="tensors") as bar: bar.advance()``.

    A tqdm bar in a terminal or a notebook; headless, one line every few seconds and one at the end.
    Everything goes to stderr (lines in a kernel: see :func:`tell`).
    """

    def __init__(self, what: str, total: Optional[float] = None, unit: str = "", seconds: float = PLAIN_SECONDS):
        self.what, self.total, self.unit, self.seconds = what, total, unit, seconds
        self.done = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._start = self._last = time.monotonic()
        if not headless():
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=self.what, total=self.total, unit=f" {self.unit}", file=sys.stderr)
        return self

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count ``amount`` more units done; ``note`` is shown behind the bar."""
        self.done += amount
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._last >= self.seconds:
            self._line(note)

    def _line(self, note: str) -> None:
        self._last = time.monotonic()
        share = f"/{_number(self.total)} ({100 * self.done / self.total:.0f} %)" if self.total else ""
        tell(f"{self.what}: {_number(self.done)}{share} {self.unit} {self._last - self._start:.0f} s {note}".rstrip())

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error[0] is None:
            self._line("")


def _number(value: float) -> str:
    """A count as it is, a measure with one place behind the point."""
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def track(items: Iterable[Any], what: str, total: Optional[int] = None, unit: str = "") -> Iterator[Any]:
    """Iterate over ``items`` under a :class:`Progress`."""
    if total is None:
        total = len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
    with Progress(what, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
