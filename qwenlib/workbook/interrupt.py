"""Ctrl-C and SIGTERM while notebooks run.

No exception flies through the event loop: the signal interrupts the running cell, as the stop button of JupyterLab
does, so that the cell's own clean-up runs and the notebook shows where it was; a kernel that does not come back from
it, or a second signal, is answered with SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Dict, List, Optional

GRACE_SECONDS = 10.0
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """Raised between two cells when a signal has come."""


class Signals:
    """``with Signals() as signals``: catches the signals in the main thread; elsewhere it catches nothing."""

    def __init__(self, grace: float = GRACE_SECONDS):
        self.grace = grace
        self.caught: Optional[signal.Signals] = None
        self.kernels: List[Any] = []
        """``Popen`` of every kernel that was started; the living one is interrupted."""
        self._before: Dict[signal.Signals, Any] = {}
        self._timer: Optional[threading.Timer] = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in CAUGHT:
                before = signal.getsignal(signum)
                if before is signal.SIG_IGN and signum == signal.SIGHUP:
                    continue  # nohup
                self._before[signum] = before
                signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def check(self) -> None:
        """Raise :class:`Stopped` when a signal has come."""
        if self.caught is not None:
            raise Stopped(self.name)

    @property
    def name(self) -> str:
        """What stopped the run, for people."""
        if self.caught is None:
            return ""
        return "Ctrl-C" if self.caught == signal.SIGINT else self.caught.name

    def raise_again(self) -> None:
        """What the signal would have meant to the process: KeyboardInterrupt, or SystemExit with 128 + its number."""
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught is not None:
            raise SystemExit(128 + self.caught)

    def _handle(self, signum: int, frame: Optional[FrameType]) -> None:
        if self.caught is None:
            self.caught = signal.Signals(signum)
            self._send(signal.SIGINT)
            self._timer = threading.Timer(self.grace, self._send, [signal.SIGKILL])
            self._timer.daemon = True
            self._timer.start()
        else:
            self._send(signal.SIGKILL)

    def _send(self, signum: signal.Signals) -> None:
        # SIGINT to the kernel alone: what it started is stopped by its own clean-up, or after it.
        for kernel in self.kernels:
            if kernel.returncode is None:
                with contextlib.suppress(OSError):
                    os.kill(kernel.pid, signum)
