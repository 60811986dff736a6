"""Conversion: every input form gives the same tensors, and every wrong input one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict

import numpy
import pytest
from safetensors.numpy import save_file
from weights_kit import SMALL, config_of, make_folder, read_all, tensors_of

from qwenlib.errors import Refused, WorkFailed
from qwenlib.profile import Model
from qwenlib.weights import convert, read_folder
from qwenlib.weights.names import count, entries

GROUPED = Model(hidden_size=64, num_layers=2, num_heads=8, n_kv_heads=2, vocab_size=320, intermediate_size=96)


def expected(model: Model, dtype: str, source: str = "float32", tied: bool = False) -> Dict[str, numpy.ndarray]:
    """What upstream's renaming and casting gives, said with numpy."""
    values = tensors_of(model, tied=tied)
    if source == "bfloat16":
        values = {name: cut(value) for name, value in values.items()}
    values = {name: value.astype(source if source != "bfloat16" else "float32") for name, value in values.items()}
    if tied:
        values["lm_head.weight"] = values["model.embed_tokens.weight"]
    return {entry.ms: values[entry.hf].astype(dtype) for entry in entries(model)}


def cut(value: numpy.ndarray) -> numpy.ndarray:
    return (numpy.ascontiguousarray(value).view(numpy.uint32) & 0xFFFF0000).view(numpy.float32)


def assert_same(found: Dict[str, numpy.ndarray], wanted: Dict[str, numpy.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("source", "shards"), [("float32", 1), ("float16", 3), ("bfloat16", 1), ("bfloat16", 4)])
def test_every_form_gives_upstreams_tensors(hf: Callable[..., Path], dtype: str, source: str, shards: int) -> None:
    folder = hf(dtype=source, shards=shards)
    done = convert(folder, folder.parent / "model_dir", dtype)
    out = folder.parent / "model_dir" / "rank_0" / "qwen1_5.ckpt"
    assert done["checkpoint"] == out and done["tensors"] == count(SMALL)["tensors"]
    assert done["bytes"] == out.stat().st_size and done["parameters"] == count(SMALL)["parameters"]
    assert_same(read_all(out), expected(SMALL, dtype, source))
    assert [item.name for item in out.parent.glob("*.ckpt")] == ["qwen1_5.ckpt"]


def test_tied_embeddings_are_written_as_lm_head(hf: Callable[..., Path], tmp_path: Path) -> None:
    convert(hf(tied=True, dtype="float16"), tmp_path / "x.ckpt")
    found = read_all(tmp_path / "x.ckpt")
    assert_same(found, expected(SMALL, "float16", "float16", tied=True))
    assert (found["lm_head.weight"] == found["model.tok_embeddings.embedding_weight"]).all()


def test_grouped_query_heads(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", GROUPED)
    assert read_folder(folder).sizes["n_kv_heads"] == 2
    convert(folder, tmp_path / "x.ckpt", "float32")
    assert read_all(tmp_path / "x.ckpt")["model.layers.1.attention.wk.weight"].shape == (16, 64)


def test_meta_names_the_sources_with_their_true_sha256(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf(shards=3, dtype="bfloat16")
    convert(folder, tmp_path / "x.ckpt")
    meta = json.loads((tmp_path / "x.ckpt.meta.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert [Path(item["file"]).name for item in meta["sources"]] == [file.name for file in files]
    for item, file in zip(meta["sources"], files):
        assert item["bytes"] == file.stat().st_size
        assert item["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (meta["dtype"], meta["tensors"]) == ("float16", count(SMALL)["tensors"])


def test_sha256_covers_gaps_and_leftover_tensors(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf()
    values = tensors_of(SMALL)
    values["model.layers.0.self_attn.rotary_emb.inv_freq"] = numpy.ones(8, numpy.float32)
    save_file(values, str(folder / "model.safetensors"))
    raw = (folder / "model.safetensors").read_bytes() + b"behind the last tensor"
    (folder / "model.safetensors").write_bytes(raw)
    convert(folder, tmp_path / "x.ckpt", "float32")
    meta = json.loads((tmp_path / "x.ckpt.meta.json").read_text())
    assert meta["sources"][0]["sha256"] == hashlib.sha256(raw).hexdigest()


def spoiled() -> Dict[str, numpy.ndarray]:
    values = tensors_of(SMALL)
    values["model.layers.1.mlp.up_proj.weight"][3, :5] = 1e6
    values["lm_head.weight"][0, 0] = -7e4
    return values


def test_overflow_is_counted_by_tensor_and_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", values=spoiled())
    with pytest.raises(Refused, match=r"6 values are not finite as float16 .*w3\.weight: 5, lm_head\.weight: 1.*clamp"):
        convert(folder, tmp_path / "model_dir")
    assert [item for item in (tmp_path / "model_dir").rglob("*") if item.is_file()] == []
    assert convert(folder, tmp_path / "wide.ckpt", "float32")["clamped"] == {}
    done = convert(folder, tmp_path / "x.ckpt", clamp=True)
    assert done["clamped"] == {"model.layers.1.feed_forward.w3.weight": 5, "lm_head.weight": 1}
    assert read_all(tmp_path / "x.ckpt")["lm_head.weight"][0, 0] == -65504


def test_nan_in_the_source_is_reported(tmp_path: Path) -> None:
    values = tensors_of(SMALL)
    values["model.norm.weight"][2] = numpy.nan
    values["model.norm.weight"][3] = numpy.inf
    done = convert(make_folder(tmp_path / "hf", values=values), tmp_path / "x.ckpt")
    assert done["nonfinite"] == {"model.norm_out.weight": 2} and done["clamped"] == {}


def test_all_wrong_tensors_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    values = tensors_of(SMALL)
    del values["model.layers.0.mlp.gate_proj.weight"]
    values["model.norm.weight"] = numpy.ones(63, numpy.float32)
    values["visual.patch.weight"] = numpy.ones(3, numpy.float32)
    folder = make_folder(tmp_path / "hf", values=values)
    with pytest.raises(Refused) as told:
        convert(folder, tmp_path / "model_dir")
    for part in ("gate_proj.weight is missing", r"model.norm.weight is [63]", "visual.patch.weight is unknown"):
        assert part in str(told.value)
    assert not (tmp_path / "model_dir").exists()


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    values: Dict[str, Any] = tensors_of(SMALL)
    values["lm_head.weight"] = values["lm_head.weight"].astype(numpy.int8)
    folder = make_folder(tmp_path / "hf")
    save_file(values, str(folder / "model.safetensors"))
    with pytest.raises(Refused, match=r"lm_head\.weight has the number type int8"):
        convert(folder, tmp_path / "x.ckpt")


@pytest.mark.parametrize("model_type", ["llama", "qwen", "qwen2_moe", None])
def test_other_models_are_refused_by_name(hf: Callable[..., Path], tmp_path: Path, model_type: Any) -> None:
    folder = hf()
    (folder / "config.json").write_text(json.dumps({**config_of(SMALL), "model_type": model_type}))
    with pytest.raises(Refused, match=repr(model_type)):
        convert(folder, tmp_path / "x.ckpt")


@pytest.mark.parametrize("keep", [0, 5, 8, 300, 0.5, 0.999])
def test_a_truncated_shard_is_refused(hf: Callable[..., Path], tmp_path: Path, keep: float) -> None:
    folder = hf(shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, int(keep if keep >= 1 or not keep else keep * size))
    with pytest.raises(Refused, match="model-00002-of-00003"):
        convert(folder, tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_a_wrong_index_is_refused(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf(shards=3)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())

    def refused(weight_map: Any, match: str) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(Refused, match=match):
            convert(folder, tmp_path / "x.ckpt")

    names = sorted(good["weight_map"])
    refused({}, "weight_map")
    refused({**good["weight_map"], names[0]: "model-00009-of-00003.safetensors"}, "lacks 1 of the 4 weight files")
    refused({**good["weight_map"], names[0]: "../../etc/passwd"}, "only names of files beside it")
    other = next(file for file in good["weight_map"].values() if file != good["weight_map"][names[0]])
    refused({**good["weight_map"], names[0]: other}, f"{names[0]} is missing .the index says it is in {other}")
    refused({**good["weight_map"], "extra.weight": other}, "extra.weight is unknown")


def test_a_damaged_header_is_refused(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf()
    for table in (
        [1],
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
    ):
        head = json.dumps(table).encode()
        (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)
        with pytest.raises(Refused, match=r"model\.safetensors"):
            convert(folder, tmp_path / "x.ckpt")


@pytest.mark.parametrize("head", [b"[" * 100_000, b"{" * 50, b'{"a":' * 30_000])
def test_a_header_that_is_no_json_is_refused(hf: Callable[..., Path], tmp_path: Path, head: bytes) -> None:
    (hf() / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(Refused, match=r"model\.safetensors is not a safetensors file: its header is not JSON"):
        convert(tmp_path / "hf", tmp_path / "x.ckpt")


def test_a_disk_that_fails_to_give_the_source_is_told_as_that(
    hf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = hf()
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(WorkFailed, match=r"model\.safetensors, byte \d+: reading failed: Input/output error"):
        convert(folder, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == [folder]


def test_an_older_checkpoint_in_rank_0_is_refused(hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = hf()
    convert(folder, tmp_path / "model_dir")
    convert(folder, tmp_path / "model_dir")  # its own file is replaced
    (tmp_path / "model_dir" / "rank_0" / "zz.ckpt").write_bytes(b"old")
    with pytest.raises(Refused, match=r"already holds zz\.ckpt"):
        convert(folder, tmp_path / "model_dir")
    with pytest.raises(Refused, match=r"already holds zz\.ckpt"):
        convert(folder, tmp_path / "model_dir" / "rank_0" / "qwen1_5.ckpt")


@pytest.mark.parametrize("name", ["x.bin", "x.safetensors", "x.pt"])
def test_a_name_of_another_kind_is_refused(hf: Callable[..., Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=rf"{name}: a MindSpore checkpoint must end in \.ckpt; or give the folder"):
        convert(hf(), tmp_path / name)
    (tmp_path / "plain").write_text("x")
    with pytest.raises(Refused, match=r"plain: a MindSpore checkpoint must end in \.ckpt"):
        convert(tmp_path / "hf", tmp_path / "plain")


def test_too_little_disk_is_told_first(
    hf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("qwenlib.files.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(Refused, match="only 0 MiB are free"):
        convert(hf(), tmp_path / "model_dir")
    assert not (tmp_path / "model_dir").exists()


def torch_folder(folder: Path, dtype: str, shards: int) -> Path:
    import torch

    make_folder(folder)
    (folder / "model.safetensors").unlink()
    values = {name: torch.from_numpy(value).to(getattr(torch, dtype)) for name, value in tensors_of(SMALL).items()}
    if shards == 1:
        torch.save(values, folder / "pytorch_model.bin")
        return folder
    weight_map = {}
    for number in range(shards):
        part = dict(sorted(values.items())[number::shards])
        torch.save(part, folder / f"pytorch_model-{number}.bin")
        weight_map.update(dict.fromkeys(part, f"pytorch_model-{number}.bin"))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.stack
@pytest.mark.parametrize(("dtype", "shards"), [("bfloat16", 1), ("float16", 2), ("float32", 1)])
def test_bin_files_give_what_torch_casts(tmp_path: Path, dtype: str, shards: int) -> None:
    torch = pytest.importorskip("torch")
    folder = torch_folder(tmp_path / "hf", dtype, shards)
    convert(folder, tmp_path / "x.ckpt")
    found = read_all(tmp_path / "x.ckpt")
    for entry in entries(SMALL):
        value = torch.from_numpy(tensors_of(SMALL)[entry.hf]).to(getattr(torch, dtype)).to(torch.float16).numpy()
        assert found[entry.ms].tobytes() == value.tobytes()


@pytest.mark.stack
def test_tensors_that_share_a_storage_are_found(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = make_folder(tmp_path / "hf", tied=True)
    (folder / "model.safetensors").unlink()
    values = {name: torch.from_numpy(value) for name, value in tensors_of(SMALL, tied=True).items()}
    values["lm_head.weight"] = values["model.embed_tokens.weight"]  # as save_pretrained of a tied model leaves it
    torch.save(values, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "x.ckpt", "float32")
    assert_same(read_all(tmp_path / "x.ckpt"), expected(SMALL, "float32", tied=True))
    meta = json.loads((tmp_path / "x.ckpt.meta.json").read_text())
    raw = (folder / "pytorch_model.bin").read_bytes()
    assert meta["sources"][0]["sha256"] == hashlib.sha256(raw).hexdigest()


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.stack
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = torch_folder(tmp_path / "hf", "float32", 1)
    torch.save({"lm_head.weight": Hostile(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(Refused, match="holds more than tensors"):
        convert(folder, tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "x.ckpt").exists()


@pytest.mark.stack
def test_a_truncated_or_old_bin_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = torch_folder(tmp_path / "hf", "float32", 1)
    path = folder / "pytorch_model.bin"
    values = torch.load(path, weights_only=True)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(Refused, match=r"pytorch_model\.bin is not a whole torch file"):
        convert(folder, tmp_path / "x.ckpt")
    torch.save(values, path, _use_new_zipfile_serialization=False)
    with pytest.raises(Refused, match=r"pytorch_model\.bin"):
        convert(folder, tmp_path / "x.ckpt")


@pytest.mark.stack
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_real_mindspore_loads_it(hf: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    mindspore = pytest.importorskip("mindspore")
    convert(hf(dtype="bfloat16", shards=2), tmp_path / "model_dir", dtype)
    found = mindspore.load_checkpoint(str(tmp_path / "model_dir" / "rank_0" / "qwen1_5.ckpt"))
    assert_same({name: value.asnumpy() for name, value in found.items()}, expected(SMALL, dtype, "bfloat16"))
