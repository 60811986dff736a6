"""What a launch leaves in its run directory, read from anywhere: the state, who holds it, what of it is alive."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Union

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import write_json
from qwenlib.launch import failure, heartbeat, processes
from qwenlib.launch.plan import SCHEDULER, SPEC_FILE, STATE_FILE

LOCK_FILE, SUPERVISOR_LOG, EARLIER = "launch.lock", "supervisor.log", "earlier"
FINAL = ("done", "failed", "stopped")
RESERVE_FILE = ".launch.reserve"
WATCHED = ("metrics.jsonl", "watch.json", "loss.png")
OURS = (STATE_FILE, SPEC_FILE, SUPERVISOR_LOG, SCHEDULER, RESERVE_FILE, "rank_*", *WATCHED)
SILENT_SECONDS = 60.0
"""A supervisor on another host that gave no sign of life for this long is taken for lost."""
DEVICE_LOCKS = Path("/tmp")


def read_status(run_dir: Path) -> Optional[Dict[str, Any]]:
    """``run_dir/launch.json`` (replaced atomically, so readable at any instant); None when there is none."""
    try:
        status = json.loads((run_dir / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) and "ranks" in status else None


def find_launch(run_dir: Union[str, Path]) -> Path:
    """The absolute folder of a launch: ``run_dir``, or its ``node_N`` on a further node with a disk of its own.

    Raises:
        Refused: nothing was launched there; launches right below it are named. Or its state cannot be read.
    """
    folder = Path(run_dir).expanduser().absolute()
    if (folder / STATE_FILE).is_file():
        if not whole(read_status(folder)):
            raise Refused(
                f"{folder / STATE_FILE} is damaged, or no state of a launch: what runs there cannot be told from it. "
                f"The logs, if there are any: {folder}/rank_N/{failure.LOG_FILE}"
            )
        return folder
    if not folder.is_dir():
        raise Refused(f"there is no run directory {folder}.")
    below = sorted(path.parent.name for path in folder.glob(f"*/{STATE_FILE}"))
    if len(below) == 1 and below[0].startswith("node_"):
        return folder / below[0]
    hint = f" These below it are: {', '.join(below)}." if below else " It is the --output_dir of `qwenlib train`."
    raise Refused(f"{folder} is no run directory of a launch ({STATE_FILE} is missing).{hint}")


def whole(status: Optional[Dict[str, Any]]) -> bool:
    """It has what the supervisor always writes (the file is replaced atomically, but a disk or a person may err)."""
    if status is None or not all(isinstance(status.get(key), str) for key in ("id", "state")):
        return False
    entries = [*status["ranks"], *filter(None, [status.get("scheduler")])] if isinstance(status["ranks"], list) else [0]
    keys = {"name", "pid", "state", "exit_code", "signal"}
    return "supervisor" in status and all(isinstance(entry, dict) and keys <= entry.keys() for entry in entries)


def here(status: Dict[str, Any]) -> bool:
    """Its pids are those that we see."""
    return status.get("place", processes.place()) == processes.place()


def current(folder: Path) -> Dict[str, Any]:
    """The state with what the file alone cannot tell: a supervisor that is gone (``supervisor_lost``, state
    ``failed``, ``alive``: pids that it left), and each rank's last step.
    """
    status = read_status(folder)
    supervisor = status["supervisor"] if status else None
    if status and status["state"] not in FINAL and not _supervised(folder, status):
        status = read_status(folder) or status  # what it wrote last is there now
        if status["state"] not in FINAL:
            alive = sorted(process.pid for process in processes.marked(status["id"])) if here(status) else []
            lost(
                folder, status, f"the supervisor of the ranks (pid {supervisor['pid'] if supervisor else '?'}) is gone"
            )
            status["alive"] = alive
            if alive:
                status["root_cause"]["message"] += (
                    f" {len(alive)} process(es) that it started are still there (pids "
                    f"{', '.join(map(str, alive))}); end them with: qwenlib stop {shlex.quote(str(folder))}"
                )
    if status is None:
        raise Refused(f"{folder / STATE_FILE} cannot be read.")
    for entry in status["ranks"]:
        beat = heartbeat.read_beat(folder / entry["name"])
        entry.update({key: beat[key] for key in ("ready", "step", "total") if key in beat})
    return status


def lost(folder: Path, status: Dict[str, Any], how: str) -> None:
    """Turn ``status`` into that of a launch whose supervisor ended before it could say how all ended."""
    lines = failure.last_lines(folder / SUPERVISOR_LOG)
    message = f"{how}: it ended before the ranks did."
    message += " It said:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""
    cause = {"rank": None, "reason": "launcher", "message": message, "time": time.time(), "log": None}
    status.update(state="failed", root_cause=cause, supervisor_lost=True)


def settle(folder: Path, status: Dict[str, Any]) -> None:
    """Write the end of a launch whose supervisor was lost, unless another launch has begun meanwhile."""
    with contextlib.suppress(Refused, WorkFailed, OSError), lock(folder):
        now = read_status(folder)
        if now and now["id"] == status["id"] and now["state"] not in FINAL:
            for entry in status["ranks"] + [item for item in [status.get("scheduler")] if item]:
                if entry["state"] == "running":
                    entry.update(state="stopped", finished=time.time())
            write_json(folder / STATE_FILE, {**status, "finished": time.time(), "alive": []})


def _supervised(folder: Path, status: Dict[str, Any]) -> bool:
    if here(status):
        return processes.find(status["supervisor"]) is not None
    with contextlib.suppress(OSError):
        return time.time() - (folder / STATE_FILE).stat().st_mtime < SILENT_SECONDS
    return False


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[Any]:
    """Hold ``launch.lock``; the kernel gives it back when its last holder, the supervisor, has ended.

    Raises:
        Refused: a run is going on there.
    """
    with open(folder / LOCK_FILE, "ab") as held:
        if not _try_lock(held):
            where = shlex.quote(str(folder))
            raise Refused(
                f"a run is going on in {folder}. See `qwenlib status {where}`; end it with `qwenlib stop {where}`, "
                "or choose another run directory."
            )
        yield held


def check_free(folder: Path) -> None:
    """Raises:
    Refused: a run is going on in ``folder``, or processes of an earlier one are left.
    """
    if (folder / LOCK_FILE).exists():
        with lock(folder):
            pass
    refuse_leftovers(folder)


@contextlib.contextmanager
def device_locks(devices: List[int], folder: Path, shared: bool = False) -> Iterator[List[Any]]:
    """One lock a card, so that two runs never share one (but for those that both want to); the supervisor inherits
    them.

    Raises:
        Refused: a card is in use by another run (named).
    """
    with contextlib.ExitStack() as stack:
        held = []
        for device in devices:
            path = DEVICE_LOCKS / f"qwenlib-device-{device}.lock"
            handle = os.open(str(path), os.O_RDWR | os.O_CREAT, 0o666)
            stream = stack.enter_context(os.fdopen(handle, "r+"))
            if not _try_lock(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                who = stream.read().strip() or "unknown"
                raise Refused(f"device {device} is in use by the run in {who}. Stop that one, or choose other devices.")
            stream.truncate(0)
            stream.write(f"{folder}\n")
            stream.flush()
            held.append(stream)
        yield held


def _try_lock(stream: Any, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems know no locks; the look at launch.json must do there.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def refuse_leftovers(folder: Path) -> None:
    """Raises:
    Refused: a supervisor on another host, or processes of an earlier run, are still there.
    """
    status = read_status(folder)
    if status is None:
        return
    if not here(status):
        if status["state"] not in FINAL and _supervised(folder, status):
            raise Refused(f"a run is going on in {folder}, started on another host or container. Stop it there first.")
        return
    if status["state"] not in FINAL and processes.find(status.get("supervisor")):
        raise Refused(
            f"a run is going on in {folder}. Wait for its end, or end it with: qwenlib stop {shlex.quote(str(folder))}"
        )
    entries: List[Dict[str, Any]] = [*status["ranks"], *filter(None, [status.get("scheduler")])]
    alive = {int(entry["pid"]) for entry in entries if processes.find(entry)}
    if "id" in status:
        alive |= {process.pid for process in processes.marked(status["id"])}
    if alive:
        pids = " ".join(map(str, sorted(alive)))
        raise Refused(
            f"processes of an earlier run in {folder} are still there (pids {pids.replace(' ', ', ')}). "
            f"End them with: qwenlib stop {shlex.quote(str(folder))}"
        )


def move_aside(folder: Path) -> None:
    """Keep what an earlier launch left in ``earlier/N``."""
    old = sorted({path for pattern in OURS for path in folder.glob(pattern)})
    if not old:
        return
    number = 1 + max([int(path.name) for path in (folder / EARLIER).glob("*") if path.name.isdigit()], default=0)
    target = folder / EARLIER / str(number)
    target.mkdir(parents=True)
    for path in old:
        path.rename(target / path.name)
