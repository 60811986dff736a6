"""Several nodes, each with a supervisor of its own; here all on the loopback (real hosts: test_launch_training)."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from launch_tools import running, until

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import read_json
from qwenlib.launch import start
from qwenlib.launch.plan import free_port

PRINTS = {"profile": "a" * 64, "rank table": "b" * 64}


@pytest.fixture
def nodes(stub):
    """``nodes("sleep:1", "exit:3")``: plans of that many nodes with one rank each, which share the run directory."""

    def make(*actions, **settings):
        port = free_port("127.0.0.1")
        common = {"world_size": len(actions), "nodes": len(actions), "node_port": port, "node_timeout": 20.0}
        common.update(prints=PRINTS, rendezvous="dynamic_cluster", **settings)
        return [stub(*actions, ranks=1, first_rank=number, node=number, **common) for number, _ in enumerate(actions)]

    return make


def start_all(plans):
    with ThreadPoolExecutor(len(plans)) as pool:
        return [future.result() for future in [pool.submit(start, plan) for plan in plans]]


def end(runs):
    for run in runs:
        run.stop()


def test_the_nodes_meet_agree_on_a_port_and_are_done_together(nodes, tmp_path):
    plans = nodes("environment", f"environment+await:{tmp_path / 'go'}")
    runs = start_all(plans)
    try:
        assert [run.run_dir for run in runs] == [plans[0].folder, plans[0].folder / "node_1"]
        until(lambda: runs[0].poll()["ranks"][0]["state"] == "done")
        time.sleep(1.2)  # longer than a supervisor waits for anything
        assert runs[0].poll()["state"] == "running", "its own rank has ended, but not the other's"
        (tmp_path / "go").touch()
        states = [run.wait(timeout=30) for run in reversed(runs)]
        assert [state["state"] for state in states] == ["done", "done"]
        seen = [
            read_json(run.run_dir / f"rank_{rank}" / "environment.json")["environ"] for rank, run in enumerate(runs)
        ]
        assert [item["MS_NODE_ID"] for item in seen] == ["0", "1"]
        assert seen[0]["MS_SCHED_PORT"] == seen[1]["MS_SCHED_PORT"] != "0"
        assert states[0]["scheduler"] is None and states[1]["scheduler"] is not None
    finally:
        end(runs)


def test_a_failure_on_one_node_ends_the_others_and_is_told_there(nodes, tag):
    runs = start_all(nodes("sleep:60", "sleep:60", "sleep:0.5+exit:3"))
    try:
        for run, words in zip(runs, (r"on node 2 \(.*\): rank 2 ended with exit code 3", "on node 0", "rank 2 ended")):
            with pytest.raises(WorkFailed, match=words):
                run.wait(timeout=30)
        assert not running(tag)
    finally:
        end(runs)


def test_stopping_one_node_stops_all(nodes, tag):
    runs = start_all(nodes("sleep:60", "sleep:60"))
    assert runs[1].stop()["state"] == "stopped"
    with pytest.raises(WorkFailed, match="it was stopped on node 1"):
        runs[0].wait(timeout=30)
    assert not running(tag)


def test_the_commands_know_the_nodes_that_share_the_disk(nodes, tag):
    from typer.testing import CliRunner

    from qwenlib.cli.main import app

    runs = start_all(nodes("sleep:60", "sleep:60"))
    folder = str(runs[0].run_dir)
    shown = CliRunner().invoke(app, ["status", folder])
    assert shown.exit_code == 0 and "(node 0 of 2): running" in shown.stdout and "(node 1 of 2)" in shown.stdout
    assert CliRunner().invoke(app, ["stop", folder]).exit_code == 0
    assert [run.poll()["state"] for run in runs] == ["stopped", "stopped"] and not running(tag)
    (runs[0].run_dir / "launch.json").unlink()  # as on a further node whose disk is its own
    assert "(node 1 of 2): stopped" in CliRunner().invoke(app, ["status", folder]).stdout
    end(runs[1:])


def test_a_node_that_is_lost_is_told(nodes, tag):
    runs = start_all(nodes("sleep:60", "sleep:60"))
    runs[1]._supervisor.kill()
    with pytest.raises(WorkFailed, match=r"node 1 \(.*\) is gone"):
        runs[0].wait(timeout=30)
    end(runs)
    assert not running(tag)


@pytest.mark.parametrize("name", list(PRINTS))
def test_a_node_with_another_rank_table_or_profile_is_refused_and_the_right_one_still_welcome(nodes, name):
    from dataclasses import replace

    first, second = nodes("sleep:0.2", "sleep:0.2")
    wrong = replace(second, prints={**PRINTS, name: "c" * 64})
    runs = []
    waiting = threading.Thread(target=lambda: runs.append(start(first)))
    waiting.start()
    try:
        with pytest.raises(Refused, match=f"the {name} of node 1 is not that of node 0"):
            start(wrong)
        runs.append(start(second))
    finally:
        waiting.join(timeout=30)
    try:
        assert [run.wait(timeout=30)["state"] for run in runs] == ["done", "done"]
    finally:
        end(runs)


def test_a_node_that_does_not_come_is_named(nodes, tag):
    from dataclasses import replace

    with start(replace(nodes("sleep:60", "sleep:60")[0], node_timeout=1.0)) as run:
        with pytest.raises(WorkFailed, match=r"node 1 of 2 did not come to 127\.0\.0\.1"):
            run.wait(timeout=30)
        assert not running(tag)


def test_a_stranger_at_the_port_disturbs_nobody(nodes):
    first, second = nodes("sleep:0.2", "sleep:0.2")
    runs = []
    waiting = threading.Thread(target=lambda: runs.append(start(first)))
    waiting.start()
    strange = [{"hello": 7, "nodes": 2}, {"hello": 1, "nodes": 2, "prints": [1]}, {"go": 5}, {"refused": "x"}]
    strange += [{"end": "failed"}, {"end": "stopped"}, {"end": "done"}]
    lines = [json.dumps(message).encode() + b"\n" for message in strange]
    for said in (b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", *lines, b""):
        deadline = time.monotonic() + 10
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", first.node_port), 1)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with stranger:
            stranger.sendall(said)
    runs.append(start(second))
    waiting.join(timeout=30)
    try:
        assert [run.wait(timeout=30)["state"] for run in runs] == ["done", "done"]
    finally:
        end(runs)


def test_a_busy_meeting_port_is_refused(nodes):
    first, _ = nodes("exit:0", "exit:0")
    with socket.create_server(("127.0.0.1", first.node_port)), pytest.raises(Refused, match="the meeting of the nodes"):
        start(first)
