"""From a Hugging Face folder to a MindSpore checkpoint: what a user of 02_weights meets first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest

from qwenlib import profile as profiles
from qwenlib import weights
from qwenlib.errors import Refused
from qwenlib.profile import Model

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 40, "intermediate_size": 24}
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}
Tensors = Dict[str, Any]


@pytest.fixture
def tensors() -> Tensors:
    """Random float32 tensors of that network under Hugging Face's names."""
    numpy = pytest.importorskip("numpy")
    draw = numpy.random.default_rng(0)
    return {entry.hf: draw.standard_normal(entry.shape).astype("float32") for entry in weights.entries(Model(**SIZES))}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder as Hugging Face ships it; several lists of names make several shards and an index."""
    save_file = pytest.importorskip("safetensors.numpy").save_file

    def make(tensors: Tensors, shards: Optional[List[List[str]]] = None, **config: Any) -> Path:
        folder = tmp_path / "hf"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
        if shards is None:
            save_file(tensors, str(folder / "model.safetensors"))
            return folder
        where = {}
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            save_file({name: tensors[name] for name in names}, str(folder / file))
            where.update(dict.fromkeys(names, file))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        return folder

    return make


def halves(tensors: Tensors) -> List[List[str]]:
    names = list(tensors)
    return [names[: len(names) // 2], names[len(names) // 2 :]]


def files(folder: Path) -> List[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_7b_has_387_tensors_and_as_many_parameters_as_upstream_counts() -> None:
    found = weights.entries(profiles.load("lora_7b_910a").model)
    total = 0
    for entry in found:
        size = 1
        for side in entry.shape:
            size *= side
        total += size
    assert len(found) == len({entry.ms for entry in found}) == len({entry.hf for entry in found}) == 387
    assert total == 7_721_324_544, "the 7721 M that MindFormers logs"


def test_names_are_those_of_upstream_s_script() -> None:
    found = {entry.hf: (entry.ms, entry.shape) for entry in weights.entries(Model(**SIZES))}
    assert found["model.embed_tokens.weight"] == ("model.tok_embeddings.embedding_weight", (40, 16))
    assert found["model.layers.1.self_attn.k_proj.bias"] == ("model.layers.1.attention.wk.bias", (8,))
    assert found["model.layers.1.self_attn.v_proj.weight"] == ("model.layers.1.attention.wv.weight", (8, 16))
    assert found["model.layers.1.self_attn.q_proj.bias"] == ("model.layers.1.attention.wq.bias", (16,))
    assert found["model.layers.1.self_attn.o_proj.weight"] == ("model.layers.1.attention.wo.weight", (16, 16))
    assert found["model.layers.1.input_layernorm.weight"] == ("model.layers.1.attention_norm.weight", (16,))
    assert found["model.layers.1.post_attention_layernorm.weight"] == ("model.layers.1.ffn_norm.weight", (16,))
    assert found["model.layers.0.mlp.gate_proj.weight"] == ("model.layers.0.feed_forward.w1.weight", (24, 16))
    assert found["model.layers.0.mlp.down_proj.weight"] == ("model.layers.0.feed_forward.w2.weight", (16, 24))
    assert found["model.layers.0.mlp.up_proj.weight"] == ("model.layers.0.feed_forward.w3.weight", (24, 16))
    assert found["model.norm.weight"] == ("model.norm_out.weight", (16,))
    assert found["lm_head.weight"] == ("lm_head.weight", (40, 16))


def test_the_sizes_of_the_folder_are_read(write: Callable[..., Path], tensors: Tensors) -> None:
    folder = weights.read_folder(write(tensors))
    assert folder.sizes == {**SIZES, "rms_norm_eps": 1e-5, "theta": 10000.0, "max_position_embedding": 64}
    assert folder.tied is False
    model = folder.model(profiles.load("smoke").model)
    assert (model.hidden_size, model.n_kv_heads, model.compute_dtype) == (16, 2, "float32")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"there is no weights folder .*none"):
        weights.read_folder(tmp_path / "none")
    (tmp_path / "README.md").touch()
    with pytest.raises(Refused, match=rf"README\.md is a file; give the whole folder of the model, here {tmp_path}\."):
        weights.read_folder(tmp_path / "README.md")
    with pytest.raises(Refused, match=r"has no config.json \(it holds: README.md\)"):
        weights.read_folder(tmp_path)


def test_another_architecture_is_refused_by_name(write: Callable[..., Path], tensors: Tensors) -> None:
    with pytest.raises(Refused, match=r"config.json: model_type is 'llama'; only Qwen1.5"):
        weights.read_folder(write(tensors, model_type="llama"))


def test_a_missing_shard_is_named(write: Callable[..., Path], tensors: Tensors) -> None:
    folder = write(tensors, halves(tensors))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Refused, match=r"lacks 1 of the 2 .*model-00002-of-00002.safetensors"):
        weights.read_folder(folder)


def test_missing_unknown_and_misshapen_tensors_are_told_at_once(write: Callable[..., Path], tensors: Tensors) -> None:
    del tensors["model.norm.weight"]
    tensors["model.layers.9.extra"] = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    with pytest.raises(Refused) as refused:
        weights.read_folder(write(tensors))
    said = str(refused.value)
    for part in ("model.norm.weight is missing", "lm_head.weight is [39, 16]", "[40, 16]", "model.layers.9.extra is"):
        assert part in said


def test_a_file_that_was_cut_off_is_refused(write: Callable[..., Path], tensors: Tensors) -> None:
    folder = write(tensors)
    raw = (folder / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(raw) - 1):
        (folder / "model.safetensors").write_bytes(raw[:length])
        with pytest.raises(Refused, match=r"model.safetensors.*Download it again"):
            weights.read_folder(folder)


def test_the_checkpoint_lies_where_mindformers_looks(write: Callable[..., Path], tensors: Tensors) -> None:
    folder = write(tensors, halves(tensors))
    found = weights.convert(folder, folder.parent / "model_dir")
    assert found["checkpoint"] == weights.locate(folder.parent / "model_dir")
    assert found["checkpoint"] == folder.parent / "model_dir" / "rank_0" / "qwen1_5.ckpt"
    assert (found["tensors"], found["dtype"], found["sizes"]["vocab_size"]) == (27, "float16", 40)
    assert found["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert not [name for name in files(folder.parent / "model_dir") if name.endswith(".part")]


def test_converting_twice_gives_the_same_bytes(write: Callable[..., Path], tensors: Tensors, tmp_path: Path) -> None:
    folder = write(tensors)
    one = weights.convert(folder, tmp_path / "one.ckpt")["checkpoint"]
    two = weights.convert(folder, tmp_path / "two.ckpt")["checkpoint"]
    assert one.read_bytes() == two.read_bytes()


def test_an_older_checkpoint_in_the_folder_is_refused(
    write: Callable[..., Path], tensors: Tensors, tmp_path: Path
) -> None:
    (tmp_path / "model_dir" / "rank_0").mkdir(parents=True)
    (tmp_path / "model_dir" / "rank_0" / "older.ckpt").touch()
    with pytest.raises(Refused, match=r"rank_0 already holds older.ckpt"):
        weights.convert(write(tensors), tmp_path / "model_dir")
    assert files(tmp_path / "model_dir") == ["rank_0/older.ckpt"]


def test_values_that_float16_cannot_hold_are_refused_and_nothing_is_left(
    write: Callable[..., Path], tensors: Tensors, tmp_path: Path
) -> None:
    tensors["lm_head.weight"][3, 4] = 1e6
    with pytest.raises(Refused, match=r"lm_head.weight"):
        weights.convert(write(tensors), tmp_path / "model_dir")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_unknown_number_type_is_refused(write: Callable[..., Path], tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"--dtype must be one of float16, float32, found 'int8'"):
        weights.convert(write(tensors), tmp_path / "x.ckpt", dtype="int8")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.stack
def test_mindspore_reads_every_value(write: Callable[..., Path], tensors: Tensors, tmp_path: Path, dtype: str) -> None:
    import mindspore
    import numpy

    folder = write(tensors, halves(tensors))
    found = mindspore.load_checkpoint(str(weights.convert(folder, tmp_path / "x.ckpt", dtype=dtype)["checkpoint"]))
    wanted = weights.entries(Model(**SIZES))
    assert list(found) == [entry.ms for entry in wanted]
    for entry in wanted:
        value = found[entry.ms].asnumpy()
        assert value.dtype == dtype and numpy.array_equal(value, tensors[entry.hf].astype(dtype)), entry.ms


@pytest.mark.stack
def test_a_tied_head_is_written(write: Callable[..., Path], tensors: Tensors, tmp_path: Path) -> None:
    import mindspore
    import numpy

    del tensors["lm_head.weight"]
    folder = write(tensors, tie_word_embeddings=True)
    assert weights.read_folder(folder).tied is True
    found = mindspore.load_checkpoint(str(weights.convert(folder, tmp_path / "x.ckpt", dtype="float32")["checkpoint"]))
    assert numpy.array_equal(found["lm_head.weight"].asnumpy(), tensors["model.embed_tokens.weight"])


def test_a_checkpoint_is_found_by_file_rank_folder_or_model_dir(tmp_path: Path) -> None:
    file = tmp_path / "model_dir" / "rank_1" / "x.ckpt"
    file.parent.mkdir(parents=True)
    file.touch()
    for path in (file, file.parent, tmp_path / "model_dir"):
        assert weights.locate(path, rank=1) == file
    with pytest.raises(Refused, match=r"model_dir holds no .ckpt file, neither in rank_0/ nor directly"):
        weights.locate(tmp_path / "model_dir")
    (file.parent / "y.ckpt").touch()
    with pytest.raises(Refused, match=r"holds 2 checkpoints \(x.ckpt, y.ckpt\); name the one that is meant"):
        weights.locate(file.parent)
    (tmp_path / "x.bin").touch()
    with pytest.raises(Refused, match=r"x.bin is no MindSpore checkpoint"):
        weights.locate(tmp_path / "x.bin")
    with pytest.raises(Refused, match="there is no checkpoint"):
        weights.locate(tmp_path / "none")


@pytest.mark.stack
def test_the_tiny_model_is_laid_out_as_hugging_face_ships_one(tmp_path: Path) -> None:
    from transformers import Qwen2ForCausalLM

    from qwenlib import data

    model = profiles.load(
        "smoke", ["model.hidden_size=32", "model.num_layers=3", "model.vocab_size=300", "model.n_kv_heads=2"]
    ).model
    texts = data.plain_texts(data.sample_path())[:300]
    made = [weights.make_tiny(tmp_path / name, texts, model, steps=steps) for name, steps in (("a", 8), ("b", 8))]
    one = tmp_path / "a"
    assert {"config.json", "vocab.json", "merges.txt", "tokenizer_config.json", "model.safetensors.index.json"} <= set(
        files(one)
    )
    assert len(list(one.glob("model-*.safetensors"))) > 1, "sharded, as the real ones"
    assert made[0]["last_loss"] < made[0]["first_loss"]
    network = Qwen2ForCausalLM.from_pretrained(str(one), local_files_only=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == made[0]["parameters"]
    folder = weights.read_folder(one)
    assert folder.sizes["num_layers"] == 3 and folder.sizes["hidden_size"] == 32
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), "the same seed, the same weights"
