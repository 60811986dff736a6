"""Starting a launch, attaching to it, waiting for it and stopping it, from a cell, a terminal or papermill."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Optional, Union

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import make_folder, write_json
from qwenlib.launch import failure, processes, rundir
from qwenlib.launch import plan as plans
from qwenlib.launch.plan import SPEC_FILE, Plan
from qwenlib.launch.rundir import FINAL, read_status
from qwenlib.progress import tell

START_SECONDS = 60.0
"""How long the supervisor may take to start all processes."""
WORKBOOK_MARK = "QWENLIB_WORKBOOK"
"""Set by the workbook runner for all that belongs to a run; nothing of it may outlive its stage."""


def start(plan: Plan, detach: bool = False) -> Run:
    """Start all ranks of ``plan`` and return at once.

    Tied (the default), they live no longer than this process and this ``Run``. Detached, they outlive the kernel,
    the browser and the login; see :func:`attach`. Within a workbook run (papermill) everything is tied.

    What an earlier launch left in ``run_dir`` (logs, metrics, rank folders) is moved to ``run_dir/earlier/N``,
    never overwritten.

    Raises:
        Refused: the plan cannot work, its port or a device is in use, a run is still going on in ``run_dir``, or
            this node was given another rank table or profile than node 0.
        WorkFailed: the processes could not be started.
    """
    plans.check(plan)
    plan = plans.with_port(plan)
    folder = plan.folder
    if detach and os.environ.get(WORKBOOK_MARK):
        tell("a workbook run ends what its stages start: the ranks are tied, not detached")
        detach = False
    make_folder(folder)
    devices = [] if plan.device_target == "CPU" else plan.device_ids or list(range(plan.ranks))
    with rundir.lock(folder) as lock, rundir.device_locks(devices, folder, plan.share_devices) as cards:
        rundir.refuse_leftovers(folder)
        rundir.move_aside(folder)
        spec = _spec(plan, tied=not detach)
        write_json(folder / SPEC_FILE, spec)
        with open(folder / rundir.SUPERVISOR_LOG, "ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "qwenlib.launch.supervisor", str(folder / SPEC_FILE)],
                cwd=str(folder),
                env={**os.environ, **plans.python_path()},
                stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The locks are the supervisor's now: they end with it, whatever happens.
                pass_fds=[held.fileno() for held in (lock, *cards)],
            )
    run = Run(folder, spec["id"], plan.grace, supervisor, detached=detach)
    try:
        run._until_started()
    except BaseException:
        run.stop()
        raise
    return run


def attach(run_dir: Union[str, Path]) -> Run:
    """The launch in ``run_dir``, from any process of its host: to go on watching it, or to stop it.

    Raises:
        Refused: nothing was launched there.
    """
    folder = rundir.find_launch(run_dir)
    status = rundir.current(folder)
    spec = plans.read_spec(folder)
    return Run(folder, status["id"], float(spec.get("grace", Plan.grace)), None, detached=True)


def _spec(plan: Plan, tied: bool) -> Dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "tied": tied,
        "job": plan.job,
        "client": processes.identity(os.getpid()),
        "grace": plan.grace,
        "rendezvous": plan.rendezvous,
        "world_size": plan.world,
        "port": plan.port,
        "nodes": {
            "node": plan.node,
            "nodes": plan.nodes,
            "host": plan.sched_host,
            "port": plan.node_port,
            "timeout": plan.node_timeout,
            "prints": plan.prints,
            "sched_port": plan.port,
        },
        "watchdog": {
            "ready_timeout": plan.ready_timeout,
            "hang_factor": plan.hang_factor,
            "hang_floor": plan.hang_floor,
        },
        "end_on_hang": plan.end_on_hang,
        "max_restarts": plan.max_restarts,
        "processes": plans.processes(plan),
    }


class Unwatched(KeyboardInterrupt):
    """The interrupt key, of one who watched a detached run: no stack of wherever it struck."""

    def _render_traceback_(self) -> List[str]:
        return ["The interrupt key ended the watching, not the training."]


class Run:
    """A launch under way, as its client sees it. As a context manager, it ends a tied launch on the way out."""

    def __init__(
        self, run_dir: Path, launch_id: str, grace: float, supervisor: Optional[subprocess.Popen], detached: bool
    ):
        self.run_dir, self.id, self.grace = run_dir, launch_id, grace
        self.detached = detached
        """It goes on when this process ends or stops watching; True also for one that was attached to."""
        self._supervisor = supervisor

    def rank_log(self, rank: int) -> Path:
        """Where stdout and stderr of a rank go."""
        return self.run_dir / f"rank_{rank}" / failure.LOG_FILE

    def poll(self) -> Dict[str, Any]:
        """What ``launch.json`` says now: ``state`` is waiting (for other nodes), starting, running, done, failed or
        stopped; ``ranks`` has ``{name, rank, pid, create_time, state, exit_code, signal, started, finished, log}``
        each, and ``ready``, ``step``, ``total`` where the rank tells; ``hanging``; ``root_cause``.

        A supervisor that was killed is told as ``failed``.
        """
        ended = self._supervisor.poll() if self._supervisor else None  # asked before reading: its last words are there
        status = read_status(self.run_dir)
        if status is not None and status.get("id") == self.id:
            status = rundir.current(self.run_dir)
        elif self._supervisor is None:
            raise Refused(f"{self.run_dir} holds another run by now; attach to it anew.")
        else:
            status = {"id": self.id, "state": "starting", "ranks": [], "scheduler": None, "root_cause": None}
        if ended is None and self._supervisor and status.get("supervisor_lost"):  # it ended since it was asked
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = self._supervisor.wait(processes.KILL_SECONDS)
        if ended is not None and (status["state"] not in FINAL or status.get("supervisor_lost")):
            how = failure.signal_name(-ended) if ended < 0 else f"exit code {ended}"
            rundir.lost(self.run_dir, status, f"the supervisor of the ranks ended ({how})")
        return status

    def wait(
        self,
        on_tick: Optional[Callable[[Dict[str, Any]], object]] = None,
        interval: float = 0.5,
        timeout: Optional[float] = None,
    ) -> Dict[str, Any]:
        """Wait for the end; ``on_tick(status)`` is called every ``interval`` seconds and once at the end.

        Whatever comes in between (the interrupt key, an error in ``on_tick``) ends tied ranks before it goes on;
        detached ranks go on, and the interrupt key says how to stop them. Returns the last status.

        Raises:
            WorkFailed: a rank failed (which one, what, the last lines of its log), the run was stopped, or it
                took longer than ``timeout`` seconds (tied ranks are then ended, detached ones go on).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            status = self._wait(on_tick, interval, deadline)
        except KeyboardInterrupt:
            if not self.detached:
                raise
            tell(self.farewell())
            raise Unwatched from None
        finally:
            if not self.detached:
                self.stop()
        if status is None and self.detached:
            raise WorkFailed(f"not finished after {timeout:g} s. {self.farewell()}")
        if status is None:
            raise WorkFailed(f"the ranks were ended: not finished after {timeout:g} s. Logs: {self.run_dir}")
        if status["state"] != "done":
            raise WorkFailed(failure.paragraph(status))
        return status

    def _wait(
        self, on_tick: Optional[Callable[[Dict[str, Any]], object]], interval: float, deadline: Optional[float]
    ) -> Optional[Dict[str, Any]]:
        told = ""
        while True:
            status = self.poll()
            told = _tell_hang(status, told)
            if on_tick is not None:
                on_tick(status)
            if status["state"] in FINAL:
                return status
            left = interval if deadline is None else min(interval, deadline - time.monotonic())
            if left <= 0:
                return None
            self._sleep(left)

    def _sleep(self, seconds: float) -> None:
        """Popen.wait wakes at the supervisor's end: the end of a run is seen without delay."""
        if self._supervisor is None:
            time.sleep(seconds)
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(seconds)

    def farewell(self) -> str:
        """What goes on, and how to come back to it or stop it."""
        where = shlex.quote(str(self.run_dir))
        return (
            f"The training goes on in {self.run_dir}. Watch: qwenlib status {where} --follow, or in a notebook "
            f"qwenlib.monitor.attach({str(self.run_dir)!r}). Stop it: qwenlib stop {where}"
        )

    def stop(self) -> Dict[str, Any]:
        """End all ranks and what they started (SIGTERM, the plan's grace, SIGKILL); harmless when all has ended.

        An interrupt meanwhile is passed on when all has ended; a second one at once.

        Raises:
            Refused: it runs on another host.
        """
        try:
            return self._stop()
        except (KeyboardInterrupt, SystemExit):
            self._stop()
            raise

    def _stop(self) -> Dict[str, Any]:
        ours = self._supervisor is not None and not self.detached
        if ours:
            with contextlib.suppress(OSError, ValueError):
                os.write(self._stdin().fileno(), b"stop\n")
        else:
            self._ask()
        patience = 2 * self.grace + processes.KILL_SECONDS + 5
        if not self._gone(patience):
            self._signal(signal.SIGKILL)
            self._gone(processes.KILL_SECONDS)
        if ours:
            with contextlib.suppress(OSError):
                self._stdin().close()
        status = self.poll()
        if status.get("supervisor_lost"):
            left = processes.end(lambda: processes.marked(self.id), self.grace)
            status.update(alive=left, left=left)
            rundir.settle(self.run_dir, status)
        return status

    def _ask(self) -> None:
        status = self.poll()
        if status["state"] in FINAL:
            return
        if not rundir.here(status):
            raise Refused(f"the run in {self.run_dir} is on another host or container; stop it there.")
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        if self._supervisor is not None:
            if self._supervisor.poll() is None:
                self._supervisor.send_signal(number)
            return
        status = read_status(self.run_dir)
        process = processes.find(status["supervisor"]) if status and status["id"] == self.id else None
        if process is not None:
            with contextlib.suppress(processes.psutil.Error):
                process.send_signal(number)

    def _gone(self, seconds: float) -> bool:
        """Wait for the supervisor's end."""
        if self._supervisor is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(seconds)
            return self._supervisor.poll() is not None
        deadline = time.monotonic() + seconds
        while True:
            status = read_status(self.run_dir)
            if status is None or status["id"] != self.id or not processes.find(status["supervisor"]):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.detached:
            self.stop()

    def _stdin(self) -> IO[bytes]:
        assert self._supervisor is not None and self._supervisor.stdin is not None
        return self._supervisor.stdin

    def _until_started(self) -> None:
        """Until all processes run; other nodes are waited for as long as the plan says (by the supervisor)."""
        deadline, told = time.monotonic() + START_SECONDS, False
        while True:
            status = self.poll()
            if status["state"] == "waiting":
                deadline = time.monotonic() + START_SECONDS
                if not told:
                    tell("waiting for the other nodes: start the same command there")
                    told = True
            elif status["state"] != "starting":
                break
            if time.monotonic() > deadline:
                raise WorkFailed(f"the ranks did not start within {START_SECONDS:.0f} s; see {self.run_dir}")
            time.sleep(0.02)
        cause = status.get("root_cause")
        if cause and cause["reason"] == "refused":
            raise Refused(str(cause["message"]))


def _tell_hang(status: Dict[str, Any], told: str) -> str:
    """Say once that a rank hangs, and that it goes on; returns the rank that hangs now."""
    hanging = status.get("hanging")
    first = str(hanging["ranks"][0]) if hanging else ""
    if hanging and first != told:
        print(f"{first} {failure.hang_text(hanging)}", file=sys.stderr, flush=True)
    elif told and not first and status["state"] == "running":
        step = next((entry.get("step") for entry in status["ranks"] if entry["name"] == told), None)
        print(f"{told} goes on: step {step}", file=sys.stderr, flush=True)
    return first


def launches(run_dir: Path) -> List[Path]:
    """The launch folders of a run: its own, and those of further nodes that share the disk."""
    return [run_dir, *sorted(path for path in run_dir.glob("node_*") if read_status(path) is not None)]
