"""Every problem of a training is told before it is started, and all at once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from typer.testing import CliRunner

from qwenlib import launch, preflight, weights
from qwenlib import profile as profiles
from qwenlib.cli.main import app
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN
from qwenlib.errors import Refused
from qwenlib.ranktable import Device, RankTable, Server


def table(path: Path, servers: int, cards: int = 8) -> Path:
    made = tuple(
        Server(
            f"10.0.0.{node + 1}",
            tuple(Device(card, f"192.{card % 4 + 1}.{node}.{card + 1}", node * cards + card) for card in range(cards)),
        )
        for node in range(servers)
    )
    path.write_text(json.dumps(RankTable(made).to_dict()), encoding="utf-8")
    return path


def mindrecord(folder: Path, rows: int, **config: Any) -> Path:
    """A file and the index that MindSpore writes beside it: enough for what is looked at without MindSpore."""
    path = folder / "t.mindrecord"
    path.write_bytes(b"\0" * 64)
    with sqlite3.connect(str(path) + ".db") as database:
        database.execute("create table INDEXES (ROW_ID INT)")
        database.executemany("insert into INDEXES values (?)", [(row,) for row in range(rows)])
    database.close()
    return path


def model_dir(folder: Path, ranks: int = 1, size: int = 15_442_649_088) -> Path:
    for rank in range(ranks):
        path = folder / "model_dir" / f"rank_{rank}" / "x.ckpt"
        path.parent.mkdir(parents=True)
        with open(path, "wb") as stream:
            stream.truncate(size)  # sparse: no disk is used
    return folder / "model_dir"


def states(name: str, task: str, settings: Optional[List[str]] = None, **given: Any) -> Dict[str, str]:
    inputs: Dict[str, Any] = {"environ": {}, "has_module": lambda module: True, "available_memory": 2**40, **given}
    profile = profiles.load(name, settings or [], checked=False)
    report = preflight.check(profile, task, preflight.Inputs(**inputs))
    order = {FAIL: 0, WARN: 1, OK: 2, SKIP: 3}
    found: Dict[str, str] = {}
    for item in sorted(report.findings, key=lambda item: order[item.state]):
        found.setdefault(item.name, item.state)
    return found


def test_shipped_profiles_pass_on_a_machine_that_fits(tmp_path: Path) -> None:
    for name, task, servers, seq in (("lora_7b_910a", "lora", 1, 2048), ("finetune_7b_910a", "finetune", 2, 4096)):
        folder = tmp_path / name
        folder.mkdir()
        found = states(
            name,
            task,
            load_checkpoint=model_dir(folder),
            train_dataset=mindrecord(folder, 6400),
            data_config={"seq_length": seq, "labels": "all", "special_ids": {"<|im_end|>": 151645}},
            rank_table=table(folder / "hccl.json", servers),
        )
        assert FAIL not in found.values(), found
        assert found["ranks"] == found["checkpoint"] == found["data rows"] == OK


TINY_7B = [  # the plan of the 7B, in sizes that are cut in milliseconds
    *("model.hidden_size=64", "model.num_layers=4", "model.num_heads=8", "model.vocab_size=512"),
    *("model.intermediate_size=128", "model.max_position_embedding=4096"),
]


def cut(folder: Path, profile: str, task: str, **options: Any) -> Path:
    """A checkpoint of zeros, cut for the task's plan by ``qwenlib weights slice``'s own function."""
    numpy = pytest.importorskip("numpy")
    from qwenlib.weights.checkpoint import CheckpointWriter

    prof = profiles.load(profile, TINY_7B)
    with CheckpointWriter(folder / "whole.ckpt") as out:
        for entry in weights.entries(prof.model):
            out.add(entry.ms, numpy.zeros(entry.shape, numpy.float16))
    weights.slice_checkpoint(folder / "whole.ckpt", folder / "sliced", prof.task(task).parallel, **options)
    return folder / "sliced"


def finding(name: str, profile: str, task: str, settings: List[str], **given: Any) -> Any:
    inputs = {"environ": {}, "has_module": lambda module: True, "available_memory": 2**40, **given}
    report = preflight.check(
        profiles.load(profile, [*TINY_7B, *settings], checked=False), task, preflight.Inputs(**inputs)
    )
    return next(item for item in report.findings if item.name == name)


def test_slices_of_the_plan_are_known_and_nothing_is_sliced_at_the_start(tmp_path: Path) -> None:
    given = {"load_checkpoint": cut(tmp_path, "finetune_7b_910a", "finetune")}
    found = finding("checkpoint", "finetune_7b_910a", "finetune", [], **given)
    assert found.state == OK and "slices of this plan for 16 of 16 ranks" in found.reason
    assert "auto_trans_ckpt is off" in found.reason
    memory = finding("host memory", "finetune_7b_910a", "finetune", [], **given)
    assert memory.state == OK and "one for each of 8 ranks" in memory.reason
    on = {"environ": {"MA_JOB_ID": "x"}, **given}
    assert finding("ModelArts mode", "finetune_7b_910a", "finetune", [], **on).state != FAIL
    off = finding("sink mode", "finetune_7b_910a", "finetune", ["finetune.sink_mode=false"], **given)
    assert off.state == FAIL and "loading slices" in off.reason
    two = {"rank_table": table(tmp_path / "hccl.json", 2)}
    names = [states("finetune_7b_910a", "finetune", TINY_7B, **two, **some) for some in ({}, given)]
    assert "shared folder" in names[0] and "shared folder" not in names[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["finetune.parallel.data_parallel=4", "finetune.parallel.model_parallel=2"], "it was cut by another plan"),
        (["finetune.parallel.data_parallel=1"], "it was cut for 16 ranks, the plan has 8"),
        (["model.hidden_size=128"], "it was cut from another model"),
        (["finetune.parallel.data_parallel=1", "finetune.parallel.model_parallel=1"], "the plan has 2"),
    ],
)
def test_slices_of_another_plan_are_a_fail(tmp_path: Path, settings: List[str], said: str) -> None:
    folder = cut(tmp_path, "finetune_7b_910a", "finetune")
    found = finding("checkpoint", "finetune_7b_910a", "finetune", settings, load_checkpoint=folder)
    assert found.state == FAIL and said in found.reason and "qwenlib weights slice" in found.reason


def test_one_servers_slices_are_enough_for_it_and_one_rank_needs_a_whole_one(tmp_path: Path) -> None:
    folder = cut(tmp_path, "finetune_7b_910a", "finetune", ranks="8-15")
    found = finding("checkpoint", "finetune_7b_910a", "finetune", [], load_checkpoint=folder)
    assert found.state == OK and "8 of 16 ranks" in found.reason and "the other servers need theirs" in found.reason
    one = ["lora.parallel.data_parallel=1", "lora.parallel.model_parallel=1"]
    found = finding("checkpoint", "lora_7b_910a", "lora", one, load_checkpoint=folder)
    assert found.state == FAIL and "a whole checkpoint is needed here" in found.reason


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["lora.parallel.model_parallel=3"], "profile"),
        (["lora.parallel.data_parallel=2"], "ranks"),
        (["model.n_kv_heads=1"], "model sizes"),
        (["lora.parallel.pipeline_stage=64", "lora.parallel.micro_batch_num=64"], "model sizes"),
        (["lora.parallel.pipeline_stage=2"], "profile"),
        (["lora.parallel.micro_batch_num=4"], "micro-batches"),
        (["data.seq_length=4096"], "data seq_length"),
        (["data.labels=assistant"], "data labels"),
        (["data.seq_length=65536"], "sequence length"),
        (["model.vocab_size=100000"], "data vocabulary"),
        (["lora.batch_size=2000"], "data rows"),
        (["lora.sink_size=5000"], "sink size"),
        (["lora.sink_mode=false"], "sink mode"),
        (["remote_save_url=/tmp/x"], "remote_save_url"),
        (["model.num_layers=16"], "checkpoint"),
    ],
)
def test_each_wrong_setting_is_named(settings: List[str], name: str, tmp_path: Path) -> None:
    found = states(
        "lora_7b_910a",
        "lora",
        settings,
        load_checkpoint=model_dir(tmp_path),
        train_dataset=mindrecord(tmp_path, 6400),
        data_config={"seq_length": 2048, "labels": "all", "special_ids": {"<|im_end|>": 151645}},
        rank_table=table(tmp_path / "hccl.json", 1),
    )
    assert found[name] == FAIL, found


@pytest.mark.parametrize(
    "setting",
    ["model.param_init_type=half", "model.compute_dtype=bf16", "lora.adapter.target_modules=(", "model.num_heads=0"],
)
def test_what_a_wrong_value_breaks_does_not_hide_the_rest(setting: str, tmp_path: Path) -> None:
    found = states("lora_7b_910a", "lora", [setting], train_dataset=mindrecord(tmp_path, 3))
    assert found["profile"] == found["data rows"] == FAIL and found["sink mode"] == OK


def test_no_flash_attention_is_refused_with_the_install_lines() -> None:
    report = preflight.check(
        profiles.load("lora_7b_910a"), "lora", preflight.Inputs(environ={}, has_module=lambda name: False)
    )
    with pytest.raises(Refused, match=r"fa1_for_ms2\.2\.11.*pip install.*use_flash_attention=false"):
        report.stop()
    assert states("lora_7b_910a", "lora", ["model.use_flash_attention=false"])["FlashAttention"] == OK


def test_host_memory_counts_whole_loads_and_slices(tmp_path: Path) -> None:
    folder = model_dir(tmp_path)
    plain = ["lora.parallel.model_parallel=1", "lora.parallel.data_parallel=8"]
    given: Dict[str, Any] = {"load_checkpoint": folder, "available_memory": 100 * 2**30}
    assert states("lora_7b_910a", "lora", plain, **given)["host memory"] == FAIL  # 8 x 14.4 GiB
    assert states("lora_7b_910a", "lora", [], **given)["host memory"] == OK


def test_what_the_training_that_goes_on_takes_is_no_problem_of_its_own(tmp_path: Path) -> None:
    plain = ["lora.parallel.model_parallel=1", "lora.parallel.data_parallel=8"]
    given: Dict[str, Any] = {"load_checkpoint": model_dir(tmp_path), "available_memory": 2**30, "run_dir": tmp_path}
    with launch.start(launch.Plan(["sleep", "60"], run_dir=tmp_path, grace=1.0)):
        assert states("lora_7b_910a", "lora", plain, **given)["host memory"] == SKIP
    assert states("lora_7b_910a", "lora", plain, **given)["host memory"] == FAIL


def test_checkpoint_layouts(tmp_path: Path) -> None:
    assert states("lora_7b_910a", "lora", load_checkpoint=model_dir(tmp_path, 4, 10))["checkpoint"] == FAIL
    (tmp_path / "eight").mkdir()
    eight = model_dir(tmp_path / "eight", 8, 10)
    assert states("lora_7b_910a", "lora", load_checkpoint=eight)["checkpoint"] == WARN
    (eight / "rank_3" / "y.ckpt").write_bytes(b"")
    assert states("lora_7b_910a", "lora", load_checkpoint=eight)["checkpoint"] == FAIL
    assert states("lora_7b_910a", "lora", load_checkpoint=tmp_path / "none")["checkpoint"] == FAIL


def test_modelarts_mode_needs_a_place_to_save() -> None:
    environ = {"S3_ACCESS_KEY_ID": "hidden"}
    assert states("lora_7b_910a", "lora", environ=environ)["ModelArts mode"] == FAIL
    saved = ["remote_save_url=obs://bucket/run"]
    assert states("lora_7b_910a", "lora", saved, environ=environ)["ModelArts mode"] == WARN
    assert states("lora_7b_910a", "lora")["ModelArts mode"] == OK


def test_two_servers_are_told_to_share_the_folder(tmp_path: Path) -> None:
    found = states("finetune_7b_910a", "finetune", rank_table=table(tmp_path / "hccl.json", 2))
    assert found["shared folder"] == WARN


def test_files_that_are_not_there_are_each_told_once(tmp_path: Path) -> None:
    nowhere = {"load_checkpoint": tmp_path / "model_dir", "train_dataset": tmp_path / "t.mindrecord"}
    inputs = preflight.Inputs(environ={}, has_module=lambda module: True, available_memory=2**40, **nowhere)
    report = preflight.check(profiles.load("lora_7b_910a"), "lora", inputs)
    assert sorted((item.name, item.reason.split(".")[0]) for item in report.findings if item.state in (FAIL, WARN)) == [
        ("checkpoint", f"there is no checkpoint {tmp_path / 'model_dir'}"),
        ("data", f"there is no {tmp_path / 't'}"),
    ]


def test_rows_of_a_step_are_told() -> None:
    report = preflight.check(profiles.load("finetune_7b_910a"), "finetune", preflight.Inputs(environ={}))
    (told,) = [item.reason for item in report.findings if item.name == "batch"]
    assert told.startswith("batch_size 2 x data_parallel 2 x micro_batch_num 16 = 64 rows a step")


def test_broken_rank_table_does_not_hide_the_rest(tmp_path: Path) -> None:
    (tmp_path / "hccl.json").write_text("{", encoding="utf-8")
    found = states("lora_7b_910a", "lora", ["data.seq_length=65536"], rank_table=tmp_path / "hccl.json")
    assert found["ranks"] == found["sequence length"] == FAIL


@pytest.mark.parametrize(
    ("settings", "name", "state"),
    [
        ([], "device memory", OK),
        # The guide's hint, errata 29: 30.9 GB of weights leave no room for anything else.
        (["model.param_init_type=float32"], "device memory", FAIL),
        (["data.seq_length=65536"], "sequence length", FAIL),
        (["model.num_heads=3"], "profile", FAIL),
    ],
)
def test_answering_is_checked_too(settings: List[str], name: str, state: str) -> None:
    arguments = ["config", "check", "--profile", "infer_7b_910a", "--json"]
    done = CliRunner().invoke(app, [*arguments, *(word for item in settings for word in ("-s", item))])
    found = {item["name"]: item["state"] for item in json.loads(done.stdout)["checks"]["predict"]}
    assert found[name] == state
    assert isinstance(done.exception, Refused) == (state == FAIL)


def test_command_tells_all_at_once(tmp_path: Path) -> None:
    data = mindrecord(tmp_path, 1)
    arguments = ["config", "check", "--profile", "smoke", "--train_dataset", str(data), "--json"]
    done = CliRunner().invoke(app, [*arguments, "-s", "model.num_heads=3", "-s", "lora.sink_mode=true"])
    assert isinstance(done.exception, Refused)
    document = json.loads(done.stdout)
    assert not document["ok"]
    told = str(done.exception)
    assert "num_heads 3" in told
    assert "sink_mode" in told
    assert "1 rows are fewer than the 16" in told
