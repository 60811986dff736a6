"""The small process that owns the ranks: ``python -m qwenlib.launch.supervisor RUN/spec.json``.

It starts every process of the spec in a session of its own, with stdout and stderr in a file, watches them, and
ends all of them when one fails, when the client asks for it (the line ``stop`` on stdin) or is gone (end of
file, which a SIGKILLed client sends, too), or on SIGTERM, SIGINT, SIGHUP, SIGQUIT. ``RUN/launch.json`` tells the
state at any instant. Exit code 0 only when every rank ended with 0.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from qwenlib.errors import WorkFailed
from qwenlib.files import read_json, write_json
from qwenlib.launch import failure, processes
from qwenlib.launch.plan import STATE_FILE

TICK_SECONDS = 1.0


class Supervisor:
    """Owns the processes of one launch from their start to the end of the last one."""

    def __init__(self, spec: Dict[str, Any], run_dir: Path):
        self.spec, self.run_dir = spec, run_dir
        self.children: Dict[int, Dict[str, Any]] = {}  # pid -> entry, until reaped
        self.stop_reason = ""
        self.ending = False
        self.stdin_open = True
        self.oom_before = processes.oom_kills()
        self.state: Dict[str, Any] = {
            "id": spec["id"],
            "state": "starting",
            "rendezvous": spec["rendezvous"],
            "world_size": spec["world_size"],
            "port": spec["port"],
            "supervisor": processes.identity(os.getpid()),
            "started": time.time(),
            "finished": None,
            "ranks": [],
            "scheduler": None,
            "root_cause": None,
        }

    def run(self) -> int:
        """Start, watch, end; returns the exit code."""
        wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._on_signal)
        processes.adopt_orphans()
        self._save()
        try:
            for process in self.spec["processes"]:
                self._start(process)
            self.state["state"] = "running"
            self._save()
        except OSError as error:
            self.state["root_cause"] = _cause(f"a rank could not be started: {error}")
        while not (self.state["root_cause"] or self.stop_reason or self._failed() or self._all_done()):
            self._wait(wake)
            self._reap()
        self._finish()
        return 0 if self.state["state"] == "done" else 1

    def _start(self, process: Dict[str, Any]) -> None:
        folder = self.run_dir / process["name"]
        folder.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        for name, text in process["env"].items():
            if text is None:
                environment.pop(name, None)
            else:
                environment[name] = text
        environment[processes.MARK] = self.spec["id"]
        with open(folder / failure.LOG_FILE, "ab") as log:
            child = subprocess.Popen(
                process["command"],
                cwd=str(folder),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=processes.die_with_parent if self.spec["tied"] else None,
            )
        entry = {
            "name": process["name"],
            "rank": process["rank"],
            **processes.identity(child.pid),
            "state": "running",
            "exit_code": None,
            "signal": None,
            "ended_by_us": False,
            "started": time.time(),
            "finished": None,
            "log": str(folder / failure.LOG_FILE),
        }
        self.children[child.pid] = entry
        child.returncode = 0  # we reap by waitpid(-1) and subprocess must not
        if process["rank"] is None:
            self.state["scheduler"] = entry
        else:
            self.state["ranks"].append(entry)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self.stop_reason = self.stop_reason or f"the supervisor got {failure.signal_name(number)}"

    def _wait(self, wake: int) -> None:
        """Sleep until a child ended, a signal came, the client said something, or a second has passed."""
        sources = [wake] + ([0] if self.spec["tied"] and self.stdin_open else [])
        ready, _, _ = select.select(sources, [], [], TICK_SECONDS)
        if wake in ready:
            os.read(wake, 4096)
        if 0 in ready:
            said = os.read(0, 4096)
            if b"stop" in said:
                self.stop_reason = "it was stopped"
            elif not said:
                self.stdin_open = False
                self.stop_reason = "the program that started it has ended"
        elif self.spec["tied"] and not processes.find(self.spec["client"]):
            # A forked child of the client may still hold the other end of our stdin.
            self.stop_reason = "the program that started it has ended"

    def _reap(self) -> None:
        """Take note of every child that ended (adopted orphans are only waited for)."""
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            entry = self.children.pop(pid, None)
            if entry is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            entry["exit_code"] = code if code >= 0 else None
            entry["signal"] = failure.signal_name(-code) if code < 0 else None
            entry["ended_by_us"] = self.ending and code != 0
            entry["finished"] = time.time()
            entry["state"] = "done" if code == 0 else "stopped" if self.ending else "failed"
            changed = True
        if changed:
            self._save()

    def _failed(self) -> bool:
        return any(entry["state"] == "failed" for entry in self._entries())

    def _all_done(self) -> bool:
        return all(entry["state"] == "done" for entry in self.state["ranks"])

    def _entries(self) -> List[Dict[str, Any]]:
        return self.state["ranks"] + ([self.state["scheduler"]] if self.state["scheduler"] else [])

    def _finish(self) -> None:
        """End what still runs, tell the cause, write the last state."""
        me, grace = os.getpid(), float(self.spec["grace"])
        failed = bool(self.state["root_cause"]) or self._failed()
        stopped = "" if failed else self.stop_reason
        done = self._all_done() and not (failed or stopped)
        if done and self.state["scheduler"]:  # it leaves by itself once its workers have
            deadline = time.monotonic() + grace
            while self.state["scheduler"]["state"] == "running" and time.monotonic() < deadline:
                time.sleep(0.02)
                self._reap()
        self.ending = True
        # A child that is not yet reaped keeps its pid, so its process group is surely ours.
        left = processes.end(lambda: processes.below(me), grace, lambda: list(self.children), self._reap)
        self._reap()
        oom = processes.oom_kills() > self.oom_before
        if stopped:
            self.state["root_cause"] = _cause(f"the run was ended: {stopped}.")
        elif failed and not self.state["root_cause"]:
            self.state["root_cause"] = failure.root_cause(self.run_dir, self._entries(), oom)
        self.state["state"] = "done" if done else "stopped" if stopped else "failed"
        self.state["left"] = left
        self.state["finished"] = time.time()
        self._save()

    def _save(self) -> None:
        try:
            write_json(self.run_dir / STATE_FILE, self.state)
        except (OSError, WorkFailed) as error:  # a full disk must not keep us from ending the ranks
            with contextlib.suppress(OSError):
                print(f"{STATE_FILE} could not be written: {error}", file=sys.stderr, flush=True)


def _cause(message: str) -> Dict[str, Any]:
    return {"rank": None, "reason": "launcher", "message": message, "time": time.time(), "log": None}


def main(arguments: Optional[List[str]] = None) -> int:
    """Entry point: one argument, the spec that :func:`qwenlib.launch.start` wrote."""
    names = sys.argv[1:] if arguments is None else arguments
    if len(names) != 1:
        print("usage: python -m qwenlib.launch.supervisor RUN/spec.json (started by qwenlib.launch)", file=sys.stderr)
        return 2
    path = Path(names[0]).absolute()
    try:
        return Supervisor(read_json(path), path.parent).run()
    except BaseException:
        processes.end(lambda: processes.below(os.getpid()), 0)
        raise


if __name__ == "__main__":
    sys.exit(main())
