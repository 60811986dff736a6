"""Back to Hugging Face, comparing, listing, statistics, and the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import numpy
import pytest
from safetensors.numpy import load_file, save_file
from weights_kit import SMALL, make_folder, read_all, tensors_of

from qwenlib.errors import Refused
from qwenlib.profile import Parallel
from qwenlib.weights import check, convert, export, figure, layer_statistics, list_checkpoints, slice_checkpoint
from qwenlib.weights.checkpoint import CheckpointWriter
from qwenlib.weights.compare import table
from qwenlib.weights.export import shard_bytes

ROOT = Path(__file__).resolve().parents[2]


def loaded(folder: Path) -> Any:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(str(file)))
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_a_float16_model_comes_back_bit_by_bit(hf: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    folder = hf(dtype="float16", shards=2, tied=tied)
    convert(folder, tmp_path / "md")
    done = export(tmp_path / "md", tmp_path / "back", torch_ckpt_dir=folder, max_shard_size="100KB")
    before, after = loaded(folder), loaded(tmp_path / "back")
    assert set(before) == set(after) and done["tied"] is tied and len(done["files"]) > 2
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(after)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in after.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(str(tmp_path / "back" / file))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_head_that_was_trained_apart_is_no_longer_tied(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf(tied=True)
    convert(folder, tmp_path / "x.ckpt", "float32")
    tensors = read_all(tmp_path / "x.ckpt")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with CheckpointWriter(tmp_path / "y.ckpt") as out:
        for name, value in tensors.items():
            out.add(name, value)
    assert export(tmp_path / "y.ckpt", tmp_path / "back", torch_ckpt_dir=folder)["tied"] is False
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in loaded(tmp_path / "back")


def test_slices_are_exported_and_compared_as_they_are(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf()
    plan = Parallel(data_parallel=2, model_parallel=2, pipeline_stage=2, micro_batch_num=2)
    slice_checkpoint(folder, tmp_path / "ranks", plan, dtype="float32")
    export(tmp_path / "ranks", tmp_path / "back", torch_ckpt_dir=folder)
    assert check(tmp_path / "back", folder)["equal"] and check(tmp_path / "ranks", tmp_path / "back")["equal"]


@pytest.mark.stack
def test_transformers_loads_it_and_computes_the_same(hf: Callable[..., Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = hf(shards=2)
    convert(folder, tmp_path / "md", "float32")
    export(tmp_path / "md", tmp_path / "back", torch_ckpt_dir=folder, max_shard_size="200KB")
    export(tmp_path / "md", tmp_path / "by_sizes", model=SMALL)
    ids = torch.arange(12)[None]
    found = []
    for place in (folder, tmp_path / "back", tmp_path / "by_sizes"):
        network, report = AutoModelForCausalLM.from_pretrained(
            str(place), local_files_only=True, output_loading_info=True
        )
        assert not any(report.values()), report
        with torch.no_grad():
            found.append(network.eval()(ids).logits)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_cannot_be_exported_is_refused(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf()
    checkpoint = convert(folder, tmp_path / "x.ckpt", "float32")["checkpoint"]
    with pytest.raises(Refused, match="give --torch_ckpt_dir"):
        export(checkpoint, tmp_path / "out")
    with CheckpointWriter(tmp_path / "less.ckpt") as out:
        for name, value in list(read_all(checkpoint).items())[2:]:
            out.add(name, value[:-1] if name == "lm_head.weight" else value)
    with pytest.raises(Refused, match=r"embedding_weight is missing.*attention_norm.*missing; lm_head.weight is \[319"):
        export(tmp_path / "less.ckpt", tmp_path / "out", torch_ckpt_dir=folder)
    with pytest.raises(Refused, match="holds another model"):
        export(checkpoint, make_folder(tmp_path / "other", shards=2), model=SMALL)
    assert not (tmp_path / "out").exists()


def test_the_folder_that_the_model_came_from_is_not_replaced(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf(dtype="float16")
    convert(folder, tmp_path / "x.ckpt")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    (tmp_path / "link").symlink_to(folder)
    for source, out, how in (
        (tmp_path / "x.ckpt", folder, {"torch_ckpt_dir": folder}),
        (tmp_path / "x.ckpt", tmp_path / "link", {"torch_ckpt_dir": folder}),
        (folder, folder, {"model": SMALL}),
    ):
        with pytest.raises(Refused, match="is what is read; it would be replaced"):
            export(source, out, **how)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_the_tokenizer_comes_along_from_a_folder_below_home(
    hf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(hf(), tmp_path / "x.ckpt")
    (tmp_path / "hf" / "vocab.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    export(tmp_path / "x.ckpt", tmp_path / "back", torch_ckpt_dir="~/hf")
    assert (tmp_path / "back" / "vocab.json").read_text() == "{}"


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 1572864), ("300", 300)])
def test_shard_sizes(text: str, size: int) -> None:
    assert shard_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5XB", "-1GB", "0GB"])
def test_wrong_shard_sizes_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="max_shard_size"):
        shard_bytes(text)


def test_check_finds_the_one_value_that_differs(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf()
    values = tensors_of(SMALL)
    values["model.layers.2.mlp.down_proj.weight"][63, 95] += 0.25
    other = make_folder(tmp_path / "other", values=values)
    found = check(folder, other)
    assert (found["equal"], found["different"]) == (False, 1)
    assert found["max_abs_diff"] == pytest.approx(0.25, abs=1e-6)
    assert [row["name"] for row in found["rows"] if not row["equal"]] == ["model.layers.2.feed_forward.w2.weight"]
    assert "w2.weight" in table(found) and table(found).endswith("2.500e-01")
    assert check(folder, other, tolerance=0.3)["equal"] and check(folder, folder)["equal"]


def test_check_counts_nan_against_a_number_as_different(tmp_path: Path) -> None:
    values = tensors_of(SMALL)
    values["model.norm.weight"][0] = numpy.nan
    spoiled, again = make_folder(tmp_path / "a", values=values), make_folder(tmp_path / "b", values=values)
    assert check(spoiled, again)["equal"]
    found = check(spoiled, make_folder(tmp_path / "c"))
    assert not found["equal"] and numpy.isnan(found["max_abs_diff"])


def test_check_takes_a_cast_for_equal_and_says_so(tmp_path: Path) -> None:
    values = tensors_of(SMALL)
    values["lm_head.weight"][0, :4] = [3e-6, -2e-7, 1e-9, 5e-5]  # float16 has fewer digits there, and then none
    folder = make_folder(tmp_path / "brain", dtype="bfloat16", values=values)
    convert(folder, tmp_path / "half.ckpt")
    for sides in ((folder, tmp_path / "half.ckpt"), (tmp_path / "half.ckpt", folder)):
        found = check(*sides)
        row = next(row for row in found["rows"] if row["name"] == "lm_head.weight")
        assert found["equal"] and row["rounded"] and 0 < row["max_abs_diff"] < 1e-7 and found["rounded"] >= 1
        assert "equal up to the rounding" in table(found)
    tensors = read_all(tmp_path / "half.ckpt")
    tensors["lm_head.weight"][0, 0] = numpy.nextafter(tensors["lm_head.weight"][0, 0], numpy.float16(1))
    with CheckpointWriter(tmp_path / "odd.ckpt") as out:
        for name, value in tensors.items():
            out.add(name, value)
    assert check(folder, tmp_path / "odd.ckpt")["different"] == 1, "one step of float16 is no cast"


def test_check_does_not_take_a_clamped_value_for_a_cast(tmp_path: Path) -> None:
    values = tensors_of(SMALL)
    values["model.norm.weight"][0] = 1e6
    folder = make_folder(tmp_path / "big", values=values)
    convert(folder, tmp_path / "x.ckpt", clamp=True)
    found = check(folder, tmp_path / "x.ckpt")
    assert [row["name"] for row in found["rows"] if not row["equal"]] == ["model.norm_out.weight"]
    tensors = read_all(tmp_path / "x.ckpt")
    tensors["model.norm_out.weight"][0] = numpy.inf
    with CheckpointWriter(tmp_path / "inf.ckpt") as out:
        for name, value in tensors.items():
            out.add(name, value)
    assert check(folder, tmp_path / "inf.ckpt")["different"] == 1 and not check(folder, tmp_path / "inf.ckpt")["equal"]


def test_check_tells_shapes_and_names_apart(tmp_path: Path) -> None:
    sides = {"a": {"x": numpy.ones(3), "y": numpy.ones(2)}, "b": {"x": numpy.ones(4), "z": numpy.ones(2)}}
    for name, tensors in sides.items():
        with CheckpointWriter(tmp_path / f"{name}.ckpt") as out:
            for key, value in tensors.items():
                out.add(key, value.astype(numpy.float32))
    found = check(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    assert found["only_in_first"] == ["y"] and found["only_in_second"] == ["z"] and found["max_abs_diff"] is None
    assert "only in the first: y" in table(found)


def test_a_run_lists_its_checkpoints_with_step_and_loss(tmp_path: Path) -> None:
    for step in (10, 20):
        place = tmp_path / "output" / "checkpoint" / "rank_0" / f"qwen2_rank_0-{step}_2.ckpt"
        place.parent.mkdir(parents=True, exist_ok=True)
        with CheckpointWriter(place) as out:
            out.add("lm_head.weight", numpy.ones(3, numpy.float32))
            out.add("adam_m.lm_head.weight", numpy.ones(3, numpy.float32))
            out.add("global_step", numpy.array([step], numpy.int32))
    place.with_name("qwen2_rank_0-30_2.ckpt").write_bytes(place.read_bytes()[:40])
    rows = [{"step": 10, "loss": 2.5}, {"step": 20, "loss": 1.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3')
    found = list_checkpoints(tmp_path)
    assert [(row["step"], row["loss"], row["rank"], row["optimizer"]) for row in found] == [
        (10, 2.5, 0, True),
        (20, 1.25, 0, True),
        (None, None, 0, False),
    ]
    assert "not a whole MindSpore checkpoint" in found[2]["problem"]
    with pytest.raises(Refused, match=r"holds no \.ckpt file"):
        list_checkpoints(ROOT / "docs")


def test_the_plot_shows_a_swap(hf: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    values = tensors_of(SMALL)
    for layer in range(SMALL.num_layers):
        values[f"model.layers.{layer}.mlp.gate_proj.weight"] *= 3
    folder = make_folder(tmp_path / "loud", values=values)
    convert(folder, tmp_path / "x.ckpt", "float32")
    right = {(row["layer"], row["part"]): row["rms"] for row in layer_statistics(tmp_path / "x.ckpt")}
    assert len(right) == 12 * SMALL.num_layers and right[0, "w1.weight"] > 2.5 * right[0, "w3.weight"]
    assert right == {(row["layer"], row["part"]): row["rms"] for row in layer_statistics(folder)}
    picture = figure(folder, tmp_path / "x.ckpt")
    for axes in picture.axes:
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        assert len(axes.lines) >= 6 and all((values > 0).all() for values in lines.values())
    picture.savefig(tmp_path / "x.png")
    assert largest_gap(picture) == 1.0, "a right conversion: every circle sits on its line"
    tensors = read_all(tmp_path / "x.ckpt")
    with CheckpointWriter(tmp_path / "swapped.ckpt") as out:
        for name, value in tensors.items():
            other = {"w1": "w3", "w3": "w1"}.get(name.split(".")[-2], "")
            out.add(name, tensors[name.replace(name.split(".")[-2], other)] if other else value)
    assert largest_gap(figure(folder, tmp_path / "swapped.ckpt")) > 2.5


def largest_gap(picture: Any) -> float:
    """The largest ratio between a circle and the line of its colour."""
    gaps = [1.0]
    for axes in picture.axes:
        for line in axes.lines:
            for circles in axes.lines:
                alike = line.get_color() == circles.get_color()
                if alike and line.get_linestyle() == "-" and circles.get_marker() == "o":
                    ratio = line.get_ydata() / numpy.asarray(circles.get_ydata())
                    gaps.append(float(numpy.maximum(ratio, 1 / ratio).max()))
    return max(gaps)


def command(*arguments: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "qwenlib", "weights", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_the_commands_go_there_and_back(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf(dtype="float16")
    done = command("convert", "--torch_ckpt_dir", folder, "--mindspore_ckpt_path", tmp_path / "md", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["tensors"] == 39, done.stderr
    done = command(
        "slice",
        "--source",
        tmp_path / "md",
        "--output_dir",
        tmp_path / "ranks",
        "--profile",
        "smoke",
        "--task",
        "finetune",
    )
    assert done.returncode == 0 and "2 of 2 ranks" in done.stdout, done.stderr
    done = command("merge", "--rank_dir", tmp_path / "ranks", "--mindspore_ckpt_path", tmp_path / "full.ckpt")
    assert done.returncode == 0, done.stderr
    done = command(
        "export", "--source", tmp_path / "full.ckpt", "--output_dir", tmp_path / "back", "--torch_ckpt_dir", folder
    )
    assert done.returncode == 0, done.stderr
    done = command("check", tmp_path / "back", folder, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["equal"] is True
    values = {name: value * 2 for name, value in loaded(folder).items()}
    save_file(values, str(folder / "model.safetensors"))
    done = command("check", tmp_path / "back", folder)
    assert done.returncode == 1 and "different" in done.stdout
    done = command("convert", "--torch_ckpt_dir", tmp_path / "none", "--mindspore_ckpt_path", tmp_path / "x.ckpt")
    assert done.returncode == 2 and done.stderr.startswith("qwenlib: refused: there is no weights folder")
