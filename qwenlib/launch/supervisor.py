"""The small process that owns the ranks: ``python -m qwenlib.launch.supervisor RUN/spec.json``.

It starts every process of the spec in a session of its own, with stdout and stderr in a file, watches them, and
ends all of them when one fails, when it is asked to (SIGUSR1, or the line ``stop`` on stdin), or on SIGTERM,
SIGINT, SIGHUP, SIGQUIT; a tied launch also when its client is gone (end of file on stdin, which a SIGKILLed client
sends, too). ``RUN/launch.json`` tells the state at any instant. Exit code 0 only when every rank ended with 0.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from qwenlib.errors import QwenlibError, WorkFailed
from qwenlib.files import read_json, write_json
from qwenlib.launch import failure, heartbeat, processes
from qwenlib.launch.nodes import Nodes
from qwenlib.launch.plan import STATE_FILE, free_port
from qwenlib.launch.rundir import RESERVE_FILE

TICK_SECONDS = 1.0
FULL_BYTES = 2**20
RESERVE_BYTES = 65536
"""Kept free for the last state."""
STOPPED = "it was stopped"


class Supervisor:
    """Owns the processes of one launch from their start to the end of the last one."""

    def __init__(self, spec: Dict[str, Any], run_dir: Path):
        self.spec, self.run_dir = spec, run_dir
        self.children: Dict[int, Dict[str, Any]] = {}  # pid -> entry, until reaped
        self.stop_reason = ""
        self.ending = False
        self.stdin_open = True
        self.oom_before = processes.oom_kills()
        self.nodes: Optional[Nodes] = None
        self.port = int(spec["port"])
        self.restarts = 0
        self.before = ""
        self.dog: Optional[heartbeat.Watchdog] = None
        self.state: Dict[str, Any] = {
            "id": spec["id"],
            "state": "starting",
            "tied": spec["tied"],
            "node": spec["nodes"]["node"],
            "nodes": spec["nodes"]["nodes"],
            "place": processes.place(),
            "rendezvous": spec["rendezvous"],
            "world_size": spec["world_size"],
            "port": spec["port"],
            "supervisor": processes.identity(os.getpid()),
            "started": time.time(),
            "finished": None,
            "ranks": [],
            "scheduler": None,
            "root_cause": None,
            "hanging": None,
            "restarts": [],
        }

    def run(self) -> int:
        """Start, watch, end; returns the exit code."""
        wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        processes.adopt_orphans()
        self._save()
        with contextlib.suppress(OSError):
            (self.run_dir / RESERVE_FILE).write_bytes(b"\0" * RESERVE_BYTES)
        try:
            self.nodes = Nodes(self.spec["nodes"])
            self._meet(wake, self.nodes)
            while not self._over():
                self._start_all()
                self._watch(wake)
                if not self._again():
                    break
        except (OSError, QwenlibError) as error:
            self.state["root_cause"] = _cause(f"a rank could not be started: {error}")
        self._finish()
        return 0 if self.state["state"] == "done" else 1

    def _meet(self, wake: int, nodes: Nodes) -> None:
        """Wait for the other nodes, when there are any."""
        if nodes.complete:
            return
        self.state["state"] = "waiting"
        self._save()
        while not (nodes.complete or self._over()):
            self._wait(wake)
        self.port = nodes.sched_port

    def _start_all(self) -> None:
        if self.restarts and self.port:
            self.port = free_port("", 0)  # the old one may still be in TIME_WAIT
        self.state["port"] = self.port
        for process in self.spec["processes"]:
            self._start(process)
        folders = {entry["name"]: self.run_dir / entry["name"] for entry in self.state["ranks"]}
        self.dog = heartbeat.Watchdog(folders, **self.spec["watchdog"])
        self.state["state"] = "running"
        self._save()

    def _watch(self, wake: int) -> None:
        while not self._over():
            if self._all_done() and self.nodes is not None:
                self.nodes.local_done()
                if self.nodes.all_done:
                    break
            self._wait(wake)
            self._reap()
            if not self._all_done():
                self._look()

    def _over(self) -> bool:
        return bool(self.state["root_cause"] or self.stop_reason or self._failed())

    def _look(self) -> None:
        """A rank that is late, or hangs."""
        if self.dog is None:
            return
        self.dog.look()
        late, hanging = self.dog.late(), self._hanging()
        if late:
            log = self.run_dir / late[0] / failure.LOG_FILE
            others = f" Neither has {', '.join(late[1:])}." if late[1:] else ""
            text = f"has not joined the others within {self.spec['watchdog']['ready_timeout']:g} s.{others}"
            cause = {"rank": late[0], "reason": "not ready", "message": text, "time": time.time(), "log": str(log)}
            self.state["root_cause"] = {**cause, "last_lines": failure.last_lines(log)}
        elif hanging and self.spec["end_on_hang"]:
            log = self.run_dir / hanging["ranks"][0] / failure.LOG_FILE
            cause = {"rank": hanging["ranks"][0], "reason": "hang", "message": failure.hang_text(hanging)}
            cause.update(time=time.time(), log=str(log), last_lines=failure.last_lines(log))
            self.state["root_cause"] = cause
        elif _who(hanging) != _who(self.state["hanging"]):
            self.state["hanging"] = hanging and {**hanging, "since": time.time() - hanging["seconds"]}
            self._save()

    def _hanging(self) -> Optional[Dict[str, Any]]:
        """What the watchdog says; a rank that was stopped by a signal is the one for which the others wait."""
        found = self.dog.hanging() if self.dog else None
        if found is None:
            return None
        stopped = {entry["name"]: entry["pid"] for entry in self.state["ranks"] if processes.is_stopped(entry)}
        ranks = [*stopped, *(name for name in found["ranks"] if name not in stopped)]
        return {**found, "ranks": ranks, "stopped": stopped}

    def _again(self) -> bool:
        """After a failure: end what is left and prepare another start, when there is one left to try."""
        cause_is_ours = bool(self.state["root_cause"]) and self.state["root_cause"]["rank"] is None
        if self.stop_reason or cause_is_ours or self.restarts >= self.spec["max_restarts"]:
            return False
        if not (self.state["root_cause"] or self._failed()):
            return False
        self._end()
        self._blame()
        if self.stop_reason:
            return False
        self.restarts += 1
        self.state["restarts"].append(self.state["root_cause"])
        for entry in self._entries():
            folder = self.run_dir / entry["name"]
            for name in (failure.ERROR_FILE, heartbeat.BEAT_FILE):
                with contextlib.suppress(FileNotFoundError):
                    (folder / name).rename(folder / f"{Path(name).stem}.{self.restarts}.json")
            with open(folder / failure.LOG_FILE, "ab") as log:
                log.write(f"\n--- restart {self.restarts} of {self.spec['max_restarts']} ---\n".encode())
        self.state.update(root_cause=None, ranks=[], scheduler=None, hanging=None)
        self.children.clear()
        self.ending = False
        self.oom_before = processes.oom_kills()
        return True

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
        if process["env"].get("MS_SCHED_PORT") is not None:
            environment["MS_SCHED_PORT"] = str(self.port)
        if self.restarts:
            environment["QWENLIB_RESTART"] = str(self.restarts)
        with open(folder / failure.LOG_FILE, "ab") as log:
            child = subprocess.Popen(
                process["command"],
                cwd=str(folder),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
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
        asked = STOPPED if number == signal.SIGUSR1 else f"the supervisor got {failure.signal_name(number)}"
        self.stop_reason = self.stop_reason or asked

    def _wait(self, wake: int) -> None:
        """Sleep until a child ended, a signal came, the client or a node said something, or a second has passed."""
        sources: List[Any] = [wake] + ([0] if self.spec["tied"] and self.stdin_open else [])
        sources += self.nodes.sources() if self.nodes else []
        ready, _, _ = select.select(sources, [], [], TICK_SECONDS)
        with contextlib.suppress(OSError):  # the sign of life for those who cannot see our process
            os.utime(self.run_dir / STATE_FILE)
        if self.nodes:
            self._hear(self.nodes, ready)
        if wake in ready:
            os.read(wake, 4096)
        if 0 in ready:
            said = os.read(0, 4096)
            if b"stop" in said:
                self.stop_reason = STOPPED
            elif not said:
                self.stdin_open = False
                self.stop_reason = "the program that started it has ended"
        elif self.spec["tied"] and not processes.find(self.spec["client"]):
            # A forked child of the client may still hold the other end of our stdin.
            self.stop_reason = "the program that started it has ended"

    def _hear(self, nodes: Nodes, ready: List[Any]) -> None:
        nodes.step(ready)
        if nodes.failure is None:
            return
        if nodes.failure["reason"] == "stopped":
            self.stop_reason = self.stop_reason or nodes.failure["message"]
        elif not self.state["root_cause"] and not self._failed():
            self.state["root_cause"] = {**_cause(nodes.failure["message"]), "reason": nodes.failure["reason"]}

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

    def _end(self) -> List[int]:
        """End what still runs; returns the pids that would not go."""
        me, grace = os.getpid(), float(self.spec["grace"])
        if not self.ending:  # afterwards nobody can see it any more
            self.before = self._before()
        self._reap()
        self.ending = True
        # A child that is not yet reaped keeps its pid, so its process group is surely ours.
        left = processes.end(lambda: processes.below(me), grace, lambda: list(self.children), self._reap)
        deadline = time.monotonic() + processes.KILL_SECONDS  # the kernel may still be at the last of its threads
        while self.children and time.monotonic() < deadline:
            time.sleep(0.02)
            self._reap()
        return sorted({*left, *self.children})

    def _blame(self) -> None:
        oom = processes.oom_kills() > self.oom_before
        if not self.state["root_cause"]:
            self.state["root_cause"] = failure.root_cause(self.run_dir, self._entries(), oom)
        cause = self.state["root_cause"]
        if cause and cause["rank"] and cause["reason"] not in ("hang", "not ready") and self.before:
            cause["before"] = self.before

    def _before(self) -> str:
        """What a rank could not say itself: one stands still, for which the others waited; or the disk is full."""
        still = [entry["name"] for entry in self.state["ranks"] if processes.is_stopped(entry)]
        if still:
            return f"{', '.join(still)} had been stopped by a signal (SIGSTOP): the others waited in vain"
        if not self._failed():
            return ""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.run_dir).free < FULL_BYTES:
                return f"the disk below {self.run_dir} had become full"
        hanging = self.dog.hanging() if self.dog else None
        return f"{hanging['ranks'][0]} {failure.hang_text(hanging)}" if hanging else ""

    def _finish(self) -> None:
        """End what still runs, tell the cause, write the last state."""
        failed = bool(self.state["root_cause"]) or self._failed()
        stopped = "" if failed else self.stop_reason
        done = bool(self.state["ranks"]) and self._all_done() and not (failed or stopped)
        if done and self.state["scheduler"]:  # it leaves by itself once its workers have
            deadline = time.monotonic() + float(self.spec["grace"])
            while self.state["scheduler"]["state"] == "running" and time.monotonic() < deadline:
                time.sleep(0.02)
                self._reap()
        left = self._end()
        if stopped:
            self.state["root_cause"] = _cause(f"the run was ended: {stopped}.")
        elif failed:
            self._blame()
        self.state["state"] = "done" if done else "stopped" if stopped else "failed"
        self.state.update(left=left, hanging=None, finished=time.time())
        self._save_end()
        if self.nodes:
            self.nodes.close(self.state["state"], "" if done else failure.paragraph(self.state).splitlines()[0])

    def _save(self) -> None:
        try:
            write_json(self.run_dir / STATE_FILE, self.state)
        except (OSError, WorkFailed) as error:  # a full disk must not keep us from ending the ranks
            with contextlib.suppress(OSError):
                print(f"{STATE_FILE} could not be written: {error}", file=sys.stderr, flush=True)

    def _save_end(self) -> None:
        """The last state finds room on a disk that the ranks have filled: in what was kept free for it."""
        with contextlib.suppress(OSError):
            (self.run_dir / RESERVE_FILE).unlink()
        self._save()


def _who(hanging: Optional[Dict[str, Any]]) -> Any:
    return hanging and (hanging["ranks"], hanging["stopped"])


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
