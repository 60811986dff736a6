"""Who may die: the client, the supervisor, a thread. In no case is a rank left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict

import pytest
from launch_tools import gone, running, sleepers, until

from qwenlib.errors import WorkFailed
from qwenlib.launch import processes, read_status, start

SECONDS = 30.0
"""Bound for everything to be gone: noticing (at most 1 s), the grace of 1 s, SIGKILL; the machine may be busy, and
stand still for seconds."""

CLIENT = """
import os, sys, time
from qwenlib.launch import Plan, start
stub, run_dir, fork = sys.argv[1:]
rank = [sys.executable, stub, "ignore+fork+sleep:60"]
run = start(Plan(rank, 2, run_dir, "dynamic_cluster", grace=1.0, scheduler_command=rank))
if fork == "fork" and os.fork() == 0:
    time.sleep(3)  # holds a copy of the pipe to the supervisor
    os._exit(0)
print("started", flush=True)
run.wait()
"""


@pytest.mark.parametrize(("number", "fork"), [(signal.SIGKILL, ""), (signal.SIGKILL, "fork"), (signal.SIGINT, "")])
def test_a_client_that_dies_leaves_nothing(tmp_path, tag, number, fork):
    stub = str(Path(__file__).with_name("stub_rank.py"))
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, stub, str(tmp_path / "run"), fork],
        env={**os.environ, "QWENLIB_TEST_TAG": tag, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert client.stdout.readline() == b"started\n"
        assert len(running(tag)) >= 5  # client, supervisor, scheduler, two ranks, and soon what they fork
        client.send_signal(number)
        gone(tag, SECONDS)
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    assert read_status(tmp_path / "run")["state"] == "stopped"


def test_a_supervisor_that_is_killed_is_told_and_leaves_nothing(stub, tag):
    with start(stub("fork+daemon+sleep:60", "ignore+fork+sleep:60")) as run:
        until(lambda: sleepers(tag) == 3)  # the children of both ranks, the daemon
        os.kill(run.poll()["supervisor"]["pid"], signal.SIGKILL)
        with pytest.raises(WorkFailed, match=r"the supervisor of the ranks ended \(SIGKILL\)"):
            run.wait(timeout=30)
        assert not running(tag)


def test_a_supervisor_that_is_killed_between_two_looks_is_told_the_same(stub, tag, monkeypatch):
    with start(stub("sleep:60")) as run:
        supervisor, poll = run.poll()["supervisor"], run._supervisor.poll

        def late() -> object:
            answer = poll()
            if answer is None:
                os.kill(supervisor["pid"], signal.SIGKILL)
                until(lambda: processes.find(supervisor) is None)
            return answer

        monkeypatch.setattr(run._supervisor, "poll", late)
        assert "the supervisor of the ranks ended (SIGKILL)" in run.poll()["root_cause"]["message"]
        run.stop()
        assert not running(tag)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_a_signal_to_the_supervisor_ends_all(stub, tag, name):
    with start(stub("sleep:60")) as run:
        begun = time.monotonic()
        os.kill(run.poll()["supervisor"]["pid"], getattr(signal, name))
        with pytest.raises(WorkFailed, match=f"the supervisor got {name}"):
            run.wait(timeout=30)
        assert time.monotonic() - begun < SECONDS and run.poll()["state"] == "stopped" and not running(tag)


def test_a_run_outlives_the_thread_that_started_it(stub):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(start(stub("sleep:1.2"))))
    thread.start()
    thread.join()
    with runs[0] as run:
        assert run.wait(timeout=30)["state"] == "done"


def handles(pid: int) -> Dict[str, str]:
    """What each open handle of a process points to; one that is closed while we look is none."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def test_the_ranks_get_no_handle_of_the_client_or_the_supervisor(stub):
    ours, theirs = os.pipe()  # a handle that the client hands on to every child, as a shell or a CI runner may
    os.set_inheritable(theirs, True)
    try:
        with start(stub("ready:up+sleep:60")) as run:
            until((run.run_dir / "rank_0" / "up").exists)
            pid = run.poll()["ranks"][0]["pid"]
            until(lambda: set(handles(pid)) == {"0", "1", "2"})  # it may still have "up" itself open
            found = handles(pid)
    finally:
        os.close(ours)
        os.close(theirs)
    assert found.pop("0") == "/dev/null"
    assert all(target.endswith("rank_0/rank.log") for target in found.values()), found


def test_a_state_that_cannot_be_written_does_not_keep_the_supervisor_from_ending_the_ranks(stub, tag, tmp_path):
    with start(stub("sleep:60", "sleep:60")) as run:
        run.run_dir.rename(tmp_path / "away")
        run.run_dir.write_text("a file where the folder was")
        assert run.stop()["state"] == "failed" and not running(tag)
    assert (tmp_path / "away" / "supervisor.log").read_text().count("launch.json") >= 1
