"""A fake 2 x 8 run: the real notebooks start 16 ranks on two hosts, and each rank is started with what it must be.

The hosts are network namespaces of this machine; only what needs a card, MindFormers inside a rank, is stood in for
(fake_ascend/sitecustomize.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml

from qwenlib import profile as profiles
from qwenlib.engine import upstream
from qwenlib.files import write_json
from qwenlib.ranktable import Device, RankTable, Server
from qwenlib.weights.layout import Planned, checkpoint_layout
from qwenlib.weights.names import entries
from qwenlib.weights.output import written

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = Path(__file__).resolve().parent / "fake_ascend"
SIZES = {"hidden_size": 512, "num_layers": 4, "num_heads": 8, "vocab_size": 2048, "intermediate_size": 1024}
"""Of the stand-in weights: a 7B checkpoint needs 29 GB of host memory, which the preflight would rightly ask for."""
URL = "obs://bucket/run"


def hosts_can_be_made() -> bool:
    if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip", "hostname")):
        return False
    probe = ["unshare", "-Urnm", "sh", str(FAKE / "two_hosts.sh"), "true", "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("qwenlib.engine.placement") is None, reason="ranks of several hosts: launch room"
    ),
    pytest.mark.skipif(not hosts_can_be_made(), reason="network namespaces cannot be made here"),
]


def table(path: Path, servers: int) -> Path:
    made = tuple(
        Server(
            f"10.0.0.{node + 1}",
            tuple(Device(card, f"192.{card % 4 + 1}.{node + 1}.{card + 1}", node * 8 + card) for card in range(8)),
        )
        for node in range(servers)
    )
    write_json(path, RankTable(made).to_dict())
    return path


def earlier_stages(run: Path, profile: str, servers: int) -> Path:
    """What 01 to 03 hand over, by hand."""
    prof = profiles.load(profile)
    run.mkdir(parents=True)
    inputs = run / "inputs"
    checkpoint = inputs / "model_dir" / "rank_0" / "x.ckpt"
    checkpoint.parent.mkdir(parents=True)
    small = replace(prof.model, **SIZES)
    layout = checkpoint_layout([Planned(item.ms, "float16", item.shape) for item in entries(small)])
    with written({checkpoint: layout}) as (file,):
        file.write_at(layout.size - 1, memoryview(b"\0"))  # every tensor is zeros
    write_json(inputs / "vocab.json", {f"t{number}": number for number in range(1000)})
    (inputs / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    data = inputs / "train.mindrecord"
    data.write_bytes(b"\0" * 64)
    database = sqlite3.connect(f"{data}.db")
    database.execute("create table INDEXES (ROW_ID INT)")
    database.executemany("insert into INDEXES values (?)", [(row,) for row in range(640)])
    database.commit()
    database.close()
    files = {
        name: str(inputs / name.replace("_file", end))
        for name, end in (("vocab_file", ".json"), ("merges_file", ".txt"))
    }
    rows = {"seq_length": prof.data.seq_length, "labels": "all", "pad_token_id": 1000}
    told: Dict[str, Dict[str, Any]] = {
        "01_env": {"outputs": {"rank_table": str(table(inputs / "hccl.json", servers))}},
        "02_weights": {"outputs": {"model_dir": str(inputs / "model_dir"), **files}, "config": {"sizes": SIZES}},
        "03_data": {"outputs": {"mindrecord": str(data)}, "config": rows, "metrics": {"real_share": 0.1}},
    }
    for stage, content in told.items():
        write_json(
            run / stage / "meta.json", {"stage": stage, "created": "now", "metrics": {}, "config": {}, **content}
        )
    return run


def started(tmp_path: Path, stage: str, profile: str, servers: int) -> List[Dict[str, Any]]:
    """Run the real notebook of ``stage`` on each host; what each rank says it was started with, in rank order."""
    records = tmp_path / "records"
    records.mkdir()
    lines = []
    for node in range(servers):
        run = earlier_stages(tmp_path / f"node_{node}", profile, servers)
        environ = {
            "PYTHONPATH": os.pathsep.join([str(FAKE), str(ROOT)]),
            "FAKE_RECORDS": str(records),
            # A ModelArts job: the platform's own variables, among them some that must not reach a rank.
            "MA_JOB_DIR": "/home/ma-user/modelarts/user-job-dir",
            "VC_TASK_INDEX": str(node),
            "RANK_TABLE_FILE": "/user/config",
            "DEVICE_ID": "5",
            "MS_ROLE": "MS_WORKER",
        }
        argv = [sys.executable, "-m", "qwenlib", "workbook", "run", "--profile", profile, "--only", stage]
        argv += ["--output", str(run), "-p", f'{stage}.settings=["remote_save_url={URL}"]']
        words = [*(f"{name}={value}" for name, value in environ.items()), *argv]
        lines.append(f"cd {shlex.quote(str(ROOT))} && exec env -u HCCL_CONNECT_TIMEOUT {shlex.join(words)}")
    done = subprocess.run(
        ["unshare", "-Urnm", "sh", str(FAKE / "two_hosts.sh"), *lines],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "KEEP": f"{tmp_path} {ROOT}"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    numbers = sorted(int(path.stem[len("rank_") :]) for path in records.glob("rank_*.json"))
    assert numbers == list(range(8 * servers))
    return [json.loads((records / f"rank_{number}.json").read_text(encoding="utf-8")) for number in numbers]


@pytest.mark.parametrize(
    ("stage", "task", "profile", "servers"),
    [("04_lora", "lora", "lora_7b_910a", 1), ("05_finetune", "finetune", "finetune_7b_910a", 2)],
)
def test_every_rank_is_started_with_what_it_must_be(
    stage: str, task: str, profile: str, servers: int, tmp_path: Path
) -> None:
    ranks = started(tmp_path, stage, profile, servers)
    for number, rank in enumerate(ranks):
        node, local = divmod(number, 8)
        run = tmp_path / f"node_{node}"
        folder = run / stage / f"node_{node}" if node else run / stage
        assert rank["host"] == f"fake-worker-{node}"
        assert rank["cwd"] == str(folder / f"rank_{number}")
        job = run / stage / (f"job_{node}.json" if node else "job.json")
        assert rank["argv"] == [sys.executable, "-m", "qwenlib.engine.rank", str(job)]
        environ = rank["environ"]
        expected = {
            "RANK_ID": str(number),
            "RANK_SIZE": str(8 * servers),
            "DEVICE_ID": str(local),
            "RANK_TABLE_FILE": str(run / "inputs" / "hccl.json"),
            "HCCL_CONNECT_TIMEOUT": "1800",
            "ASCEND_PROCESS_LOG_PATH": str(folder / f"rank_{number}" / "ascend"),
        }
        assert {name: environ.get(name) for name in expected} == expected
        assert not {"MS_ROLE", "MS_SCHED_HOST", "RANK_TABLE_FILE_V_1_0", "DEVICE_NUM"} & set(environ)
        assert rank["job"]["load_checkpoint"] == str(run / "inputs" / "model_dir")
        assert rank["job"]["device_target"] == "Ascend"
        assert yaml.safe_load(rank["yaml"]) == rank["job"]["config"]
        assert differences(task, rank["job"]["config"], run) == []
    assert len({json.dumps(rank["job"]["config"]).replace(f"node_{n // 8}/", "") for n, rank in enumerate(ranks)}) == 1


def differences(task: str, config: Dict[str, Any], run: Path) -> List[Any]:
    """Keys that are neither upstream's, nor different for a written reason, nor of these weights and this job."""
    theirs, ours = upstream.upstream(task), upstream.flatten(config)
    ids = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), 1000)
    known: Dict[str, Any] = {f"model.model_config.{key}": value for key, value in {**SIZES, **ids}.items()}
    known["remote_save_url"] = URL
    found: List[Any] = []
    for key in {*theirs, *ours}:
        expected = known.get(key, theirs.get(key, upstream.ABSENT))
        value = ours.get(key, upstream.ABSENT)
        if value != expected and not upstream.reason(task, key):
            found.append((key, expected, value))
    paths = [value for value in ours.values() if isinstance(value, str) and value.startswith("/")]
    assert len(paths) == 4
    return found + [path for path in paths if not path.startswith(str(run))]
