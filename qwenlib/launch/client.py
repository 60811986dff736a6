"""Starting a launch, waiting for it and stopping it, from a notebook cell, a terminal or papermill."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Optional

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import write_json
from qwenlib.launch import failure, processes
from qwenlib.launch import plan as plans
from qwenlib.launch.plan import SPEC_FILE, STATE_FILE, Plan

LOCK_FILE, SUPERVISOR_LOG, EARLIER = "launch.lock", "supervisor.log", "earlier"
FINAL = ("done", "failed", "stopped")
START_SECONDS = 60.0
"""How long the supervisor may take to start all processes."""
OURS = (STATE_FILE, SPEC_FILE, SUPERVISOR_LOG, plans.SCHEDULER, "rank_*", "metrics.jsonl", "loss.png")


def start(plan: Plan) -> Run:
    """Start all ranks of ``plan`` and return at once; they live no longer than this process and this ``Run``.

    What an earlier launch left in ``run_dir`` (logs, metrics, rank folders) is moved to ``run_dir/earlier/N``,
    never overwritten.

    Raises:
        Refused: the plan cannot work, its port is in use, or a run is still going on in ``run_dir``.
        WorkFailed: the processes could not be started.
    """
    plans.check(plan)
    plan = plans.with_port(plan)
    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder) as lock:
        _refuse_leftovers(folder)
        _move_aside(folder)
        spec: Dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "tied": True,
            "client": processes.identity(os.getpid()),
            "grace": plan.grace,
            "rendezvous": plan.rendezvous,
            "world_size": plan.world,
            "port": plan.port,
            "processes": plans.processes(plan),
        }
        write_json(folder / SPEC_FILE, spec)
        with open(folder / SUPERVISOR_LOG, "ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "qwenlib.launch.supervisor", str(folder / SPEC_FILE)],
                cwd=str(folder),
                env={**os.environ, **plans.python_path()},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],  # the lock is the supervisor's now: it ends with it, whatever happens
            )
    run = Run(folder, spec["id"], supervisor, plan.grace)
    try:
        run._until_started()
    except BaseException:
        run.stop()
        raise
    return run


class Run:
    """A launch under way, as its client sees it."""

    def __init__(self, run_dir: Path, launch_id: str, supervisor: subprocess.Popen, grace: float):
        self.run_dir, self.id, self.grace = run_dir, launch_id, grace
        self._supervisor = supervisor

    def rank_log(self, rank: int) -> Path:
        """Where stdout and stderr of a rank go."""
        return self.run_dir / f"rank_{rank}" / failure.LOG_FILE

    def poll(self) -> Dict[str, Any]:
        """What ``launch.json`` says now: ``state`` is starting, running, done, failed or stopped; ``ranks`` has
        ``{name, rank, pid, create_time, state, exit_code, signal, started, finished, log}`` each; ``root_cause``.

        A supervisor that was killed is told as ``failed``.
        """
        ended = self._supervisor.poll()  # asked before reading: what it wrote last is then there
        status = read_status(self.run_dir)
        if status is None or status.get("id") != self.id:
            status = {"id": self.id, "state": "starting", "ranks": [], "scheduler": None, "root_cause": None}
        if ended is not None and status["state"] not in FINAL:
            how = failure.signal_name(-ended) if ended < 0 else f"exit code {ended}"
            lines = failure.last_lines(self.run_dir / SUPERVISOR_LOG)
            message = f"the supervisor of the ranks ended ({how}) before they did; they are ended, too."
            message += " It said:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""
            cause = {"rank": None, "reason": "launcher", "message": message, "time": time.time(), "log": None}
            status.update(state="failed", root_cause=cause, supervisor_lost=True)
        return status

    def wait(
        self,
        on_tick: Optional[Callable[[Dict[str, Any]], object]] = None,
        interval: float = 0.5,
        timeout: Optional[float] = None,
    ) -> Dict[str, Any]:
        """Wait for the end; ``on_tick(status)`` is called every ``interval`` seconds and once at the end.

        Whatever comes in between (the interrupt key, an error in ``on_tick``) ends the ranks before it goes on.
        Returns the last status.

        Raises:
            WorkFailed: a rank failed (which one, what, the last lines of its log), the run was stopped, or it
                took longer than ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                status = self.poll()
                if on_tick is not None:
                    on_tick(status)
                if status["state"] in FINAL:
                    break
                left = interval if deadline is None else min(interval, deadline - time.monotonic())
                if left <= 0:
                    self.stop()
                    raise WorkFailed(f"the ranks were ended: not finished after {timeout:g} s. Logs: {self.run_dir}")
                # Popen.wait wakes at the supervisor's end: the end of a run is seen without delay.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._supervisor.wait(left)
        finally:
            self.stop()
        if status["state"] != "done":
            raise WorkFailed(failure.paragraph(status))
        return status

    def stop(self) -> Dict[str, Any]:
        """End all ranks and what they started (SIGTERM, the plan's grace, SIGKILL); harmless when all has ended."""
        if self._supervisor.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                os.write(self._stdin().fileno(), b"stop\n")
            patience = 2 * self.grace + processes.KILL_SECONDS + 5
            try:
                self._supervisor.wait(patience)
            except subprocess.TimeoutExpired:
                self._supervisor.send_signal(signal.SIGKILL)
                self._supervisor.wait()
        with contextlib.suppress(OSError):
            self._stdin().close()
        status = self.poll()
        if status.get("supervisor_lost"):
            processes.end(lambda: processes.marked(self.id), self.grace)
        return status

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _stdin(self) -> IO[bytes]:
        assert self._supervisor.stdin is not None
        return self._supervisor.stdin

    def _until_started(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.poll()["state"] == "starting":
            if time.monotonic() > deadline:
                raise WorkFailed(f"the ranks did not start within {START_SECONDS:.0f} s; see {self.run_dir}")
            time.sleep(0.02)


def read_status(run_dir: Path) -> Optional[Dict[str, Any]]:
    """``run_dir/launch.json`` (replaced atomically, so readable at any instant); None when there is none."""
    try:
        status = json.loads((run_dir / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) and "ranks" in status else None


@contextlib.contextmanager
def _lock(folder: Path) -> Any:
    """Hold ``launch.lock``; the kernel gives it back when its last holder, the supervisor, has ended."""
    with open(folder / LOCK_FILE, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Refused(
                    f"a run is going on in {folder} (see {STATE_FILE} there). Wait for its end, stop it, or choose "
                    "another run directory."
                ) from None
            # Some network file systems know no locks; the look at launch.json must do there.
        yield lock


def _refuse_leftovers(folder: Path) -> None:
    status = read_status(folder)
    if status is None:
        return
    entries: List[Dict[str, Any]] = [*status["ranks"], *filter(None, [status.get("scheduler")])]
    alive = [str(entry["pid"]) for entry in entries if processes.find(entry)]
    if alive:
        raise Refused(
            f"processes of an earlier run in {folder} are still there (pids {', '.join(alive)}). End them with: "
            f"kill {' '.join(alive)}"
        )


def _move_aside(folder: Path) -> None:
    old = sorted({path for pattern in OURS for path in folder.glob(pattern)})
    if not old:
        return
    number = 1 + max([int(path.name) for path in (folder / EARLIER).glob("*") if path.name.isdigit()], default=0)
    target = folder / EARLIER / str(number)
    target.mkdir(parents=True)
    for path in old:
        path.rename(target / path.name)
