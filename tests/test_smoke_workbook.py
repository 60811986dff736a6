"""The whole workbook, as ``make workbook`` runs it: the tiny Qwen1.5 learns, visibly, on the real stack."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import nbformat
import pytest

from qwenlib.files import sha256
from qwenlib.workspace import STAGES

pytestmark = [pytest.mark.stack, pytest.mark.notebook, pytest.mark.slow]

MEMORY_MIB = 6 * 1024
LOGITS = 1e-4
EXACT_SHARE = 0.8
PROMPTS = 16


def workbook(run_dir: Path, *more: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "qwenlib",
        "workbook",
        "run",
        "--profile",
        "smoke",
        "--output",
        str(run_dir),
        *more,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workbook") / "smoke"
    done = workbook(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def stages(run_dir: Path) -> Dict[str, Any]:
    content = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert content["state"] == "done"
    return dict(content["stages"])


def test_every_stage_leaves_its_notebook_its_page_and_its_meta(run_dir: Path, stages: Dict[str, Any]) -> None:
    for name in STAGES:
        assert stages[name]["state"] == "done"
        assert stages[name]["seconds"] > 0
        for file in (f"{name}.ipynb", f"{name}.html", "meta.json"):
            assert (run_dir / name / file).stat().st_size > 0


def test_memory_stays_within_the_budget(stages: Dict[str, Any]) -> None:
    assert 0 < max(stage["peak_mib"] for stage in stages.values()) <= MEMORY_MIB


def test_the_converted_checkpoint_is_the_same_network(run_dir: Path, stages: Dict[str, Any]) -> None:
    metrics = stages["02_weights"]["metrics"]
    assert metrics["max_abs_diff"] <= LOGITS
    assert metrics["argmax_equal"] is True
    assert list((run_dir / "02_weights" / "hf").glob("model-*-of-*.safetensors"))
    assert [path.name for path in (run_dir / "02_weights" / "model_dir" / "rank_0").glob("*.ckpt")] == ["qwen1_5.ckpt"]


def test_the_sample_becomes_rows(stages: Dict[str, Any]) -> None:
    metrics = stages["03_data"]["metrics"]
    assert metrics["records"] >= 200
    assert 0 < metrics["with_input"] < metrics["records"]
    assert metrics["truncated"] == 0


def test_lora_halves_the_loss_of_the_training_set(stages: Dict[str, Any]) -> None:
    metrics = stages["04_lora"]["metrics"]
    assert metrics["loss_after"] <= metrics["loss_before"] / 2
    assert metrics["trainable_parameters"] < stages["02_weights"]["metrics"]["parameters"] / 4


def test_fine_tuning_trains_every_parameter_on_two_ranks(run_dir: Path, stages: Dict[str, Any]) -> None:
    assert stages["05_finetune"]["metrics"]["trainable_parameters"] == stages["02_weights"]["metrics"]["parameters"]
    launch = json.loads((run_dir / "05_finetune" / "launch.json").read_text(encoding="utf-8"))
    assert [(rank["name"], rank["exit_code"]) for rank in launch["ranks"]] == [("rank_0", 0), ("rank_1", 0)]
    networks = sorted((run_dir / "05_finetune" / "output" / "checkpoint_network").glob("rank_*/*-network.ckpt"))
    assert len(networks) == 2
    assert sha256(networks[0]) == sha256(networks[1])  # data parallel: both ranks end with the same weights


def test_the_fine_tuned_model_answers_training_prompts_and_the_base_does_not(stages: Dict[str, Any]) -> None:
    exact = stages["06_infer"]["metrics"]["exact"]
    assert exact["finetune"]["of"] >= PROMPTS
    assert exact["finetune"]["share"] >= EXACT_SHARE
    assert exact["base"]["right"] == 0


def test_what_training_did_not_see_is_known_better_than_before(run_dir: Path, stages: Dict[str, Any]) -> None:
    held_out = stages["06_infer"]["metrics"]["held_out"]
    assert list(held_out) == ["base", "lora", "finetune"]
    for name in ("lora", "finetune"):
        assert held_out[name]["perplexity"] < held_out["base"]["perplexity"] / 2
        assert held_out[name]["token_accuracy"] > held_out["base"]["token_accuracy"]
    kept = json.loads((run_dir / "06_infer" / "eval.json").read_text(encoding="utf-8"))
    assert kept["held_out"]["conversations"] == stages["03_data"]["metrics"]["held_out"] == 24
    assert len(kept["answers"]) >= PROMPTS


def test_the_counted_answers_are_the_ones_in_the_table(run_dir: Path, stages: Dict[str, Any]) -> None:
    with open(run_dir / "06_infer" / "answers.csv", encoding="utf-8", newline="") as stream:
        rows: List[Dict[str, str]] = list(csv.DictReader(stream))
    assert len({row["expected"] for row in rows}) > PROMPTS / 2
    assert (
        sum(row["finetune"] == row["expected"] for row in rows)
        == (stages["06_infer"]["metrics"]["exact"]["finetune"]["right"])
    )


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_notebook_shows_is_whole_and_nothing_looks_like_an_error(run_dir: Path, stage: str) -> None:
    notebook = nbformat.read(run_dir / stage / f"{stage}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    on_red = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "(100 %)" not in on_red and "a background process in" not in on_red
    shown = [output["data"] for output in outputs if "data" in output]
    assert [each["text/plain"] for each in shown if list(each) == ["text/plain"]] == [], "a picture's or object's name"
    frames = [each["text/html"] for each in shown if 'class="dataframe"' in each.get("text/html", "")]
    assert [each for each in frames if "...</td>" in each] == [], "a cell is cut off"


@pytest.mark.parametrize("stage", ["04_lora", "05_finetune"])
def test_the_last_frame_of_the_live_plot_is_kept(run_dir: Path, stage: str) -> None:
    notebook = nbformat.read(run_dir / stage / f"{stage}.ipynb", as_version=4)
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert (run_dir / stage / "loss.png").stat().st_size > 0


def test_a_second_run_resumes_without_starting_a_stage(run_dir: Path) -> None:
    before = {name: (run_dir / name / "meta.json").stat().st_mtime_ns for name in STAGES}
    again = workbook(run_dir, "--resume")
    assert again.returncode == 0, again.stderr[-2000:]
    stages = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["stages"]
    assert {stage["state"] for stage in stages.values()} == {"skipped"}
    assert before == {name: (run_dir / name / "meta.json").stat().st_mtime_ns for name in STAGES}


def test_a_changed_parameter_reruns_its_stage_and_what_stands_on_it(run_dir: Path) -> None:
    again = workbook(run_dir, "--resume", "-p", "06_infer.prompts=17", "--only", "06_infer")
    assert again.returncode == 0, again.stderr[-2000:]
    stages = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["stages"]
    assert stages["06_infer"]["state"] == "done"
    assert stages["06_infer"]["metrics"]["prompts"] == 17
