"""A training that was started before: is it this very job, does it go on, has it ended well?

A detached training outlives its kernel. Who asks for the same job again, in a new kernel, is given that one; its
identity is the hash of the rendered configuration and of the files that it reads.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, Dict, Optional, Union

from qwenlib import launch
from qwenlib.errors import Refused
from qwenlib.launch import failure, rundir
from qwenlib.launch.plan import read_spec


def identity(config: Dict[str, Any], device_target: str, *files: Path) -> str:
    """SHA-256 of the rendered configuration, and of name, size and time of each file that the training reads."""
    read = []
    for path in files:
        about = path.stat()
        read.append([str(path), about.st_size, about.st_mtime_ns])
    told = json.dumps([config, device_target, read], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def goes_on(folder: Path) -> bool:
    """A launch in ``folder`` has not ended."""
    return launch.read_status(folder) is not None and rundir.current(folder)["state"] not in rundir.FINAL


def find(plan: launch.Plan, result: Path) -> Optional[launch.Run]:
    """The launch of the job of ``plan`` that goes on in its folder, or has ended there with its ``result``.

    None: there is none; one that failed or was stopped is none.

    Raises:
        Refused: another job goes on there.
    """
    if launch.read_status(plan.folder) is None:
        return None
    state = rundir.current(plan.folder)["state"]
    same = bool(plan.job) and read_spec(plan.folder).get("job") == plan.job
    if state not in rundir.FINAL:
        if same:
            return launch.attach(plan.folder)
        raise Refused(
            f"a training with other settings, data or weights goes on in {plan.folder}. To go on watching it, give it "
            f"the same again; to end it: qwenlib stop {shlex.quote(str(plan.folder))}; or choose another run directory."
        )
    return launch.attach(plan.folder) if same and state == "done" and (plan.node or result.is_file()) else None


def told(there: Union[launch.Run, Path]) -> str:
    """What is said about a run that is taken up, or about the end of the last one in a folder; "" when all is new."""
    if isinstance(there, Path):
        status = launch.read_status(there)
        state = rundir.current(there)["state"] if status else ""
        if state not in ("failed", "stopped"):
            return ""
        how = failure.paragraph(rundir.current(there)).splitlines()[0]
        return (
            f"The last training in {there} {'failed' if state == 'failed' else 'was stopped'}: {how} Another begins.\n"
        )
    status = there.poll()
    if status["state"] in rundir.FINAL:
        return (
            f"This very training has been done in {there.run_dir}: its result is taken. To train anew, set detach "
            "False once, or choose another run directory.\n"
        )
    step = max([int(entry.get("step") or 0) for entry in status["ranks"]], default=0)
    where = f"after step {step}" if step else "before its first step"
    return f"This very training goes on in {there.run_dir}, {where}: it is watched from here on.\n"
