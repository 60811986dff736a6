"""Looking at processes and ending them: never one that we did not start, never one whose pid was reused."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import psutil

MARK = "QWENLIB_LAUNCH_ID"
"""Variable that every process of a launch inherits: by it, they are found after their supervisor was killed."""

KILL_SECONDS = 5.0
"""How long SIGKILL is repeated; what is left then hangs in the kernel and is reported."""

_CLOCK_STEP = 1.5  # seconds by which the boot time, and so every creation time, may be seen to move


def identity(pid: int) -> Dict[str, Any]:
    """``{pid, create_time}``: the two together name a process for good."""
    return {"pid": pid, "create_time": psutil.Process(pid).create_time()}


def place() -> str:
    """Where a pid means something: the boot of the machine and the namespace of its processes (container)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def find(who: Optional[Dict[str, Any]]) -> Optional[psutil.Process]:
    """The running process with this identity; None when it ended, is a zombie, or its pid is another's now."""
    if not who or not who.get("pid"):
        return None
    try:
        process = psutil.Process(int(who["pid"]))
        if abs(process.create_time() - float(who["create_time"])) > _CLOCK_STEP or is_zombie(process):
            return None
        return process
    except psutil.Error:
        return None


def is_zombie(process: psutil.Process) -> bool:
    """Ended, though its parent has not asked yet.

    A process whose first thread has ended looks like a zombie, but it is none while other threads of it live: so do
    ranks with many threads for a while after a signal, and hold memory and cards.
    """
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) and process.num_threads() < 2
    except psutil.Error:
        return True


def is_stopped(who: Dict[str, Any]) -> bool:
    """The process with this identity was stopped by a signal (SIGSTOP, SIGTSTP) and waits for SIGCONT."""
    process = find(who)
    try:
        return process is not None and process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def below(pid: int) -> List[psutil.Process]:
    """All running descendants of a process."""
    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if not is_zombie(process)]
    except psutil.Error:
        return []


def marked(launch_id: str) -> List[psutil.Process]:
    """All running processes that inherited the mark of one launch (ourselves excepted)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == launch_id and not is_zombie(process):
                found.append(process)
    return found


def end(
    alive: Callable[[], List[psutil.Process]],
    grace: float,
    groups: Callable[[], List[int]] = list,
    tick: Callable[[], None] = lambda: None,
) -> List[int]:
    """SIGTERM to ``groups()`` and to all of ``alive()``, ``grace`` seconds for all together, then SIGKILL.

    ``tick`` is called while waiting (the supervisor reaps its children there). Returns the pids that are still
    there after that: none, but for processes that hang in the kernel.
    """
    deadline = time.monotonic() + grace
    _send(signal.SIGTERM, groups(), alive())
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
        tick()
    deadline = time.monotonic() + KILL_SECONDS
    while alive() and time.monotonic() < deadline:
        _send(signal.SIGKILL, groups(), alive())  # again and again: they may have forked meanwhile
        time.sleep(0.05)
        tick()
    tick()
    return [process.pid for process in alive()]


def _send(number: signal.Signals, groups: List[int], processes: List[psutil.Process]) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
    for process in processes:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) not in groups:
                process.send_signal(number)  # psutil looks at the creation time once more


_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC: Any = None
with contextlib.suppress(OSError):
    _LIBC = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose parent ended, so that none gets out of sight (Linux)."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel kills this process when the *thread* that forked it ends (Linux).

    Right below the supervisor, which has one thread only; wrong inside a kernel.
    """
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer struck in our cgroup (version 2 or 1); 0 when it does not say."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as stream:
            for line in stream:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
