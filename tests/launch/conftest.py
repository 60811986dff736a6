from __future__ import annotations

import contextlib
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from launch_tools import STUB, TAG, running

from qwenlib.launch import Plan


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell starts what it sends into the background with SIGINT ignored, and the tests would never hear theirs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def tag() -> Iterator[str]:
    """A tag for all processes of a test; at its end, none may be left."""
    value = uuid.uuid4().hex
    yield value
    left = running(value)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    assert not left, f"left behind: {left}"


@pytest.fixture
def stub(tmp_path: Path, tag: str) -> Callable[..., Plan]:
    """``stub("sleep:9", "exit:3")``: a plan of two such ranks with a scheduler that sleeps."""

    def make(*actions: str, ranks: int = 0, scheduler: str = "sleep:0.2", **settings: Any) -> Plan:
        ranks = ranks or len(actions)
        settings.setdefault("rendezvous", "dynamic_cluster" if ranks > 1 else "single")
        settings.setdefault("run_dir", tmp_path / "run")
        settings.setdefault("grace", 1.0)
        settings["env"] = {TAG: tag, **settings.get("env", {})}
        command = [sys.executable, STUB]
        return Plan([*command, *actions], ranks, scheduler_command=[*command, scheduler], **settings)

    return make


@pytest.fixture
def bystander() -> Iterator[psutil.Popen]:
    """A process that nobody may touch."""
    process = psutil.Popen(["sleep", "100"], start_new_session=True, env={**os.environ})
    yield process
    assert process.poll() is None, "a process that the launcher did not start was ended"
    process.kill()
    process.wait()
