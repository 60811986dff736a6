"""One runner at a time in a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import socket
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import psutil

from qwenlib.errors import Refused
from qwenlib.files import read_json, write_json

NAME = ".lock"


def identity() -> Dict[str, Any]:
    """Who this process is: pid, time of creation (which tells a reused pid), host."""
    return {"pid": os.getpid(), "create_time": psutil.Process().create_time(), "host": socket.gethostname()}


def is_alive(who: Dict[str, Any]) -> Optional[bool]:
    """Whether the process ``who`` still runs; None when it belongs to another host and cannot be looked up."""
    if who.get("host") != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(who["pid"]))
        # The clock that create_time is counted from can be set while a process runs, hence the margin.
        same = abs(process.create_time() - float(who["create_time"])) < 5
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False
    except psutil.AccessDenied:
        return True


@contextlib.contextmanager
def held(run_dir: Path, token: str) -> Iterator[Optional[str]]:
    """Hold the lock of ``run_dir``; yields the token of a runner that died holding it, whose lock was taken over.

    Raises:
        Refused: another runner is at work there, or one of another host left its lock.
    """
    path = run_dir / NAME
    with _alone(run_dir):
        stale = _judge(path)
        write_json(path, {**identity(), "token": token})
    try:
        yield stale
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _judge(path: Path) -> Optional[str]:
    if not path.exists():
        return None
    try:
        other = read_json(path)
    except Refused:
        return None  # an unreadable lock says nothing about anybody
    if not isinstance(other, dict):
        return None
    running = is_alive(other)
    if running is None:
        raise Refused(
            f"{path.parent} is locked by process {other.get('pid')} on host {other.get('host')}, which cannot be "
            f"looked up from here. Wait for it, or, when you know that it is gone, delete {path}."
        )
    if running:
        raise Refused(
            f"another workbook runner (process {other['pid']}) is at work in {path.parent}. "
            f"Watch it with `qwenlib workbook status {shlex.quote(str(path.parent))}`, or choose another --output."
        )
    return str(other.get("token") or "") or None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else judges the lock of ``folder`` at the same time (where the file system can lock)."""
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
