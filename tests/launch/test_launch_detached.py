"""Detached runs: they outlive who started them; the run directory is all that is needed to find them again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from launch_tools import STUB, gone, running, sleepers, until

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import read_json, write_json
from qwenlib.launch import attach, processes, start

CLIENT = """
import signal, sys, time
from qwenlib.launch import Plan, start
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests under nohup hands it on ignored,
signal.signal(signal.SIGINT, signal.default_int_handler)  # and in the background this one
stub, run_dir, action = sys.argv[1:]
run = start(Plan([sys.executable, stub, action], 2, run_dir, "dynamic_cluster", grace=1.0,
                 scheduler_command=[sys.executable, stub, "sleep:60"]), detach=True)
told = []
run.wait(lambda _: told or told.append(print("waiting", flush=True)))
"""
SECONDS = 30.0


@pytest.fixture
def by_another(tmp_path, tag):
    """A detached run that another process started, which is then ended by a signal."""

    def launch(action: str, number: int = signal.SIGKILL) -> Path:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, STUB, str(tmp_path / "run"), action],
            env={**os.environ, "QWENLIB_TEST_TAG": tag, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert client.stdout.readline() == b"waiting\n"
        os.killpg(client.pid, number)
        launch.said = client.communicate(timeout=60)[1].decode()
        return tmp_path / "run"

    return launch


def cli(*words: object) -> SimpleNamespace:
    """``qwenlib WORDS`` in this process."""
    from qwenlib.cli.main import main

    out, err, code = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["qwenlib", *map(str, words)]):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_it_outlives_the_client_and_is_found_again(by_another, tag, number):
    folder = by_another("sleep:60", number)
    time.sleep(1.5)  # longer than the supervisor takes to notice that a tied client is gone
    run = attach(folder)
    assert run.poll()["state"] == "running" and len(running(tag)) == 4
    if number == signal.SIGINT:
        assert f"Stop it: qwenlib stop {folder}" in by_another.said
    assert run.stop()["state"] == "stopped"
    gone(tag, SECONDS)
    assert run.poll()["root_cause"]["message"] == "the run was ended: it was stopped."


def test_an_attached_client_waits_for_the_end_and_is_told_of_a_failure(by_another):
    folder = by_another("sleep:1+print:out of luck+exit:3")
    with pytest.raises(WorkFailed, match="ended with exit code 3"):
        attach(folder).wait(timeout=30)


def test_the_interrupt_key_stops_watching_and_not_the_training(stub, tag, capsys):
    run = start(stub("sleep:60"), detach=True)
    try:
        key = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt) as told:
            run.wait(lambda _: key.ident or key.start(), timeout=30)
        assert "not the training" in told.value._render_traceback_()[0] and told.value.__suppress_context__
        assert run.poll()["state"] == "running" and running(tag)
        assert f"qwenlib stop {run.run_dir}" in capsys.readouterr().err
        with run:
            pass
        assert run.poll()["state"] == "running", "leaving the block does not end a detached run"
    finally:
        run.stop()


def test_a_detached_run_within_the_workbook_is_tied(stub, tag, monkeypatch, capsys):
    monkeypatch.setenv("QWENLIB_WORKBOOK", "token")
    with start(stub("sleep:60"), detach=True) as run:
        assert not run.detached and "tied" in capsys.readouterr().err
    assert not running(tag)


def test_a_killed_supervisor_is_told_by_status_and_cleaned_up_by_stop(by_another, tag, bystander):
    folder = by_another("daemon+sleep:60")
    until(lambda: sleepers(tag) == 2)  # the daemons
    assert len(running(tag)) == 6  # and supervisor, scheduler, two ranks
    os.kill(read_json(folder / "launch.json")["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: len(running(tag)) == 2)  # the ranks go with it; what they had started is left
    done = cli("status", folder)
    assert done.returncode == 1 and "is gone" in done.stdout and f"qwenlib stop {folder}" in done.stdout
    with pytest.raises(Refused, match="are still there"):
        start(processes_plan(folder))
    assert cli("stop", folder, "--json").returncode == 0
    assert not running(tag)
    state = read_json(folder / "launch.json")
    assert state["state"] == "failed" and state["finished"] and state["alive"] == []


def processes_plan(folder):
    from qwenlib.launch import Plan

    return Plan([sys.executable, STUB, "exit:0"], run_dir=folder)


def test_a_reused_pid_is_never_signalled(stub, bystander):
    plan = stub("exit:0")
    with start(plan) as run:
        run.wait(timeout=30)
    state = read_json(plan.folder / "launch.json")
    other = {"pid": bystander.pid, "create_time": processes.identity(bystander.pid)["create_time"] - 60}
    state.update(state="running", supervisor=other)
    state["ranks"][0].update(state="running", **other)
    write_json(plan.folder / "launch.json", state)
    assert attach(plan.folder).stop()["state"] == "failed"
    with start(plan) as run:
        assert run.wait(timeout=30)["state"] == "done"


def test_a_run_on_another_host_is_judged_by_its_signs_of_life(stub, monkeypatch):
    plan = stub("sleep:60")
    run = start(plan, detach=True)
    try:
        state = {**read_json(plan.folder / "launch.json"), "place": "elsewhere"}
        write_json(plan.folder / "launch.json", state)
        assert attach(plan.folder).poll()["state"] == "running"
        with pytest.raises(Refused, match="another host"):
            attach(plan.folder).stop()
        monkeypatch.setattr("qwenlib.launch.rundir.SILENT_SECONDS", -1)
        assert attach(plan.folder).poll()["state"] == "failed"
    finally:
        write_json(plan.folder / "launch.json", {**state, "place": processes.place()})
        run.stop()


def test_devices_are_not_shared(stub, monkeypatch, tmp_path):
    monkeypatch.setattr("qwenlib.launch.rundir.DEVICE_LOCKS", tmp_path)
    card = {"device_target": "Ascend", "device_ids": [5]}
    with start(stub("await:../go", run_dir=tmp_path / "one", **card)) as first:
        with pytest.raises(Refused, match=f"device 5 is in use by the run in {tmp_path / 'one'}"):
            start(stub("exit:0", run_dir=tmp_path / "two", **card))
        with start(stub("exit:0", run_dir=tmp_path / "three", **{**card, "device_ids": [6]})) as other:
            assert other.wait(timeout=30)["state"] == "done"
        (tmp_path / "one" / "go").touch()
        assert first.wait(timeout=30)["state"] == "done"
    with start(stub("exit:0", run_dir=tmp_path / "two", **card)) as second:
        assert second.wait(timeout=30)["state"] == "done"


def test_models_that_answer_share_a_card_but_not_with_a_training(stub, monkeypatch, tmp_path):
    monkeypatch.setattr("qwenlib.launch.rundir.DEVICE_LOCKS", tmp_path)
    card = {"device_target": "Ascend", "share_devices": True}
    with start(stub("sleep:60", run_dir=tmp_path / "one", **card)):
        with start(stub("exit:0", run_dir=tmp_path / "two", **card)) as other:
            assert other.wait(timeout=30)["state"] == "done"
        with pytest.raises(Refused, match="device 0 is in use"):
            start(stub("exit:0", run_dir=tmp_path / "three", device_target="Ascend"))


def test_two_runs_at_once_do_not_touch_each_other(stub, tmp_path):
    with start(stub("await:../go", ranks=2, run_dir=tmp_path / "a")) as one:
        with start(stub("sleep:60", ranks=2, run_dir=tmp_path / "b")) as two:
            assert one.poll()["port"] != two.poll()["port"]
        (tmp_path / "a" / "go").touch()
        assert two.poll()["state"] == "stopped" and one.wait(timeout=30)["state"] == "done"


def test_the_commands_tell_logs_and_stop(by_another, tag, tmp_path):
    folder = by_another("print:first+print:second+sleep:60")
    until(lambda: all("second" in (folder / f"rank_{rank}" / "rank.log").read_text() for rank in (0, 1)))
    shown = json.loads(cli("status", folder, "--json").stdout)
    assert shown["state"] == "running" and shown["tied"] is False and len(shown["ranks"]) == 2
    text = cli("status", folder)
    assert text.returncode == 0 and "running, detached" in text.stdout and "rank_1: running (pid" in text.stdout
    assert cli("logs", folder, "--rank", 1, "-n", 1).stdout == "second\n"
    assert cli("logs", folder).stdout.splitlines() == [
        f"rank_{rank}: {word}" for rank in (0, 1) for word in ("first", "second")
    ]
    assert json.loads(cli("logs", folder, "--json").stdout)["rank_0"] == ["first", "second"]
    follower = subprocess.Popen(
        [sys.executable, "-m", "qwenlib", "status", str(folder), "--follow"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    stopped = cli("stop", folder)
    assert stopped.returncode == 0 and stopped.stdout.endswith("run: stopped\n") and not running(tag)
    assert "the run was ended: it was stopped." in follower.communicate(timeout=60)[0] and follower.returncode == 1
    assert cli("stop", folder).returncode == 0, "stopping what has ended is no mistake"
    assert cli("status", folder).returncode == 1


def test_a_folder_without_a_launch_is_refused(stub, tmp_path):
    with start(stub("exit:0")) as run:
        run.wait(timeout=30)
    for words in (("status", tmp_path), ("logs", tmp_path), ("stop", tmp_path)):
        done = cli(*words)
        assert done.returncode == 2 and "These below it are: run." in done.stderr and not done.stdout
    assert "there is no run directory" in cli("status", tmp_path / "nowhere").stderr
    done = cli("logs", run.run_dir, "--rank", 7)
    assert done.returncode == 2 and "no log of rank_7; there are: rank_0, supervisor" in done.stderr


@pytest.mark.parametrize(
    "content", ['{"ranks":', '{"ranks": [], "id": 3}', '{"ranks": [{"name": "x"}], "id": "3", "state": "done"}', "[]"]
)
@pytest.mark.parametrize("command", ["status", "logs", "stop"])
def test_a_damaged_state_is_told_in_a_sentence(tmp_path, command, content):
    (tmp_path / "launch.json").write_text(content)
    done = cli(command, tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert "launch.json is damaged" in done.stderr and done.stderr.count("\n") == 1


def test_the_commands_that_are_told_can_be_pasted(stub, tmp_path):
    folder = tmp_path / "my run 训练"
    with start(stub("sleep:60", run_dir=folder)), pytest.raises(Refused) as told:
        start(stub("exit:0", run_dir=folder))
    commands = re.findall(r"`(qwenlib [^`]*)`", str(told.value))
    assert [shlex.split(command) for command in commands] == [
        ["qwenlib", "status", str(folder)],
        ["qwenlib", "stop", str(folder)],
    ]


def test_logs_that_were_removed_or_come_later_are_told(stub, monkeypatch):
    from qwenlib.cli import runs

    with start(stub("print:hello")) as run:
        run.wait(timeout=30)
    rank = run.run_dir / "rank_0"
    rank.rename(run.run_dir / "away")
    done = cli("logs", run.run_dir)
    assert done.returncode == 2 and "has no log of a rank" in done.stderr and not done.stdout
    looks = []

    def read(_folder):  # at the second look the rank has begun
        looks.append(1)
        if len(looks) == 2:
            (run.run_dir / "away").rename(rank)
        return [{"state": "running" if len(looks) < 3 else "done"}]

    monkeypatch.setattr(runs, "_read", read)
    monkeypatch.setattr(runs, "FOLLOW_SECONDS", 0.0)
    assert cli("logs", run.run_dir, "--follow").stdout == "hello\n"
