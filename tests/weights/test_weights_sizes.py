"""config.json judged, and every size of the family by shape (files with holes: no disk is used)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from weights_kit import SMALL, config_of

from qwenlib.errors import Refused
from qwenlib.profile import Model, Parallel
from qwenlib.weights import convert, open_source, read_folder
from qwenlib.weights.layout import Planned, checkpoint_layout, safetensors_layout
from qwenlib.weights.names import count, entries
from qwenlib.weights.slice_plan import make_plan
from qwenlib.weights.source import planned

FAMILY = {  # hidden, layers, heads, key/value heads, inner, vocabulary, tied; parameters as counted untied
    "0.5B": (1024, 24, 16, 16, 2816, 151936, True, 619_570_176),
    "1.8B": (2048, 24, 16, 16, 5504, 151936, False, 1_836_828_672),
    "4B": (2560, 40, 20, 20, 6912, 151936, False, 3_950_369_280),
    "7B": (4096, 32, 32, 32, 11008, 151936, False, 7_721_324_544),
    "14B": (5120, 40, 40, 40, 13696, 152064, False, 14_167_290_880),
    "32B": (5120, 64, 40, 8, 27392, 152064, False, 32_512_218_112),
    "72B": (8192, 80, 64, 64, 24576, 152064, False, 72_287_920_128),
    "110B": (8192, 80, 64, 8, 49152, 152064, False, 111_209_914_368),
}


def holes(folder: Path, size: str) -> Path:
    """A folder of that size in four shards, which hold their tables and nothing else."""
    hidden, layers, heads, groups, inner, vocab, tied, _ = FAMILY[size]
    model = Model(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        n_kv_heads=groups,
        intermediate_size=inner,
        vocab_size=vocab,
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(model, tied)))
    names = {entry.hf: entry.shape for entry in entries(model) if not (tied and entry.hf == "lm_head.weight")}
    weight_map = {}
    for number in range(4):
        file = f"model-{number + 1:05d}-of-00004.safetensors"
        layout = safetensors_layout([Planned(name, "bfloat16", names[name]) for name in list(names)[number::4]])
        with open(folder / file, "wb") as stream:
            stream.write(layout.heads[0][1])
            try:
                stream.truncate(layout.size)
            except OSError:
                pytest.skip(f"this file system cannot hold a file of {layout.size} bytes, not even with holes")
        weight_map.update(dict.fromkeys(list(names)[number::4], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("size", FAMILY)
def test_every_size_is_read_planned_and_cut(tmp_path: Path, size: str) -> None:
    folder = read_folder(holes(tmp_path / size, size))
    model, (hidden, layers, heads, groups, _, vocab, tied, parameters) = Model(**folder.sizes), FAMILY[size]
    assert folder.tied is tied and count(model) == {"tensors": 12 * layers + 3, "parameters": parameters}
    assert model.n_kv_heads == (None if groups == heads else groups)
    held = open_source(tmp_path / size)
    assert {name: tensor.shape for name, tensor in held.tensors.items()} == {e.ms: e.shape for e in entries(model)}
    assert held.tensors["model.layers.0.attention.wk.weight"].shape == (hidden * groups // heads, hidden)
    head, embedding = (held.tensors[name] for name in ("lm_head.weight", "model.tok_embeddings.embedding_weight"))
    assert head.shape == (vocab, hidden) and (head.parts == embedding.parts) is tied
    layout = checkpoint_layout(planned(held.tensors, "float16"))
    assert sum(length for extents in layout.places.values() for _, length in extents) == 2 * parameters
    assert max(length for extents in layout.places.values() for _, length in extents) <= 2**29, "512 MiB a piece"
    parallel = Parallel(data_parallel=2, model_parallel=4, pipeline_stage=2, micro_batch_num=2)
    plan = make_plan(planned(held.tensors, "float16"), parallel)
    kept = [0] * plan.ranks
    for item in planned(held.tensors, "float16"):
        windows = [plan.window(item.name, item.shape, rank) for rank in range(plan.ranks)]
        for rank, window in enumerate(windows):
            kept[rank] += window.rows * window.columns if window else 0
        rows, columns = item.shape if len(item.shape) == 2 else (item.shape[0], 1)
        assert sum(w.rows * w.columns for w in set(windows) - {None} if w) == rows * columns, item.name
    assert max(kept) < parameters / 8 + vocab * hidden, "a stage's share, and the embedding that is not cut"


@pytest.fixture()
def refused(hf: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    folder = hf()

    def say(**changes: Any) -> str:
        tree: Dict[str, Any] = {**config_of(SMALL), **changes}
        (folder / "config.json").write_text(json.dumps({key: tree[key] for key in tree if tree[key] != "absent"}))
        with pytest.raises(Refused) as told:
            convert(folder, tmp_path / "x.ckpt")
        assert not (tmp_path / "x.ckpt").exists() and str(folder) in str(told.value)
        return str(told.value)

    return say


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", ["absent", None, "8", 0, -1, True, 1.5, [], 2**40, 10**30])
def test_sizes_that_are_none_are_refused(refused: Callable[..., str], key: str, value: Any) -> None:
    assert f"{key} must be a whole number from 1 to" in refused(**{key: value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": "8"}, "num_key_value_heads must be a whole number, found '8'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of num_attention_heads 5"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number, found None"),
        ({"rope_theta": float("inf")}, "rope_theta must be a positive number, found inf"),
        ({"max_position_embeddings": 1.5}, "max_position_embeddings must be a whole number"),
        ({"hidden_size": 0, "rope_theta": "x"}, "found 0; rope_theta must be a positive number, found 'x'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the weights are quantised (gptq)"),
    ],
)
def test_what_does_not_fit_is_told(refused: Callable[..., str], changes: Dict[str, Any], said: str) -> None:
    assert said in refused(**changes)
