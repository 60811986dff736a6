from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlib.errors import Refused
from qwenlib.launch import Plan, rank_environment, scheduler_environment, start
from qwenlib.launch.plan import STALE


def plan(**settings):
    return Plan([sys.executable, "-V"], **settings)


def test_one_rank_on_the_cpu_has_no_variable_of_another_job(tmp_path):
    environment = rank_environment(plan(run_dir=tmp_path), 0)
    assert {name for name, text in environment.items() if text is None} == set(STALE)
    assert environment["QWENLIB_RANK_DIR"] == str(tmp_path / "rank_0")


def test_one_rank_on_ascend_gets_its_card():
    assert rank_environment(plan(device_target="Ascend"), 0)["DEVICE_ID"] == "0"
    environment = rank_environment(plan(device_target="Ascend", device_ids=[3]), 0)
    assert environment["DEVICE_ID"] == "3"
    assert environment["RANK_TABLE_FILE"] is None and environment["RANK_ID"] is None


def test_dynamic_cluster_workers_and_scheduler():
    cluster = plan(ranks=2, rendezvous="dynamic_cluster", port=1234)
    for rank in (0, 1):
        environment = rank_environment(cluster, rank)
        expected = {
            "MS_WORKER_NUM": "2",
            "MS_SCHED_HOST": "127.0.0.1",
            "MS_SCHED_PORT": "1234",
            "MS_ROLE": "MS_WORKER",
            "MS_NODE_ID": str(rank),
            "RANK_ID": str(rank),
            "RANK_SIZE": "2",
            "DEVICE_ID": "0",
            "OMP_NUM_THREADS": "1",
        }
        assert {name: environment[name] for name in expected} == expected
        assert environment["RANK_TABLE_FILE"] is None
    scheduler = scheduler_environment(cluster)
    assert scheduler["MS_ROLE"] == "MS_SCHED" and scheduler["MS_WORKER_NUM"] == "2"
    assert scheduler["RANK_ID"] is None and scheduler["MS_NODE_ID"] is None


def test_rank_table(tmp_path, monkeypatch):
    monkeypatch.delenv("HCCL_CONNECT_TIMEOUT", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("table.json").write_text("{}")
    node2 = plan(
        ranks=8, first_rank=8, world_size=16, rendezvous="rank_table", rank_table="table.json", run_dir=tmp_path
    )
    environment = rank_environment(node2, 9)
    expected = {
        "RANK_TABLE_FILE": str(tmp_path / "table.json"),
        "RANK_ID": "9",
        "RANK_SIZE": "16",
        "DEVICE_ID": "1",  # logical: this host's second card
        "HCCL_CONNECT_TIMEOUT": "1800",
        "ASCEND_PROCESS_LOG_PATH": str(tmp_path / "rank_9" / "ascend"),
    }
    assert {name: environment[name] for name in expected} == expected
    assert environment["MS_ROLE"] is None and "OMP_NUM_THREADS" not in environment
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "7200")
    assert rank_environment(node2, 9)["HCCL_CONNECT_TIMEOUT"] == "7200"


@pytest.mark.parametrize("seconds", ["60", "7201", "2h", ""])
def test_a_time_that_hccl_would_refuse_is_refused_before_the_ranks_start(tmp_path, monkeypatch, seconds):
    (tmp_path / "table.json").write_text("{}")
    two = {"ranks": 2, "rendezvous": "rank_table", "rank_table": tmp_path / "table.json", "run_dir": tmp_path / "run"}
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", seconds)
    with pytest.raises(Refused, match=f"HCCL_CONNECT_TIMEOUT must be 120 to 7200 .seconds., found '{seconds}'"):
        start(plan(**two))
    assert "HCCL_CONNECT_TIMEOUT=600" in plan(**two, env={"HCCL_CONNECT_TIMEOUT": "600"}).describe()
    assert plan().describe(), "a run without HCCL does not care"


def test_the_plans_own_variables_win():
    environment = rank_environment(
        plan(ranks=2, rendezvous="dynamic_cluster", env={"OMP_NUM_THREADS": "4", "RANK_TABLE_FILE": "mine"}), 1
    )
    assert environment["OMP_NUM_THREADS"] == "4" and environment["RANK_TABLE_FILE"] == "mine"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ranks": 0}, "ranks must be at least 1, found 0"),
        ({"ranks": 2}, "rendezvous single is for one rank, found 2"),
        ({"rendezvous": "mpi"}, "found 'mpi'"),
        ({"rendezvous": "rank_table"}, "rank_table must be an existing file, found None"),
        ({"rendezvous": "rank_table", "rank_table": "/no/table.json"}, "found /no/table.json"),
        ({"device_ids": [0, 1]}, "device_ids must be 1 different numbers"),
        ({"ranks": 2, "rendezvous": "dynamic_cluster", "device_ids": [1, 1]}, "device_ids must be 2 different"),
        ({"port": 70000}, "port must be 0 to 65535, found 70000"),
        ({"ranks": 2, "first_rank": 3, "world_size": 4, "rendezvous": "dynamic_cluster"}, "ranks 3 to 4 do not fit"),
        ({"env": {"A=B": "c"}}, "cannot be an environment variable"),
        ({"grace": -1}, "grace must not be negative"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(tmp_path, settings, words):
    with pytest.raises(Refused, match=words.replace("(", r"\(")):
        start(plan(run_dir=tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_every_problem_is_told_at_once():
    with pytest.raises(Refused) as refused:
        Plan(["/no/such/program"], ranks=0, port=-1).describe()
    assert all(word in str(refused.value) for word in ("ranks must", "port must", "'/no/such/program'"))


def test_a_busy_port_is_refused_in_one_sentence(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(Refused, match=rf"port {port} of 127\.0\.0\.1 cannot be used.*Address already in use"):
            start(plan(ranks=2, rendezvous="dynamic_cluster", port=port, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_dry_run_can_be_pasted_into_a_shell_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK_ID", "7")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    dry = Plan([sys.executable, "-c", code], run_dir=tmp_path / "a run", env={"WORDS": "it's two"})
    text = dry.describe()
    assert not (tmp_path / "a run").exists()
    assert "unset RANK_ID\n" in text and "unset MS_ROLE" not in text
    (tmp_path / "a run" / "rank_0").mkdir(parents=True)
    done = subprocess.run(["sh", "-e"], input=text, capture_output=True, text=True, check=True)
    environment = json.loads(done.stdout)
    assert environment["WORDS"] == "it's two" and "RANK_ID" not in environment


def test_the_dry_run_names_every_process():
    text = plan(ranks=3, rendezvous="dynamic_cluster").describe()
    names = ["# scheduler", "# rank_0", "# rank_1", "# rank_2"]
    assert [line for line in text.splitlines() if line in names] == names
    assert "a free port is taken" in text


def test_importing_the_launcher_loads_nothing_heavy():
    code = (
        "import sys, qwenlib.launch, qwenlib.launch.supervisor; "
        "print([name for name in ('mindspore', 'mindformers', 'torch', 'numpy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr
