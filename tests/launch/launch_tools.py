"""What the launcher's tests look at processes with."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Callable, List

import psutil

from qwenlib.launch import processes

STUB = str(Path(__file__).with_name("stub_rank.py"))
TAG = "QWENLIB_TEST_TAG"


def running(tag: str) -> List[psutil.Process]:
    """Processes with this tag in their environment; zombies count as dead."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TAG) == tag and not processes.is_zombie(process):
                found.append(process)
    return found


def sleepers(tag: str) -> int:
    """How many processes with this tag are a ``sleep`` of their own, past whatever was to start them."""
    count = 0
    for process in running(tag):
        with contextlib.suppress(psutil.Error):
            count += process.name() == "sleep"
    return count


def gone(tag: str, seconds: float) -> float:
    """Wait until no process has the tag; returns the time it took, fails after ``seconds``."""
    start = time.monotonic()
    while running(tag):
        assert time.monotonic() - start < seconds, f"still there after {seconds} s: {running(tag)}"
        time.sleep(0.05)
    return time.monotonic() - start


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return condition()
