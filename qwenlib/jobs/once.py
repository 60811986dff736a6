"""Once per node, however many processes a platform starts there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Union

from qwenlib import files
from qwenlib.errors import QwenlibError, WorkFailed

SPREAD = 600.0
"""Seconds within which a platform starts the processes of one attempt; what is older is an earlier attempt's."""


def once(folder: Union[str, Path], job: str, work: Callable[[], int], begun: Optional[float] = None) -> int:
    """Do ``work`` in the first process that comes; the others wait for it and return its exit code.

    Args:
        folder: on a disk of this node only; it holds the lock and the record.
        job: the name of the job, equal in all its processes.
        begun: when this process was started (time.time()); None: now.

    Raises:
        Refused: ``folder`` cannot be made.
        WorkFailed: the process that did the work died without a word (killed, out of memory).
    """
    begun = time.time() if begun is None else begun
    name = re.sub(r"[^\w.-]", "_", job)[:80]
    folder = Path(folder)
    files.make_folder(folder)
    record = folder / f"{name}.json"
    with open(folder / f"{name}.lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when its holder ends, however it ends
        found = _read(record)
        if found.get("finished", 0) >= begun:
            print(f"process {os.getpid()}: process {found['pid']} of this node did the work", flush=True)
            return int(found["code"])
        if found and "finished" not in found and found["started"] >= begun - SPREAD:
            raise WorkFailed(f"process {found['pid']} of this node, which did the work, ended without a word.")
        state: Dict[str, Any] = {"pid": os.getpid(), "started": time.time()}
        files.write_json(record, state)
        code = 1
        try:
            code = work()
        except QwenlibError as error:
            code = error.exit_code
            raise
        finally:
            files.write_json(record, {**state, "finished": time.time(), "code": code})
        return code


def _read(path: Path) -> Dict[str, Any]:
    with contextlib.suppress(QwenlibError):
        found = files.read_json(path)
        if isinstance(found, dict) and "started" in found:
            return found
    return {}
