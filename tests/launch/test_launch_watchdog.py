"""Ranks that never get ready, hang, or are to be started again."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from launch_tools import running, until

from qwenlib.errors import WorkFailed
from qwenlib.files import write_json
from qwenlib.launch import client, failure, heartbeat, start


def test_a_rank_that_never_reports_ready_is_named(stub, tag):
    with start(stub("report+sleep:60", "print:where are the others+sleep:60", ready_timeout=4.0)) as run:
        with pytest.raises(WorkFailed, match=r"rank 1 of 2 has not joined the others within 4 s") as told:
            run.wait(timeout=30)
        assert "| where are the others" in str(told.value) and not running(tag)


class Clock:
    """Stands in for the module ``time`` of :mod:`qwenlib.launch.heartbeat`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    time = monotonic


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """``dog, wait, beat``: a watchdog of two ranks, seconds that pass with a look each, and a sign of life."""
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    folders = {name: tmp_path / name for name in ("rank_0", "rank_1")}
    for folder in folders.values():
        folder.mkdir()
    dog = heartbeat.Watchdog(folders, ready_timeout=20.0, hang_factor=5.0, hang_floor=10.0)

    def wait(seconds):
        for _ in range(seconds):
            clock.now += 1
            dog.look()

    def beat(name, **told):
        write_json(folders[name] / heartbeat.BEAT_FILE, told)

    return dog, clock, wait, beat


def test_ranks_that_are_ready_in_time_are_left_alone(watched):
    dog, _, wait, beat = watched
    beat("rank_0", ready=1.0)
    wait(19)
    assert dog.late() == []
    wait(1)
    assert dog.late() == ["rank_1"]
    beat("rank_1", ready=1.0)
    wait(20)
    assert dog.late() == []


def test_time_in_which_the_machine_stood_still_does_not_count(watched):
    dog, clock, wait, beat = watched
    for step in range(1, 9):
        for name in ("rank_0", "rank_1"):
            beat(name, step=step, total=1000)
        wait(1)
    clock.now += 600
    wait(1)
    assert dog.late() == [] and dog.hanging() is None
    beat("rank_0", step=9, total=1000)
    wait(9)
    assert dog.hanging()["ranks"] == ["rank_1"] and dog.hanging()["seconds"] < 15, "it really hangs"
    assert dog.hanging()["usual"] == 1.0


def test_a_rank_that_hangs_is_reported_and_goes_on(stub, capsys):
    plan = stub("steps:30/0.2+sleep:60", "steps:18/0.2+sleep:60", hang_factor=5.0, hang_floor=2.0)
    with start(plan) as run:
        status = until(lambda: run.poll() if run.poll()["hanging"] else None, 20)
        assert status["state"] == "running" and status["hanging"]["ranks"] == ["rank_1"]
        assert status["hanging"]["step"] == 18 and 0.1 < status["hanging"]["usual"] < 0.5
        assert status["ranks"][1]["step"] == 18 and status["ranks"][1]["total"] == 1000
        with pytest.raises(WorkFailed):
            run.wait(timeout=1.0)
        assert "rank_1 hangs: no step for" in capsys.readouterr().err


class Seen(Exception):
    pass


def test_a_rank_that_was_stopped_by_a_signal_is_named_and_goes_on(stub, capsys):
    with start(stub("steps:9999/0.1", ranks=2, hang_factor=5.0, hang_floor=2.0)) as run:
        status = until(lambda: run.poll() if run.poll()["ranks"][1].get("step", 0) > 40 else None, 60)
        pid, told = status["ranks"][1]["pid"], []
        os.kill(pid, signal.SIGSTOP)

        def on_tick(now):
            if now["hanging"] and now["hanging"]["seconds"] and not told:
                told.append(failure.hang_text({**now["hanging"], "since": time.time() - 3600}))
                os.kill(pid, signal.SIGCONT)
            elif told and not now["hanging"]:
                raise Seen

        with pytest.raises(Seen):
            run.wait(on_tick, interval=0.1, timeout=60)
        with contextlib.suppress(WorkFailed):
            run.wait(timeout=0.1)
        assert run.poll()["state"] != "running"
    assert "no step for 3600 s" in told[0], "the time goes on"
    err = capsys.readouterr().err
    assert "rank_1 hangs: no step for" in err
    assert f"rank_1 was stopped by a signal, and goes on with: kill -CONT {pid}" in err


def test_a_failure_behind_a_rank_that_stands_still_says_so(stub, tag, tmp_path):
    go = tmp_path / "go"
    with start(stub(f"await:{go}+exit:7", "report+sleep:60")) as run:
        status = until(lambda: run.poll() if run.poll()["ranks"][1].get("ready") else None, 30)
        os.kill(status["ranks"][1]["pid"], signal.SIGSTOP)
        go.touch()
        with pytest.raises(WorkFailed, match=r"rank 0 of 2 ended with exit code 7 .* Before that, rank_1 had been"):
            run.wait(timeout=60)
    assert not running(tag)


def test_the_end_of_a_hang_is_told(capsys):
    ranks = [{"name": "rank_0", "step": 9}, {"name": "rank_1", "step": 8}]
    hanging = {"ranks": ["rank_1"], "step": 7, "seconds": 130.0, "usual": 0.3}
    told = client._tell_hang({"state": "running", "ranks": ranks, "hanging": hanging}, "")
    assert client._tell_hang({"state": "running", "ranks": ranks, "hanging": hanging}, told) == told
    assert client._tell_hang({"state": "running", "ranks": ranks, "hanging": None}, told) == ""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "rank_1 hangs" in lines[0] and lines[1] == "rank_1 goes on: step 8"


def test_a_hang_may_end_the_run(stub, tag):
    with start(stub("steps:12/0.3+sleep:60", hang_factor=5.0, hang_floor=2.0, end_on_hang=True)) as run:
        with pytest.raises(WorkFailed, match=r"rank 0 hangs: no step for \d+ s after step 12"):
            run.wait(timeout=30)
        assert not running(tag)


def test_a_short_pause_is_no_hang(stub):
    with start(stub("steps:12/0.2+sleep:1+steps:2/0.1", hang_factor=5.0, hang_floor=3.0, end_on_hang=True)) as run:
        assert run.wait(timeout=30)["state"] == "done"


def test_a_failed_run_starts_again_and_its_log_goes_on(stub):
    with start(stub("print:first+fail_first:3", "sleep:0.5", max_restarts=2)) as run:
        status = run.wait(timeout=30)
    assert [cause["message"].partition(" after")[0] for cause in status["restarts"]] == ["ended with exit code 3"]
    lines = [line for line in run.rank_log(0).read_text().splitlines() if line]
    assert lines == ["first", "--- restart 1 of 2 ---", "first", "restart 1"]


def test_restarts_are_limited_and_the_last_error_is_told(stub, tag):
    with start(stub("raise:always the same", max_restarts=2)) as run:
        with pytest.raises(WorkFailed, match="ValueError: always the same"):
            run.wait(timeout=30)
        assert len(run.poll()["restarts"]) == 2 and not running(tag)
    assert {path.name for path in (run.run_dir / "rank_0").glob("error*")} == {
        "error.json",
        "error.1.json",
        "error.2.json",
    }


def test_a_stopped_run_does_not_start_again(stub, tag):
    with start(stub("sleep:60", max_restarts=3), detach=True) as run:
        begun = time.monotonic()
        assert run.stop()["state"] == "stopped" and time.monotonic() - begun < 30, "not at the end of the ranks"
        assert run.poll()["restarts"] == [] and not running(tag)


@pytest.mark.parametrize(("action", "name"), [("segfault", "SIGSEGV"), ("abort", "SIGABRT")])
def test_a_crash_is_named(stub, action, name):
    with (
        start(stub(f"sleep:0.1+{action}", "sleep:60")) as run,
        pytest.raises(WorkFailed, match=f"was killed by {name}"),
    ):
        run.wait(timeout=30)


def test_half_a_million_lines_and_strange_bytes_block_nobody(stub):
    with start(stub("spam:500000+bytes+exit:3", "sleep:60")) as run:
        with pytest.raises(WorkFailed, match="last words"):
            run.wait(timeout=60)
        assert run.rank_log(0).stat().st_size > 40_000_000
    run.rank_log(0).unlink()
