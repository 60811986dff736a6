"""Which models a run has, from what its stages handed over; no process is started."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Dict

import pytest
from typer.testing import CliRunner

from qwenlib import profile as profiles
from qwenlib.cli.main import app
from qwenlib.engine import render
from qwenlib.engine.job import Job
from qwenlib.errors import Refused
from qwenlib.infer import choose

SIZES = {"hidden_size": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 300, "intermediate_size": 128}


def stage(run_dir: Path, name: str, outputs: Dict[str, Any], config: Dict[str, Any], profile: str = "smoke") -> None:
    folder = run_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    for place in outputs.values():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text("x")
    meta = {
        "created": "now",
        "profile": profile,
        "outputs": {key: str(value) for key, value in outputs.items()},
        "config": config,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose LoRA was trained with another rank than the profile says."""
    run = tmp_path / "run"
    files = {key: run / "02_weights" / key for key in ("model_dir", "vocab_file", "merges_file")}
    stage(run, "02_weights", files, {"sizes": SIZES})
    trained = profiles.to_dict(profiles.load("smoke", ["lora.adapter.lora_rank=3"]))
    stage(run, "04_lora", {"checkpoint": run / "04_lora" / "output" / "lora.ckpt"}, trained)
    stage(run, "05_finetune", {"checkpoint": run / "05_finetune" / "output" / "full.ckpt"}, trained)
    return run


def test_a_run_has_base_lora_and_finetune_each_with_its_own_kind(run_dir: Path) -> None:
    found = choose.of_run(run_dir)
    assert list(found) == ["base", "lora", "finetune"]
    assert [choice.raw for choice in found.values()] == [True, False, False]
    assert [choice.adapter_task for choice in found.values()] == ["", "lora", ""]
    assert [Path(choice.checkpoint).name for choice in found.values()] == ["model_dir", "lora.ckpt", "full.ckpt"]
    for choice in found.values():
        assert dataclasses.asdict(choice.profile.model).items() >= SIZES.items()
        assert Path(choice.vocab_file).name == "vocab_file"


def test_the_adapter_has_the_shape_of_its_training(run_dir: Path) -> None:
    found = choose.of_run(run_dir)
    assert found["lora"].profile.task("lora").adapter.lora_rank == 3
    assert choose.of_run(run_dir, "infer_7b_910a")["lora"].profile.task("lora").adapter.lora_rank == 3, "has no lora"


def test_the_profile_of_06_counts_and_settings_override_it(run_dir: Path) -> None:
    assert choose.of_run(run_dir)["base"].profile.name == "smoke"
    stage(run_dir, "06_infer", {}, {}, "infer_7b_910a")
    assert choose.of_run(run_dir)["base"].profile.name == "infer_7b_910a"
    found = choose.of_run(run_dir, "smoke", ["predict.max_new_tokens=7"])["lora"]
    assert found.profile.predict.max_new_tokens == 7 and found.profile.name == "smoke"


def test_a_run_that_was_moved_is_found_where_it_lies(run_dir: Path, tmp_path: Path) -> None:
    shutil.move(str(run_dir), str(tmp_path / "moved"))
    for choice in choose.of_run(tmp_path / "moved").values():
        for path in (choice.checkpoint, choice.vocab_file, choice.merges_file):
            assert Path(path).is_relative_to(tmp_path / "moved") and Path(path).is_file()


def test_the_most_trained_model_is_meant_unless_another_is_named(run_dir: Path) -> None:
    found = choose.of_run(run_dir)
    assert choose.pick(found).name == "finetune" and choose.pick(found, "base").name == "base"
    shutil.rmtree(run_dir / "05_finetune")
    found = choose.of_run(run_dir)
    assert choose.pick(found).name == "lora"
    with pytest.raises(Refused, match=r"no model 'finetune' .* it has: base, lora\. Stage 05_finetune was not"):
        choose.pick(found, "finetune")


def test_slices_of_several_cards_are_no_model_yet(run_dir: Path) -> None:
    config = json.loads((run_dir / "04_lora" / "meta.json").read_text())["config"]
    config["device_target"] = "Ascend"
    stage(run_dir, "04_lora", {"checkpoint": run_dir / "04_lora" / "rank_0" / "x.ckpt"}, config)
    found = choose.of_run(run_dir)
    assert list(found) == ["base", "finetune"]
    with pytest.raises(Refused, match=r"left slices: merge them \(qwenlib weights merge\)"):
        choose.pick(found, "lora")


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """What ``qwenlib train`` leaves of a LoRA training, without the training: the job as it is rendered."""
    folder = tmp_path / "train"
    for name in ("vocab.json", "merges.txt", "base.ckpt", "output/checkpoint_network/rank_0/qwen2-8_1.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    profile = profiles.load("smoke", ["lora.adapter.lora_rank=5", "data.seq_length=77", "model.num_layers=3"])
    config = render.train_config(
        profile,
        "lora",
        dataset_dir=folder / "data",
        vocab_file=folder / "vocab.json",
        merges_file=folder / "merges.txt",
        output_dir=folder / "output",
    )
    Job("finetune", "CPU", config, str(folder / "base.ckpt"), str(folder / "result.json")).save(folder / "job.json")
    (folder / "result.json").write_text(json.dumps({"steps": 1, "trainable_parameters": 1}))
    return folder


def test_a_single_training_has_its_base_and_what_it_made(training: Path) -> None:
    found = choose.of_run(training)
    assert list(found) == ["base", "lora"] and found["base"].raw and not found["lora"].raw
    lora = found["lora"]
    assert Path(lora.checkpoint).name == "qwen2-8_1.ckpt" and found["base"].checkpoint == str(training / "base.ckpt")
    assert lora.profile.task("lora").adapter.lora_rank == 5 and lora.profile.data.seq_length == 77
    assert (lora.profile.model.num_layers, lora.profile.model.compute_dtype) == (3, "float32")
    assert (lora.vocab_file, lora.merges_file) == (str(training / "vocab.json"), str(training / "merges.txt"))


def test_what_is_no_run_is_refused(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(Refused, match="there is no run directory"):
        choose.of_run(tmp_path / "none")
    with pytest.raises(Refused, match=r"02_weights has not been finished"):
        choose.of_run(tmp_path)
    stage(run_dir, "04_lora", {"checkpoint": run_dir / "x.ckpt"}, {"lora": {}})
    with pytest.raises(Refused, match="its files do not hold what is needed"):
        choose.of_run(run_dir)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "--predict_data", "x"], "give --run_dir .* or --load_checkpoint"),
        (["predict", "--predict_data", "x", "--run_dir", "RUN", "--load_checkpoint", "x"], "one of the two"),
        (["predict", "--run_dir", "RUN"], "give --predict_data .* or --input_file"),
        (["predict", "--run_dir", "RUN", "--input_file", "a.txt"], "--input_file and --output_file go together"),
        (["predict", "--run_dir", "RUN", "--predict_data", "x", "--overwrite"], "--overwrite is about --output_file"),
        (["predict", "--run_dir", "RUN", "--predict_data", "x", "--vocab_file", "v"], "--vocab_file cannot go with"),
        (["predict", "--run_dir", "RUN", "--predict_data", "x", "--lora"], "--lora cannot go with --run_dir"),
        (["predict", "--run_dir", "RUN", "--predict_data", "x", "--model", "full"], "there is no model 'full'"),
        (["predict", "--run_dir", "RUN", "--predict_data", "x", "--top_p", "2"], "top_p must be above 0 and at most 1"),
        (["chat", "--run_dir", "RUN", "--temperature", "0"], "temperature must be above 0, found 0"),
        (["chat", "--run_dir", "RUN", "--seed", "-1", "--top_k", "-2"], "top_k must be at least 0.*; seed must be at"),
        (["chat"], "give --run_dir"),
        (["eval", "--run_dir", "RUN", "--prompts", "-1"], "--prompts must be at least 0"),
        (["eval", "--run_dir", "RUN"], "03_data has not been finished"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_before_anything_is_loaded(
    arguments: list, said: str, run_dir: Path
) -> None:
    told = [str(run_dir) if word == "RUN" else word for word in arguments]
    result = CliRunner().invoke(app, told)
    assert isinstance(result.exception, Refused), result.output
    import re

    assert re.search(said, str(result.exception))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["predict", "--run_dir", "x", "--predict_data", " "], "--predict_data is empty"),
        (["eval", "--run_dir", "/nowhere/at/all"], "there is no run directory /nowhere/at/all."),
    ],
)
def test_what_cannot_be_asked_is_refused(command: list, said: str) -> None:
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, Refused) and said in str(result.exception)
