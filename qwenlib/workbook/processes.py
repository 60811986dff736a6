"""The processes of a run: found wherever they went, weighed, and ended.

A rank that was started in a session of its own, or whose parent died, is no descendant of the runner any more; it
still carries the run's marker in its environment.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Dict, Iterable, List, Optional, Set

import psutil

from qwenlib.workbook.kernel import MARKER

SAMPLE_SECONDS = 1.0
GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError)


def marked(token: str) -> List[psutil.Process]:
    """The living processes that carry the marker ``token``, this one excepted."""
    found = []
    own = psutil.Process().pid
    for pid in psutil.pids():  # process_iter() keeps a cache that two threads should not share
        with contextlib.suppress(*GONE):
            process = psutil.Process(pid)
            if pid != own and process.environ().get(MARKER) == token and alive(process):
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """True for a running process; a zombie is dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except GONE:
        return False


def end(token: str, patience: float = 2.0) -> List[str]:
    """End every process that carries ``token`` and say which there were (``"1234 python"``).

    Processes get ``patience`` seconds to end by themselves (ranks whose supervisor is just stopping them), then
    SIGTERM, as long again, then SIGKILL; those that appear meanwhile included.
    """
    _wait_for_none(token, patience)
    left: Dict[int, str] = {}
    for stop in ("terminate", "kill", "kill"):
        found = marked(token)
        for process in found:
            with contextlib.suppress(*GONE):
                left[process.pid] = f"{process.pid} {process.name()}"
                getattr(process, stop)()
        if not found or _wait_for_none(token, patience):
            break
    return list(left.values())


def _wait_for_none(token: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while marked(token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class MemoryPeak(threading.Thread):
    """Samples the memory of this process, its descendants and the marked processes once a second.

    A process counts with its proportional set size, so that pages shared between ranks count once; where the kernel
    does not tell it, with its resident set size.
    """

    def __init__(self, token: str, seconds: float = SAMPLE_SECONDS):
        super().__init__(name="workbook-memory", daemon=True)
        self.token, self.seconds = token, seconds
        self.total = 0
        """Highest sum seen, in bytes."""
        self._stage = 0
        self._strays: Set[psutil.Process] = set()
        self._rounds = 0
        self._stop_event = threading.Event()

    def __enter__(self) -> MemoryPeak:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_event.set()
        self.join(timeout=10)

    def run(self) -> None:
        """Sample until the ``with`` block ends."""
        while not self._stop_event.wait(self.seconds):
            self.sample()

    def sample(self) -> int:
        """Take one sample and return it, in bytes."""
        found: Set[psutil.Process] = {psutil.Process()}
        with contextlib.suppress(*GONE):
            found.update(psutil.Process().children(recursive=True))
        if self._rounds % 3 == 0:  # looking into every environment is the dearer part
            self._strays = set(marked(self.token))
        self._rounds += 1
        now = sum(proportional(process) for process in found | self._strays)
        self._stage, self.total = max(self._stage, now), max(self.total, now)
        return now

    def stage_mib(self) -> float:
        """The peak since the last call, in MiB; counting begins anew."""
        self.sample()
        peak, self._stage = self._stage, 0
        return round(peak / 2**20, 1)


def proportional(process: psutil.Process) -> int:
    """Proportional set size of one process in bytes, else its resident set size; 0 when it is gone."""
    pss = _pss(process.pid)
    if pss is not None:
        return pss
    try:
        return int(process.memory_info().rss)
    except GONE:
        return 0


def _pss(pid: int) -> Optional[int]:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as stream:
            return _field(stream)
    except OSError:
        return None


def _field(lines: Iterable[bytes]) -> Optional[int]:
    for line in lines:
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return None
