"""Plans and refusals of the side that starts ranks; nothing here starts one."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import yaml

from qwenlib import launch
from qwenlib import profile as profiles
from qwenlib.engine import job as jobs
from qwenlib.engine import serving, single, work
from qwenlib.engine.job import Job
from qwenlib.errors import Refused
from qwenlib.files import write_json
from qwenlib.launch import processes


def mindrecord(path: Path, rows: int) -> Path:
    """A file and its index, as far as counting rows goes."""
    path.write_bytes(b"\0")
    database = sqlite3.connect(str(path) + ".db")
    database.execute("create table INDEXES (ROW_ID int)")
    database.executemany("insert into INDEXES values (?)", [(row,) for row in range(rows)])
    database.commit()
    database.close()
    return path


@pytest.fixture
def given(tmp_path: Path) -> Dict[str, Any]:
    """Everything a training asks for: a checkpoint, 40 rows, a vocabulary of 5 and a new run directory."""
    pytest.importorskip("numpy")  # counting rows imports qwenlib.data
    checkpoint = tmp_path / "model_dir" / "rank_0" / "qwen1_5.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    write_json(tmp_path / "vocab.json", {letter: number for number, letter in enumerate("abcde")})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return {
        "load_checkpoint": tmp_path / "model_dir",
        "train_dataset": mindrecord(tmp_path / "train.mindrecord", 40),
        "vocab_file": tmp_path / "vocab.json",
        "merges_file": tmp_path / "merges.txt",
        "run_dir": tmp_path / "run",
    }


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "hccl.json"
    path.write_text("{}")
    return path


def test_a_job_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    job = Job("score", "CPU", {"seed": 0, "list": [1, {"a": None}]}, "/x.ckpt", "/r.json", {"mindrecord": "/中.m"})
    assert jobs.load(job.save(tmp_path / "job.json")) == job


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "is no job file: it must hold task, device_target, config, load_checkpoint, result, settings"),
        ([], "is no job file"),
        ({"task": "dance"}, "task 'dance' is none of finetune, score, logits, serve"),
    ],
)
def test_what_is_no_job_is_refused(tmp_path: Path, tree: Any, said: str) -> None:
    whole = {"device_target": "", "config": {}, "load_checkpoint": "", "result": "", "settings": {}}
    write_json(tmp_path / "job.json", {**whole, **tree} if tree else tree)
    with pytest.raises(Refused, match=said):
        jobs.load(tmp_path / "job.json")


def test_a_dry_run_tells_command_and_environment_and_starts_nothing(given: Dict[str, Any]) -> None:
    plan = work.training_plan(profiles.load("smoke"), "lora", **given)
    told = plan.describe()
    assert f"{sys.executable} -m qwenlib.engine.rank {given['run_dir']}/job.json" in told
    assert "# scheduler" in told and "# rank_0" in told and "# rank_1" in told and "# rank_2" not in told
    for line in ("export MS_ROLE=MS_WORKER", "export MS_WORKER_NUM=2", "export RANK_ID=1", "export RANK_SIZE=2"):
        assert line in told
    assert sorted(path.name for path in given["run_dir"].iterdir()) == ["job.json", "lora.yaml"]


def test_the_yaml_beside_the_job_is_what_the_ranks_get(given: Dict[str, Any]) -> None:
    work.training_plan(profiles.load("smoke"), "finetune", **given)
    job = jobs.load(given["run_dir"] / "job.json")
    assert yaml.safe_load((given["run_dir"] / "finetune.yaml").read_text()) == job.config
    assert job.config["model"]["model_config"]["pad_token_id"] == 5, "<|endoftext|> follows the base vocabulary"
    assert job.config["output_dir"] == str(given["run_dir"] / "output")
    assert (job.task, job.device_target, job.result) == ("finetune", "CPU", str(given["run_dir"] / "result.json"))


def test_data_parallel_ranks_get_the_file_and_sliced_ones_the_folder(given: Dict[str, Any], table: Path) -> None:
    work.training_plan(profiles.load("smoke"), "lora", **given)
    whole = jobs.load(given["run_dir"] / "job.json")
    assert whole.load_checkpoint == str(given["load_checkpoint"] / "rank_0" / "qwen1_5.ckpt")
    assert whole.config["auto_trans_ckpt"] is False
    plan = work.training_plan(profiles.load("lora_7b_910a"), "lora", rank_table=table, **given)
    sliced = jobs.load(given["run_dir"] / "job.json")
    assert sliced.load_checkpoint == str(given["load_checkpoint"])
    assert sliced.config["auto_trans_ckpt"] is True
    assert (plan.ranks, plan.rendezvous, plan.device_target) == (8, "rank_table", "Ascend")


SMALL_7B = [
    *("model.hidden_size=64", "model.num_layers=2", "model.num_heads=8", "model.vocab_size=512"),
    *("model.intermediate_size=128",),
]


@pytest.fixture()
def slices(given: Dict[str, Any]) -> Path:
    """A checkpoint of that size, cut for the LoRA profile's 8 ranks."""
    import numpy

    from qwenlib import weights
    from qwenlib.weights.checkpoint import CheckpointWriter

    prof, folder = profiles.load("lora_7b_910a", SMALL_7B), given["run_dir"].parent
    with CheckpointWriter(folder / "whole.ckpt") as out:
        for entry in weights.entries(prof.model):
            out.add(entry.ms, numpy.zeros(entry.shape, numpy.float16))
    weights.slice_checkpoint(folder / "whole.ckpt", folder / "sliced", prof.task("lora").parallel)
    return folder / "sliced"


def test_slices_of_the_plan_are_handed_over_and_not_cut_again(given: Dict[str, Any], table: Path, slices: Path) -> None:
    given["load_checkpoint"] = slices
    work.training_plan(profiles.load("lora_7b_910a", SMALL_7B), "lora", rank_table=table, **given)
    job = jobs.load(given["run_dir"] / "job.json")
    assert (job.load_checkpoint, job.config["auto_trans_ckpt"]) == (str(slices), False)
    assert yaml.safe_load((given["run_dir"] / "lora.yaml").read_text())["auto_trans_ckpt"] is False


def test_slices_that_a_training_cannot_start_from_are_refused(given: Dict[str, Any], table: Path, slices: Path) -> None:
    given["load_checkpoint"] = slices

    def said(*settings: str, profile: str = "lora_7b_910a") -> str:
        with pytest.raises(Refused) as told:
            work.training_plan(profiles.load(profile, [*SMALL_7B, *settings]), "lora", rank_table=table, **given)
        assert not given["run_dir"].exists()
        return str(told.value)

    assert "cut by another plan" in said("lora.parallel.data_parallel=2", "lora.parallel.model_parallel=4")
    assert "sink_mode must be true" in said("lora.sink_mode=false")
    assert "it was cut for 8 ranks, the plan has 2" in said(profile="smoke")
    (slices / "rank_7" / "checkpoint_7.ckpt").unlink()
    assert "rank_7 holds 0 .ckpt files where one is needed" in said()
    files = {name: given[name] for name in ("vocab_file", "merges_file", "run_dir")}
    with pytest.raises(Refused, match="a whole checkpoint is needed here"):
        single.score(
            profiles.load("smoke", SMALL_7B), load_checkpoint=slices, mindrecord=given["train_dataset"], **files
        )


def test_every_path_of_a_job_is_absolute(given: Dict[str, Any], table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    relative = {name: os.path.relpath(path) for name, path in given.items()}
    plan = work.training_plan(profiles.load("lora_7b_910a"), "lora", rank_table="hccl.json", **relative)
    job = json.loads((table.parent / "run" / "job.json").read_text())
    config = job["config"]
    found = [job["load_checkpoint"], job["result"], config["output_dir"], plan.command[-1]]
    found += [config["train_dataset"]["data_loader"]["dataset_dir"]]
    found += [config["processor"]["tokenizer"][name] for name in ("vocab_file", "merges_file")]
    assert [path for path in found if not os.path.isabs(path)] == []
    assert launch.rank_environment(plan, 3)["RANK_TABLE_FILE"] == str(table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_dataset": "none.mindrecord"}, "there is no training data .*none.mindrecord. Run 03_data"),
        ({"load_checkpoint": "none"}, "there is no checkpoint none"),
        ({"vocab_file": "none.json"}, "there is no file none.json"),
        ({"load_checkpoint": "."}, "holds no .ckpt file"),
    ],
)
def test_what_is_missing_is_refused_before_anything_is_written(
    given: Dict[str, Any], change: Dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=said):
        work.training_plan(profiles.load("smoke"), "lora", **{**given, **change})
    assert not given["run_dir"].exists()


def test_two_checkpoints_in_one_folder_are_refused(given: Dict[str, Any]) -> None:
    (given["load_checkpoint"] / "rank_0" / "another.ckpt").touch()
    with pytest.raises(Refused, match=r"holds 2 checkpoints \(another.ckpt, qwen1_5.ckpt\)"):
        work.training_plan(profiles.load("smoke"), "lora", **given)


def test_several_ascend_ranks_need_a_rank_table(given: Dict[str, Any], tmp_path: Path) -> None:
    for nothing in (None, ""):
        with pytest.raises(Refused, match="8 Ascend ranks need a rank table: run 01_env"):
            work.training_plan(profiles.load("lora_7b_910a"), "lora", rank_table=nothing, **given)
    plan = work.training_plan(profiles.load("lora_7b_910a"), "lora", rank_table=tmp_path / "none.json", **given)
    with pytest.raises(Refused, match=r"rank_table must be an existing file, found .*none.json"):
        plan.describe()


def test_one_ascend_rank_needs_none(given: Dict[str, Any]) -> None:
    one = ["lora.parallel.data_parallel=1", "lora.parallel.model_parallel=1"]
    plan = work.training_plan(profiles.load("lora_7b_910a", one), "lora", **given)
    assert (plan.rendezvous, plan.ranks, plan.rank_table) == ("single", 1, None)
    assert launch.rank_environment(plan, 0)["DEVICE_ID"] == "0"


def test_checkpoints_that_will_not_fit_the_disk_are_refused(given: Dict[str, Any]) -> None:
    try:
        os.truncate(given["load_checkpoint"] / "rank_0" / "qwen1_5.ckpt", 2**43)  # a file with a hole of 8 TiB
    except OSError:
        pytest.skip("this file system cannot hold a file of that length")
    with pytest.raises(Refused, match=r"checkpoints of lora needs 33554432 MiB below .* MiB are free"):
        work.training_plan(profiles.load("smoke"), "lora", **given)


def test_too_few_rows_are_refused_and_the_last_training_stays(given: Dict[str, Any]) -> None:
    output = given["run_dir"] / "output"
    output.mkdir(parents=True)
    given["train_dataset"] = mindrecord(given["run_dir"].parent / "few.mindrecord", 15)
    with pytest.raises(Refused, match=r"few.mindrecord holds 15 rows, fewer than the 16 of one step"):
        work.finetune(profiles.load("smoke"), "lora", **given)
    assert output.is_dir() and not (given["run_dir"] / "launch.json").exists()


def test_a_busy_port_is_refused_and_the_last_training_stays(given: Dict[str, Any]) -> None:
    import socket

    output = given["run_dir"] / "output"
    output.mkdir(parents=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(Refused, match=f"{port}"):
            work.finetune(profiles.load("smoke"), "lora", port=port, **given)
    assert output.is_dir() and not (given["run_dir"] / "launch.json").exists()


def test_a_training_that_is_going_on_is_not_touched(given: Dict[str, Any]) -> None:
    output = given["run_dir"] / "output"
    output.mkdir(parents=True)
    status = {"state": "running", "ranks": [], "supervisor": processes.identity(os.getpid())}
    write_json(given["run_dir"] / "launch.json", status)
    with pytest.raises(Refused, match="a run is going on in"):
        work.finetune(profiles.load("smoke"), "lora", **given)
    assert sorted(path.name for path in given["run_dir"].iterdir()) == ["launch.json", "output"]


def test_a_training_from_the_last_one_s_own_checkpoint_is_refused(given: Dict[str, Any]) -> None:
    start = given["run_dir"] / "output" / "checkpoint_network" / "rank_0" / "x.ckpt"
    start.parent.mkdir(parents=True)
    start.write_bytes(b"weights")
    given["load_checkpoint"] = start.parent.parent
    with pytest.raises(Refused, match=r"checkpoint_network lies in .*output, which the new training sets aside"):
        work.finetune(profiles.load("smoke"), "lora", **given)
    assert start.is_file()


def test_the_result_of_an_earlier_training_is_not_taken_for_the_new_one_s(given: Dict[str, Any]) -> None:
    given["run_dir"].mkdir()
    (given["run_dir"] / "result.json").write_text("{}")
    work.training_plan(profiles.load("smoke"), "lora", **given)
    assert not (given["run_dir"] / "result.json").exists()


def test_a_task_that_the_profile_lacks_is_refused(given: Dict[str, Any]) -> None:
    with pytest.raises(Refused, match="no training task 'lora'"):
        work.training_plan(profiles.load("infer_7b_910a"), "lora", **given)


def test_answering_is_one_rank_with_its_socket_and_adapter(given: Dict[str, Any]) -> None:
    del given["train_dataset"]
    plan = serving.serve_plan(profiles.load("smoke"), socket="/tmp/s", adapter_task="lora", **given)
    job = jobs.load(given["run_dir"] / "job.json")
    assert (plan.ranks, plan.rendezvous, job.task, job.settings) == (1, "single", "serve", {"socket": "/tmp/s"})
    assert job.config["model"]["model_config"]["pet_config"]["lora_rank"] == 16
    assert job.result == str(given["run_dir"] / "ready.json")


def test_sizes_of_the_weights_replace_the_profile_s_and_keep_its_number_types() -> None:
    prof = work.with_sizes(profiles.load("smoke"), {"hidden_size": 64, "n_kv_heads": 2})
    assert (prof.model.hidden_size, prof.model.n_kv_heads, prof.model.compute_dtype) == (64, 2, "float32")
    with pytest.raises(Refused, match=r"sizes handed over by 02_weights do not fit: .*hidden"):
        work.with_sizes(profiles.load("smoke"), {"hidden": 64})


def test_data_built_for_another_length_is_refused_before_anything_is_written(given: Dict[str, Any]) -> None:
    columns = ["input_ids", "target_ids", "attention_mask"]
    meta = {"rows": 40, "seq_length": 95, "labels": "assistant", "columns": columns}
    Path(f"{given['train_dataset']}.meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(Refused, match="seq_length"):
        work.training_plan(profiles.load("smoke"), "lora", **given)
    assert not (Path(given["run_dir"]) / "job.json").exists()


def test_control_tokens_follow_the_base_vocabulary(given: Dict[str, Any]) -> None:
    size = work.base_vocabulary(given["vocab_file"])
    assert (size, work.token_ids(size).pad_token_id) == (5, 5)
    assert work.token_ids(151643) == work.render.Tokens(), "Qwen1.5's own"


def test_vocabulary_files_are_taken_from_the_folder_or_given(given: Dict[str, Any], tmp_path: Path) -> None:
    prof = profiles.load("smoke")
    files = {name: given[name] for name in ("vocab_file", "merges_file")}
    assert work.model_files(prof, **files) == (prof, files)
    with pytest.raises(Refused, match="give --torch_ckpt_dir"):
        work.model_files(prof, vocab_file=given["vocab_file"])
    with pytest.raises(Refused, match=r"--merges_file: there is no file .*none"):
        work.model_files(prof, vocab_file=given["vocab_file"], merges_file=tmp_path / "none")


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([b"score base: 1/3 (33 %) rows 0 s\n"], ["score base: 1/3 (33 %) rows 0 s"]),
        ([b"score base: 1/3 (33", b" %) rows 0 s\n"], ["score base: 1/3 (33 %) rows 0 s"]),
        ([b"2026-11-24 - mindformers - INFO - step: 1/3 \n", b"\xff\xfe: 1/2 \n", b"Epoch: 1/2 x\n"], []),
    ],
)
def test_progress_lines_of_a_rank_are_echoed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], chunks: List[bytes], said: List[str]
) -> None:
    log = tmp_path / "rank.log"
    echo: Callable[[Dict[str, Any]], None] = single._Echo(log)
    echo({})  # not there yet
    for chunk in chunks:
        with open(log, "ab") as stream:
            stream.write(chunk)
        echo({})
    echo({})
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize("port", [70000, -1])
def test_what_is_no_port_is_refused(given: Dict[str, Any], port: int) -> None:
    with pytest.raises(Refused, match=f"port must be 0 to 65535, found {port}"):
        work.finetune(profiles.load("smoke"), "lora", port=port, **given)


def test_a_run_directory_that_cannot_be_made_is_refused(given: Dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Refused, match=r"the folder .* cannot be made: (there is a file|Not a directory)"):
            work.finetune(profiles.load("smoke"), "lora", **{**given, "run_dir": place})


def test_a_dry_run_leaves_the_last_training_as_it_is(given: Dict[str, Any]) -> None:
    given["run_dir"].mkdir()
    for name in ("result.json", "job.json"):
        (given["run_dir"] / name).write_text("{}")
    write_json(given["run_dir"] / "launch.json", {"ranks": [], "state": "done"})
    assert work.training_plan(profiles.load("smoke"), "lora", **given, dry_run=True).ranks == 2
    assert {path.name: path.read_text() for path in given["run_dir"].glob("[jr]*.json")} == {
        "result.json": "{}",
        "job.json": "{}",
    }


@pytest.mark.parametrize(("content", "said"), [(b"\0" * 100, "not a whole MindSpore checkpoint"), (b"", "no tensor")])
def test_weights_that_are_cut_off_are_refused_and_the_last_training_stays(
    given: Dict[str, Any], content: bytes, said: str
) -> None:
    output = given["run_dir"] / "output"
    output.mkdir(parents=True)
    (given["load_checkpoint"] / "rank_0" / "qwen1_5.ckpt").write_bytes(content)
    with pytest.raises(Refused, match=said):
        work.finetune(profiles.load("smoke"), "lora", **given)
    assert output.is_dir() and not (given["run_dir"] / "launch.json").exists()
