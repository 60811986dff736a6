"""A launch as its client sees it: ends, failures, stops. Every test also asserts (fixture ``tag``) that no process
is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from launch_tools import running, until

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import read_json
from qwenlib.launch import Plan, processes, read_status, start

PROMPT = 30.0
"""Seconds within which a failing or stopped run with a grace of 1 s is over, rather than at the end of its ranks (the
machine may be busy, and stand still for seconds)."""


def fails(plan) -> str:
    """Run a plan that must fail; returns what the user is told."""
    with start(plan) as run, pytest.raises(WorkFailed) as failed:
        run.wait(timeout=30)
    return str(failed.value)


def test_a_run_is_done_when_every_rank_ended_with_0(stub, monkeypatch):
    monkeypatch.setenv("RANK_TABLE_FILE", "/stale")
    plan = stub("environment+await:../go", ranks=2, grace=10.0)
    with start(plan) as run:
        assert run.poll()["state"] == "running"
        (plan.folder / "go").touch()
        status = run.wait(timeout=30)
    assert status["state"] == "done" and status["root_cause"] is None and status["left"] == []
    assert [rank["exit_code"] for rank in status["ranks"]] == [0, 0]
    assert status["scheduler"]["exit_code"] == 0 and status["finished"] > status["started"]
    for rank in (0, 1):
        folder = plan.folder / f"rank_{rank}"
        seen = read_json(folder / "environment.json")
        assert seen["cwd"] == str(folder) and seen["sid"] == seen["pid"], "a session of its own, in its own folder"
        assert seen["environ"]["RANK_ID"] == str(rank) and seen["environ"]["MS_ROLE"] == "MS_WORKER"
        assert seen["environ"]["MS_SCHED_PORT"] == str(status["port"]) != "0"
        assert "RANK_TABLE_FILE" not in seen["environ"]


def test_one_rank_alone_needs_no_scheduler(stub):
    with start(stub("print:hello")) as run:
        status = run.wait(timeout=30)
    assert status["scheduler"] is None and not (run.run_dir / "scheduler").exists()
    assert run.rank_log(0).read_text() == "hello\n"
    assert (run.run_dir / "supervisor.log").read_text() == "", "it has nothing to complain about"


def test_the_rank_that_failed_is_named_with_its_last_words(stub):
    begun = time.monotonic()
    said = fails(stub("sleep:60", "print:before+print:out of luck+exit:3"))
    assert "rank 1 of 2 ended with exit code 3" in said and "| out of luck" in said and "rank_1/rank.log" in said
    assert time.monotonic() - begun < PROMPT


def test_a_signal_is_named(stub):
    assert "rank 0 of 2 was killed by SIGSEGV" in fails(stub("sleep:0.1+kill:SIGSEGV", "sleep:60"))


def test_a_kill_from_outside_is_told_apart_from_ours(stub):
    with start(stub("sleep:60", "ignore+ready:up+sleep:60")) as run:
        until((run.run_dir / "rank_1" / "up").exists)
        os.kill(run.poll()["ranks"][0]["pid"], signal.SIGKILL)
        with pytest.raises(WorkFailed, match=r"rank 0 of 2 was killed by SIGKILL .*not by us"):
            run.wait(timeout=30)
    first, second = run.poll()["ranks"]
    assert first["signal"] == second["signal"] == "SIGKILL"
    assert (first["ended_by_us"], second["ended_by_us"]) == (False, True)


def test_the_earliest_error_is_the_root_cause_though_another_rank_ends_first(stub):
    said = fails(stub("raise:the loss is NaN", "await:../rank_0/error.json+print:lost my peer+exit:7"))
    assert said.startswith("rank 0 of 2 failed: ValueError: the loss is NaN.") and "rank_0/rank.log" in said


def test_an_error_told_while_being_ended_is_not_the_cause(stub):
    said = fails(stub("await:../rank_1/up+exit:3", "record_on_term:lost my peer+ready:up+sleep:60"))
    assert "rank 0 of 2 ended with exit code 3" in said


def test_an_error_of_a_rank_that_ended_well_is_not_a_failure(stub):
    with start(stub("record:a try that was caught+exit:0")) as run:
        assert run.wait(timeout=30)["state"] == "done"


def test_ranks_that_ignore_sigterm_are_killed_after_the_shared_grace(stub):
    ups = "+".join(f"await:../rank_{rank}/up" for rank in (1, 2, 3))
    plan = stub(f"{ups}+exit:1", *["ignore+ready:up+sleep:60"] * 3, grace=2.0)
    assert "rank 0 of 4" in fails(plan)
    first, *others = [entry["finished"] for entry in read_status(plan.folder)["ranks"]]
    assert min(others) - first >= 2.0
    assert max(others) - min(others) < 2.0, "one budget for all, not one for each"


@pytest.mark.parametrize("end", ["exit:0", "exit:1"])
@pytest.mark.parametrize("child", ["fork", "daemon"])
def test_grandchildren_are_ended_too(stub, tag, bystander, child, end):
    with start(stub(f"{child}+{end}")) as run:
        if end == "exit:0":
            run.wait(timeout=30)
        else:
            with pytest.raises(WorkFailed):
                run.wait(timeout=30)
        assert not running(tag), "all has ended when wait returns"


def test_what_is_started_while_being_ended_is_ended_too(stub, tag):
    fails(stub("await:../rank_1/up+exit:1", "daemon_on_term+ready:up+sleep:60"))
    assert not running(tag)


def test_undecodable_output_is_told_readably(stub):
    said = fails(stub("bytes+exit:1"))
    assert "| last words \ufffd" in said and "| caf\ufffd" in said


def test_a_flood_of_output_does_not_block_a_rank(stub):
    with start(stub("spam:200000")) as run:
        run.wait(timeout=30)
    assert run.rank_log(0).stat().st_size == 200000 * 81


def test_a_scheduler_that_fails_fails_the_run(stub):
    said = fails(stub("sleep:60", "sleep:60", scheduler="print:bind: Address already in use+exit:5"))
    assert said.startswith("the scheduler of the 2 ranks ended with exit code 5")
    assert "Address already in use" in said


def test_a_scheduler_that_stays_is_ended_and_the_run_is_done(stub):
    with start(stub("exit:0", ranks=2, scheduler="sleep:60", grace=0.5)) as run:
        status = run.wait(timeout=30)
    assert status["state"] == "done" and status["scheduler"]["signal"] == "SIGTERM"


def test_a_program_that_cannot_be_started_is_told(stub, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    said = fails(replace(stub("exit:0"), command=[str(program)]))
    assert "a rank could not be started" in said and "No such file" in said


def test_a_program_is_found_from_where_the_caller_stands(stub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "program").chmod(0o755)
    with start(replace(stub("exit:0"), command=["./program"])) as run:
        run.wait(timeout=30)
    assert run.rank_log(0).read_text() == "here\n"


def test_stop_ends_all_and_can_be_called_again(stub, tag):
    with start(stub("sleep:60", "fork+sleep:60")) as run:
        begun = time.monotonic()
        status = run.stop()
        assert time.monotonic() - begun < PROMPT and not running(tag)
        assert status["state"] == "stopped" and "it was stopped" in status["root_cause"]["message"]
        assert run.stop()["state"] == "stopped"
        with pytest.raises(WorkFailed, match="it was stopped"):
            run.wait()


@pytest.mark.parametrize(("action", "name"), [("behead:up", "SIGTERM"), ("ignore+behead:up", "SIGKILL")])
def test_a_process_is_not_dead_while_one_of_its_threads_lives(stub, action, name):
    with start(stub(action, "ready:up+sleep:60")) as run:
        rank = psutil.Process(run.poll()["ranks"][0]["pid"])
        until(lambda: rank.status() == psutil.STATUS_ZOMBIE)
        assert processes.find(run.poll()["ranks"][0]) == rank
        time.sleep(1.2)
        assert run.poll()["state"] == "running", "it has not ended, so it has not failed"
        status = run.stop()
    assert not rank.is_running() and status["left"] == []
    assert [(entry["state"], entry["signal"]) for entry in status["ranks"]] == [
        ("stopped", name),
        ("stopped", "SIGTERM"),
    ]


def test_leaving_the_block_ends_all(stub, tag):
    with pytest.raises(KeyError), start(stub("sleep:60", ranks=2)):
        raise KeyError
    assert not running(tag)


def test_the_interrupt_key_ends_all(stub, tag):
    run = start(stub("sleep:60", ranks=2))
    key = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run.wait(lambda _: key.ident or key.start(), timeout=30)
    assert not running(tag)


def test_an_error_in_on_tick_ends_all(stub, tag):
    def on_tick(status):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start(stub("sleep:60")).wait(on_tick)
    assert not running(tag)


def test_a_run_that_takes_too_long_is_ended(stub, tag):
    with pytest.raises(WorkFailed, match=r"not finished after 0.5 s"):
        start(stub("sleep:60")).wait(timeout=0.5)
    assert not running(tag)


def test_on_tick_sees_the_run_and_its_end(stub):
    states = []
    run = start(stub("await:../go"))

    def on_tick(status):
        states.append(status["state"])
        if len(states) == 3:
            (run.run_dir / "go").touch()

    run.wait(on_tick, interval=0.1)
    assert states[:3] == ["running"] * 3 and states[-1] == "done"


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_untouched(stub):
    plan = stub("await:../go", ranks=2)
    with start(plan) as run:
        with pytest.raises(Refused, match="a run is going on in"):
            start(plan)
        (plan.folder / "go").touch()
        assert run.wait(timeout=30)["state"] == "done"


def test_an_earlier_run_is_kept_aside(stub, tmp_path):
    for word in ("first", "second", "third"):
        plan = stub(f"print:{word}")
        with start(plan) as run:
            run.wait(timeout=30)
        (plan.folder / "metrics.jsonl").write_text(word)
    (plan.folder / "mine.txt").write_text("not the launcher's")
    with start(stub("print:fourth")) as run:
        run.wait(timeout=30)
    assert run.rank_log(0).read_text() == "fourth\n" and not (plan.folder / "metrics.jsonl").exists()
    for number, word in enumerate(("first", "second", "third"), 1):
        earlier = plan.folder / "earlier" / str(number)
        assert (earlier / "rank_0" / "rank.log").read_text() == word + "\n"
        assert (earlier / "metrics.jsonl").read_text() == word and (earlier / "launch.json").exists()
    assert (plan.folder / "mine.txt").exists()


def test_leftovers_of_a_lost_supervisor_are_not_run_over(stub, bystander):
    plan = stub("exit:0")
    with start(plan) as run:
        run.wait(timeout=30)
    state = read_json(plan.folder / "launch.json")
    state["ranks"][0].update(processes.identity(bystander.pid))
    (plan.folder / "launch.json").write_text(json.dumps(state))
    with pytest.raises(Refused, match=f"are still there .pids {bystander.pid}"):
        start(plan)


def test_the_state_is_readable_at_any_instant(stub):
    plan = stub("exit:0", ranks=4)
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            if (plan.folder / "launch.json").exists():
                seen.add(json.loads((plan.folder / "launch.json").read_text())["state"])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        with start(plan) as run:
            run.wait(timeout=30)
        until(lambda: "done" in seen)
    finally:
        done.set()
        thread.join()
    assert seen <= {"starting", "running", "done"}
    assert read_status(plan.folder)["state"] == "done" and read_status(plan.folder / "nowhere") is None


def test_on_a_disk_that_the_ranks_have_filled_the_end_is_told(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small tmpfs here")
    code = "stream = open('fill', 'wb', buffering=0)\nwhile True: stream.write(bytes(4096))"
    try:
        plan = Plan([sys.executable, "-c", code], run_dir=small / "run")
        with start(plan) as run, pytest.raises(WorkFailed, match=r"rank 0 ended with exit code 1") as told:
            run.wait(timeout=60)
        assert "supervisor" not in str(told.value)
        assert f"Before that, the disk below {small / 'run'} had become full." in str(told.value)
        status = read_status(small / "run")
        assert status["state"] == "failed" and status["root_cause"]["rank"] == "rank_0" and status["finished"]
        assert not list((small / "run").glob(".launch*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_interrupt_while_the_ranks_are_ended_waits_for_their_end(stub, tag, monkeypatch):
    run = start(stub("ignore+report+sleep:60", grace=2.0))
    until(lambda: run.poll()["ranks"][0].get("ready"), 30)

    def wait(_seconds):
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)  # here, so that it can strike neither before nor after

    monkeypatch.setattr(run._supervisor, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        run.stop()
    assert run.poll()["state"] == "stopped" and not running(tag)
