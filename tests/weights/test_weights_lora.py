"""Adapters: merged, saved alone, put together again; the judge of meaning is the real MindFormers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy
import pytest
from weights_kit import SMALL, make_folder, read_all

from qwenlib.errors import Refused
from qwenlib.profile import Adapter, Parallel
from qwenlib.weights import check, convert, join_adapter, merge_lora, save_adapter, slice_checkpoint
from qwenlib.weights.checkpoint import CheckpointWriter
from qwenlib.weights.lora import LORA_A, LORA_B
from qwenlib.weights.slicing import open_ranks

ROOT = Path(__file__).resolve().parents[2]
RANK, ALPHA = 4, 12.0


def write(path: Path, tensors: Dict[str, numpy.ndarray]) -> Path:
    with CheckpointWriter(path) as out:
        for name, array in tensors.items():
            out.add(name, array)
    return path


def adapter_of(base: Dict[str, numpy.ndarray]) -> Dict[str, numpy.ndarray]:
    draw = numpy.random.default_rng(9)
    found = {}
    for name, value in base.items():
        if ".layers." in name and value.ndim == 2:
            layer = name[: -len(".weight")]
            found[layer + LORA_A] = (0.1 * draw.standard_normal((RANK, value.shape[1]))).astype(value.dtype)
            found[layer + LORA_B] = (0.1 * draw.standard_normal((value.shape[0], RANK))).astype(value.dtype)
    return found


@pytest.fixture()
def run(tmp_path: Path) -> Tuple[Path, Path]:
    """(base, a LoRA run's checkpoint with base, adapter and a trained lm_head, as MindFormers saves it)."""
    base = Path(convert(make_folder(tmp_path / "hf"), tmp_path / "base", "float32")["checkpoint"])
    tensors = read_all(base)
    trained = {**tensors, "lm_head.weight": tensors["lm_head.weight"] * 1.5, **adapter_of(tensors)}
    layer = "model.layers.0.attention.wq"
    trained[f"adam_m.{layer}{LORA_A}"] = trained[layer + LORA_A] * 0  # a resumable checkpoint has the states, too
    trained["global_step"] = numpy.array([7], numpy.int32)
    return base, write(tmp_path / "run.ckpt", trained)


def by_hand(path: Path) -> Dict[str, numpy.ndarray]:
    tensors = read_all(path)
    found = {}
    for name, value in tensors.items():
        if "mindpet" in name or not name.startswith(("model.", "lm_head.")):
            continue
        layer = name[: -len(".weight")]
        if layer + LORA_A in tensors:
            value = value + ALPHA / RANK * (tensors[layer + LORA_B] @ tensors[layer + LORA_A])
        found[name] = value
    return found


def assert_close(path: Path, wanted: Dict[str, numpy.ndarray]) -> None:
    found = read_all(path)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert numpy.abs(found[name] - value).max() < 1e-6, name


def test_a_runs_checkpoint_is_merged_without_its_base(run: Tuple[Path, Path], tmp_path: Path) -> None:
    done = merge_lora(run[1], tmp_path / "out", lora_alpha=ALPHA)
    assert (done["merged"], done["lora_rank"], done["replaced"]) == (7 * SMALL.num_layers, RANK, [])
    assert_close(done["checkpoint"], by_hand(run[1]))


def test_an_adapter_saved_alone_gives_the_same_model(run: Tuple[Path, Path], tmp_path: Path) -> None:
    base, trained = run
    saved = save_adapter(trained, tmp_path / "adapter.ckpt", base=base, lora_alpha=ALPHA)
    assert saved["also"] == ["lm_head.weight"] and saved["bytes"] < trained.stat().st_size / 2
    done = merge_lora(tmp_path / "adapter.ckpt", tmp_path / "merged.ckpt", base=base)
    assert done["lora_alpha"] == ALPHA and done["replaced"] == ["lm_head.weight"]
    assert_close(tmp_path / "merged.ckpt", by_hand(trained))
    join_adapter(tmp_path / "adapter.ckpt", tmp_path / "joined.ckpt", base=base)
    found, wanted = read_all(tmp_path / "joined.ckpt"), read_all(trained)
    wanted = {name: value for name, value in wanted.items() if name.startswith(("model.", "lm_head."))}
    assert set(found) == set(wanted) and all((found[name] == wanted[name]).all() for name in wanted)


def test_without_a_base_the_lm_head_is_left_out_and_named(run: Tuple[Path, Path], tmp_path: Path) -> None:
    saved = save_adapter(run[1], tmp_path / "a.ckpt")
    assert saved["left_out"] == ["lm_head.weight"] and saved["tensors"] == 2 * 7 * SMALL.num_layers
    with pytest.raises(Refused, match="give its base"):
        merge_lora(tmp_path / "a.ckpt", tmp_path / "x.ckpt", lora_alpha=1)
    with pytest.raises(Refused, match="lora_alpha is not noted"):
        merge_lora(tmp_path / "a.ckpt", tmp_path / "x.ckpt", base=run[0])


def test_a_hugging_face_folder_can_be_the_base(run: Tuple[Path, Path], tmp_path: Path) -> None:
    save_adapter(run[1], tmp_path / "a.ckpt", base=run[0])
    done = merge_lora(tmp_path / "a.ckpt", tmp_path / "x.ckpt", base=tmp_path / "hf", lora_alpha=ALPHA, dtype="float16")
    wanted = {name: value.astype(numpy.float16) for name, value in by_hand(run[1]).items()}
    found = read_all(done["checkpoint"])
    assert all(numpy.abs(found[name].astype(float) - wanted[name].astype(float)).max() < 2e-3 for name in wanted)


def test_the_ranks_of_a_sliced_lora_run_are_merged_as_they_lie(run: Tuple[Path, Path], tmp_path: Path) -> None:
    plan = Parallel(data_parallel=2, model_parallel=2)
    slice_checkpoint(run[1], tmp_path / "ranks", plan)
    (tmp_path / "ranks" / "slice.json").unlink()  # as MindFormers leaves them
    held = open_ranks(tmp_path / "ranks", plan, SMALL, Adapter(lora_rank=RANK))
    assert_close(merge_lora(held, tmp_path / "x.ckpt", lora_alpha=ALPHA)["checkpoint"], by_hand(run[1]))
    with pytest.raises(Refused, match=r"holds 4 ranks and no slice\.json"):
        merge_lora(tmp_path / "ranks", tmp_path / "y.ckpt", lora_alpha=ALPHA)


def test_an_adapter_that_does_not_fit_is_refused(run: Tuple[Path, Path], tmp_path: Path) -> None:
    base, trained = run
    with pytest.raises(Refused, match="holds no LoRA adapter"):
        merge_lora(base, tmp_path / "x.ckpt", lora_alpha=1)
    tensors = read_all(trained)
    layer = "model.layers.0.attention.wq"
    half = {name: value for name, value in tensors.items() if name != layer + LORA_B}
    with pytest.raises(Refused, match=rf"only one of the two matrices is there for {layer}"):
        merge_lora(write(tmp_path / "half.ckpt", half), tmp_path / "x.ckpt", lora_alpha=1)
    wide = {**tensors, layer + LORA_A: numpy.ones((RANK, 65), numpy.float32)}
    with pytest.raises(Refused, match=rf"{layer}.weight is \[64, 64\], B A is \[64, 65\]"):
        merge_lora(write(tmp_path / "wide.ckpt", wide), tmp_path / "x.ckpt", lora_alpha=1)
    ranks = {**tensors, layer + LORA_A: numpy.ones((3, 64), numpy.float32)}
    with pytest.raises(Refused, match="different ranks"):
        merge_lora(write(tmp_path / "ranks.ckpt", ranks), tmp_path / "x.ckpt", lora_alpha=1)
    assert not (tmp_path / "x.ckpt").exists()


def test_nothing_replaces_what_it_is_made_from(run: Tuple[Path, Path], tmp_path: Path) -> None:
    base, trained = run
    save_adapter(trained, tmp_path / "a.ckpt", lora_alpha=ALPHA)
    before = {path: path.read_bytes() for path in (base, trained, tmp_path / "a.ckpt")}
    (tmp_path / "link.ckpt").symlink_to(base)
    for call in (
        lambda: merge_lora(trained, trained, lora_alpha=ALPHA),
        lambda: merge_lora(tmp_path / "a.ckpt", tmp_path / "link.ckpt", base=base),
        lambda: merge_lora(tmp_path / "a.ckpt", tmp_path / "a.ckpt", base=base),
        lambda: save_adapter(trained, trained),
        lambda: save_adapter(trained, base, base=base),
        lambda: join_adapter(tmp_path / "a.ckpt", tmp_path / "a.ckpt", base=base),
        lambda: merge_lora(trained, base, base=base, lora_alpha=ALPHA),
        lambda: join_adapter(trained, base, base=tmp_path / "link.ckpt"),
    ):
        with pytest.raises(Refused, match="is what is read; it would be replaced"):
            call()
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("alpha", [0.0, -16.0, float("nan"), float("inf")])
def test_a_lora_alpha_that_adds_nothing_is_refused(run: Tuple[Path, Path], tmp_path: Path, alpha: float) -> None:
    with pytest.raises(Refused, match="lora_alpha must be above 0, found "):
        merge_lora(run[1], tmp_path / "x.ckpt", lora_alpha=alpha)
    assert not (tmp_path / "x.ckpt").exists()


def test_a_merge_that_overflows_float16_is_refused(run: Tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not finite as float16"):
        merge_lora(run[1], tmp_path / "x.ckpt", lora_alpha=1e9, dtype="float16")
    assert not (tmp_path / "x.ckpt").exists()


PROGRAM = """
import sys
from qwenlib.engine import job as jobs
from qwenlib.engine import rank
for path in sys.argv[1:]:
    rank.run(jobs.load(path))
"""


@pytest.mark.stack
def test_merged_logits_equal_the_adapters_in_real_mindformers(run: Tuple[Path, Path], tmp_path: Path) -> None:
    from qwenlib import data
    from qwenlib import profile as profiles
    from qwenlib.data.tokenizer import train_tokenizer
    from qwenlib.engine import render, work
    from qwenlib.engine.job import Job

    base, trained = run
    sizes = ("hidden_size", "num_layers", "num_heads", "vocab_size", "intermediate_size")
    settings = [f"model.{size}={getattr(SMALL, size)}" for size in sizes]
    settings += [f"lora.adapter.lora_rank={RANK}", f"lora.adapter.lora_alpha={ALPHA:g}", "data.seq_length=24"]
    prof = profiles.load("smoke", settings)
    train_tokenizer(list(data.plain_texts(data.sample_path())), SMALL.vocab_size, tmp_path)
    files: Dict[str, Any] = {"vocab_file": tmp_path / "vocab.json", "merges_file": tmp_path / "merges.txt"}
    tokens = work.token_ids(work.base_vocabulary(files["vocab_file"]))
    ids = numpy.random.default_rng(2).integers(0, 300, (2, 24)).tolist()
    save_adapter(trained, tmp_path / "adapter.ckpt", base=base, lora_alpha=ALPHA)
    join_adapter(tmp_path / "adapter.ckpt", tmp_path / "joined.ckpt", base=base)
    merge_lora(tmp_path / "adapter.ckpt", tmp_path / "merged.ckpt", base=base)
    jobs = []
    for name, task in (("joined", prof.task("lora")), ("merged", None)):
        config = render.predict_config(
            prof, output_dir=tmp_path / name, tokens=tokens, adapter_task=task, use_past=False, **files
        )
        checkpoint, result = tmp_path / f"{name}.ckpt", tmp_path / f"{name}.npz"
        job = Job("logits", "CPU", config, str(checkpoint), str(result), {"input_ids": ids})
        jobs.append(str(job.save(tmp_path / f"{name}.json")))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *jobs],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with numpy.load(tmp_path / "joined.npz") as joined, numpy.load(tmp_path / "merged.npz") as merged:
        assert numpy.abs(joined["logits"] - merged["logits"]).max() <= 1e-4
        assert numpy.abs(joined["logits"]).max() > 0.1
    assert check(base, tmp_path / "merged.ckpt")["max_abs_diff"] > 0.01
