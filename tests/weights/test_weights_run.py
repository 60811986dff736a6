"""A real training that starts from slices, and what is done with the checkpoints that it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy
import pytest
from micro import SETTINGS, micro
from weights_kit import read_all

from qwenlib.weights import check, list_checkpoints, slice_checkpoint
from qwenlib.weights.checkpoint import CheckpointWriter
from qwenlib.weights.lora import LORA_B

pytestmark = pytest.mark.stack
ROOT = Path(__file__).resolve().parents[2]
MARK = "model.norm_out.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """Two ranks, four steps of LoRA. Rank 1's slice differs in a frozen tensor: what it saves tells what it loaded."""
    from qwenlib import profile as profiles
    from qwenlib.engine import work

    made, folder = micro(), tmp_path_factory.mktemp("run")
    settings: List[str] = [*SETTINGS, "lora.epochs=2", "lora.save_checkpoint_steps=2"]
    prof = profiles.load("smoke", settings)
    slice_checkpoint(made.checkpoint, folder / "slices", prof.task("lora").parallel, optimizer_parallel=False)
    mine = read_all(folder / "slices" / "rank_1" / "checkpoint_1.ckpt")
    with CheckpointWriter(folder / "slices" / "rank_1" / "checkpoint_1.ckpt") as out:
        for name, value in mine.items():
            out.add(name, value * 1.25 if name == MARK else value)
    trained = work.finetune(
        prof,
        "lora",
        load_checkpoint=folder / "slices",
        train_dataset=made.mindrecord,
        run_dir=folder / "lora",
        **made.files,
    )
    return {"folder": folder, "settings": settings, "trained": trained, "mark": mine[MARK], "base": made.checkpoint}


def qwenlib(run: Dict[str, Any], *arguments: Any) -> Any:
    settings = [part for setting in run["settings"] for part in ("-s", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "qwenlib", "weights", *map(str, arguments), *settings, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_rank_loads_its_own_slice(run: Dict[str, Any]) -> None:
    saved = run["folder"] / "lora" / "output" / "checkpoint_network"
    for rank, factor in ((0, 1.0), (1, 1.25)):
        (file,) = (saved / f"rank_{rank}").glob("*.ckpt")
        found = read_all(file)[MARK]
        assert numpy.array_equal(found, (run["mark"] * factor).astype(found.dtype)), rank
    assert json.loads((run["folder"] / "lora" / "job.json").read_text())["load_checkpoint"].endswith("slices")


def test_the_list_has_step_and_loss_of_every_checkpoint(run: Dict[str, Any]) -> None:
    losses = dict(zip(run["trained"]["metrics"]["step"], run["trained"]["metrics"]["loss"]))
    assert sorted(losses) == [1, 2, 3, 4]
    found = list_checkpoints(run["folder"] / "lora")
    told = [(row["rank"], row["step"], row["optimizer"]) for row in found]
    for rank in (0, 1):
        assert [(rank, 2, True), (rank, 4, True)] == [item for item in told if item[0] == rank and item[2]]
        assert (rank, 4, False) in told
    assert all(row["loss"] == pytest.approx(losses[row["step"]], abs=1e-6) and row["adapter"] for row in found)
    done = subprocess.run(
        [sys.executable, "-m", "qwenlib", "weights", "merge-lora", "--list", "--adapter", run["folder"] / "lora"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"{losses[2]:.3f}" in done.stdout and "adapter, optimizer states" in done.stdout


def test_a_step_is_chosen_saved_alone_and_merged(run: Dict[str, Any]) -> None:
    folder, saved = run["folder"], run["folder"] / "lora" / "output" / "checkpoint"
    for rank in (0, 1):  # as if rank 1 had started from the same slice
        for file in (saved / f"rank_{rank}").glob("*.ckpt"):
            tensors = read_all(file)
            file.chmod(0o600)
            with CheckpointWriter(file) as out:
                for name, value in tensors.items():
                    out.add(name, run["mark"] if name == MARK else value)
    how = ("--profile", "smoke")
    found = {}
    for step in (2, 4):
        alone, merged = folder / f"adapter_{step}.ckpt", folder / f"merged_{step}.ckpt"
        given = ("--step", step, "--base", run["base"], *how)
        done = qwenlib(run, "adapter", "--checkpoint", saved, "--adapter_path", alone, *given)
        assert (done["tensors"], done["also"]) == (14, []) and alone.stat().st_size < 10**6
        base = ("--base", run["base"], "--mindspore_ckpt_path", merged)
        assert qwenlib(run, "merge-lora", "--adapter", alone, *base)["merged"] == 7
        direct = folder / f"direct_{step}.ckpt"
        qwenlib(run, "merge-lora", "--adapter", saved, "--mindspore_ckpt_path", direct, "--step", step, *how)
        assert check(merged, direct)["max_abs_diff"] < 1e-6
        found[step] = read_all(alone)["model.layers.0.attention.wq" + LORA_B]
        assert check(run["base"], merged)["max_abs_diff"] > 0
    assert numpy.abs(found[2] - found[4]).max() > 0
