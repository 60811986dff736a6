"""What a person sees while stages run: on stderr, a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import sys
import threading

from qwenlib.progress import Progress, headless

PLAIN_SECONDS = 15.0


def say(line: str) -> None:
    """One line to stderr."""
    print(line, file=sys.stderr, flush=True)


class CellProgress:
    """Cells done and time gone of one stage; without a terminal a line comes also while one cell takes long."""

    def __init__(self, stage: str, cells: int):
        self._bar = Progress(stage, cells, "cells", PLAIN_SECONDS)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._note = ""
        self._ticker = threading.Thread(target=self._tick, name="workbook-progress", daemon=True)

    def __enter__(self) -> CellProgress:
        self._bar.__enter__()
        if headless():
            self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._ticker.ident is not None:
            self._ticker.join()
        self._bar.__exit__(*error)

    def begin(self, note: str) -> None:
        """A cell begins; ``note`` tells which."""
        with self._lock:
            self._note = note
            self._bar.advance(0, note)

    def done(self) -> None:
        """A cell is over."""
        with self._lock:
            self._bar.advance(1, self._note)

    def _tick(self) -> None:
        while not self._over.wait(1.0):
            with self._lock:
                self._bar.advance(0, self._note)
