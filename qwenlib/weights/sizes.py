"""config.json of a Hugging Face folder: is it a Qwen1.5, and how large."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict

from qwenlib.errors import Refused
from qwenlib.files import read_json

_SIZES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "vocab_size": "vocab_size",
    "intermediate_size": "intermediate_size",
}
_LARGEST = {"num_hidden_layers": 1000}
_LARGE = 2**24
"""Sizes above are damage: the 110B has a vocabulary of 152064, 80 layers and 49152 in its widest."""


def read_config(folder: Path) -> Dict[str, Any]:
    """config.json as it is, of a Qwen1.5 (Hugging Face calls it ``qwen2``, and so the later Qwen2).

    Raises:
        Refused: it is missing, is of another model, or of a quantised one.
    """
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise Refused(f"{folder} has no config.json (it holds: {held}). Download the whole Qwen1.5 folder.")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "qwen2":
        kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise Refused(
            f"{folder}/config.json: model_type is {kind!r}; only Qwen1.5 (model_type 'qwen2') can be converted."
        )
    packed = config.get("quantization_config")
    if packed:
        how = packed.get("quant_method", "?") if isinstance(packed, dict) else packed
        raise Refused(
            f"{folder}/config.json: the weights are quantised ({how}), which cannot be converted. Download the model "
            "of the same name without that suffix (GPTQ, AWQ)."
        )
    return config


def read_sizes(folder: Path, config: Dict[str, Any]) -> Dict[str, Any]:
    """The fields of :class:`qwenlib.profile.Model` that config.json settles; ``n_kv_heads`` is None without groups.

    Raises:
        Refused: what is missing, no number, or does not fit together; all of it told.
    """
    problems = []
    for key in _SIZES:
        limit = _LARGEST.get(key, _LARGE)
        if not _whole(config.get(key)) or config[key] > limit:
            problems.append(f"{key} must be a whole number from 1 to {limit}, found {_shown(config.get(key))}")
    numbers = {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
    for key, usual in numbers.items():
        numbers[key] = value = config.get(key, usual)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            problems.append(f"{key} must be a positive number, found {_shown(value)}")
    positions = config.get("max_position_embeddings", 32768)
    if not _whole(positions) or positions > _LARGE:
        problems.append(f"max_position_embeddings must be a whole number, found {_shown(positions)}")
    groups = config.get("num_key_value_heads")
    if groups is not None and not _whole(groups):
        problems.append(f"num_key_value_heads must be a whole number, found {_shown(groups)}")
    if not problems:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        if hidden % heads:
            problems.append(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}")
        if groups is not None and heads % groups:
            problems.append(f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
    if problems:
        raise Refused(f"{folder}/config.json: {'; '.join(problems)}. Download it again.")
    sizes: Dict[str, Any] = {ours: config[theirs] for theirs, ours in _SIZES.items()}
    sizes["n_kv_heads"] = groups if groups and groups != sizes["num_heads"] else None
    sizes["rms_norm_eps"], sizes["theta"] = float(numbers["rms_norm_eps"]), float(numbers["rope_theta"])
    sizes["max_position_embedding"] = positions
    return sizes


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**12:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    return repr(value)[:40]
