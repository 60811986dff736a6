"""Small Qwen1.5 folders in Hugging Face's layout, written without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy
from safetensors.numpy import save_file

from qwenlib.profile import Model
from qwenlib.weights.names import entries

SMALL = Model(
    hidden_size=64, num_layers=3, num_heads=4, vocab_size=320, intermediate_size=96, max_position_embedding=128
)


def tensors_of(model: Model, seed: int = 0, tied: bool = False) -> Dict[str, numpy.ndarray]:
    """float32 values under Hugging Face's names; norms near 1."""
    draw = numpy.random.default_rng(seed)
    found = {}
    for entry in entries(model):
        if tied and entry.hf == "lm_head.weight":
            continue
        mean = 1.0 if "norm" in entry.hf else 0.0
        found[entry.hf] = (mean + 0.05 * draw.standard_normal(entry.shape)).astype(numpy.float32)
    return found


def config_of(model: Model, tied: bool = False) -> Dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.n_kv_heads or model.num_heads,
        "vocab_size": model.vocab_size,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_position_embedding,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.theta,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
    }


def write_bf16(path: Path, tensors: Dict[str, numpy.ndarray]) -> None:
    """safetensors with bfloat16 bits; numpy has no such type, so the header is written here."""
    table: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, value in tensors.items():
        raw = (numpy.ascontiguousarray(value).view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()
        table[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
        blobs.append(raw)
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))


def make_folder(
    folder: Path,
    model: Model = SMALL,
    *,
    dtype: str = "float32",
    shards: int = 1,
    tied: bool = False,
    values: Optional[Dict[str, numpy.ndarray]] = None,
) -> Path:
    folder.mkdir(parents=True)
    values = tensors_of(model, tied=tied) if values is None else values
    (folder / "config.json").write_text(json.dumps(config_of(model, tied)))

    def save(path: Path, part: Dict[str, numpy.ndarray]) -> None:
        if dtype == "bfloat16":
            write_bf16(path, part)
        else:
            save_file({name: value.astype(dtype) for name, value in part.items()}, str(path), {"format": "pt"})

    if shards == 1:
        save(folder / "model.safetensors", values)
        return folder
    names: List[str] = sorted(values)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: values[name] for name in names[number::shards]}
        save(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read_all(source: Any) -> Dict[str, numpy.ndarray]:
    """Every tensor of anything that open_source takes, by name (bfloat16 as float32)."""
    from qwenlib.weights.kinds import as_float32
    from qwenlib.weights.source import open_source
    from qwenlib.weights.tensors import Files, matrix

    found = {}
    with Files() as files:
        for name, tensor in open_source(source).tensors.items():
            array = files.rows(tensor, 0, matrix(tensor.shape)[0])[0]
            array = as_float32(array, tensor.kind) if tensor.kind == "bfloat16" else array
            found[name] = array.reshape(tensor.shape)
    return found
