"""A MindSpore checkpoint (full, merged or in rank slices) -> a folder that transformers loads."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json, require_space, write_json
from qwenlib.profile import Model
from qwenlib.weights import pump
from qwenlib.weights.compare import same
from qwenlib.weights.convert import refuse_overflow
from qwenlib.weights.hf import INDEX, SINGLE, read_folder
from qwenlib.weights.kinds import FLOATS
from qwenlib.weights.layout import Planned, safetensors_layout
from qwenlib.weights.names import entries
from qwenlib.weights.output import written
from qwenlib.weights.slicing import is_weight
from qwenlib.weights.source import Source, open_source
from qwenlib.weights.tensors import Tensor, whole

BESIDE = ("generation_config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "LICENSE")
"""Files of the original folder that belong to an exported one."""
DTYPES = ("float16", "float32", "bfloat16")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "": 1}


def export(
    source: Union[str, Path, Source],
    output_dir: Union[str, Path],
    *,
    torch_ckpt_dir: Optional[Union[str, Path]] = None,
    model: Optional[Model] = None,
    dtype: str = "",
    max_shard_size: str = "5GB",
    clamp: bool = False,
) -> Dict[str, Any]:
    """Write sharded safetensors with index and config.json.

    ``torch_ckpt_dir``: the folder that the model once came from; its config.json and tokenizer files are taken along.
    With ``model`` instead, config.json is made from the sizes and the tokenizer is left to the user. ``dtype``: empty
    keeps the checkpoint's; a float16 model comes back bit by bit.

    Returns:
        ``{"output_dir", "files", "tensors", "bytes", "dtype", "tied", "nonfinite", "seconds"}``.

    Raises:
        Refused: weights that are missing, unknown or misshapen (all told), an adapter that was not merged, a folder
            that holds another model, too little disk, values that do not fit.
    """
    begun = time.monotonic()
    if dtype and dtype not in DTYPES:
        raise Refused(f"--dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    limit = shard_bytes(max_shard_size)
    held = open_source(source)
    origin = None if torch_ckpt_dir is None else Path(torch_ckpt_dir).expanduser()
    config, model = _config(origin, model)
    weights = {name: item for name, item in held.tensors.items() if is_weight(name)}
    _check(held.path, weights, model)
    output_dir = Path(output_dir).expanduser()
    tied = bool(config.get("tie_word_embeddings")) and same(
        weights["lm_head.weight"], weights["model.tok_embeddings.embedding_weight"]
    )
    wanted = [
        (Planned(entry.hf, dtype or weights[entry.ms].kind, entry.shape), weights[entry.ms])
        for entry in entries(model)
        if not (tied and entry.hf == "lm_head.weight")
    ]
    shards = _shards([item for item, _ in wanted], limit)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    )
    _check_folder(output_dir, names, [held.path, origin] if held.form == "hf" else [origin])
    layouts = {output_dir / name: safetensors_layout(shard) for name, shard in zip(names, shards)}
    size = sum(layout.size for layout in layouts.values())
    require_space(output_dir, size, f"exporting {held.path}")
    for stale in ("config.json", INDEX):  # the folder is whole when these are there again
        (output_dir / stale).unlink(missing_ok=True)
    with written(layouts) as files:
        home = {item.name: file for file, shard in zip(files, shards) for item in shard}
        moves = [
            pump.Move(
                tensor,
                item.kind,
                [pump.Target(home[item.name], home[item.name].layout.places[item.name], whole(item.shape))],
            )
            for item, tensor in wanted
        ]
        found = pump.run(moves, "export", clamp=clamp)
        refuse_overflow(found, held.path, dtype, clamp)
    if len(shards) > 1:
        weight_map = {item.name: name for name, shard in zip(names, shards) for item in shard}
        total = sum(item.bytes for item, _ in wanted)
        write_json(output_dir / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    kinds = {item.kind for item, _ in wanted}
    config = {**config, "tie_word_embeddings": tied, "torch_dtype": kinds.pop() if len(kinds) == 1 else "float32"}
    if origin is not None:
        for name in BESIDE:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, output_dir / name)
    write_json(output_dir / "config.json", config)
    return {
        "output_dir": output_dir,
        "files": names,
        "tensors": len(wanted),
        "bytes": size,
        "dtype": config["torch_dtype"],
        "tied": tied,
        "nonfinite": found.nonfinite,
        "seconds": round(time.monotonic() - begun, 2),
    }


def shard_bytes(text: str) -> int:
    """``"5GB"`` -> 5,000,000,000; GiB and the like count in 1024s.

    Raises:
        Refused: not of this form, or nothing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = match.group(2).upper() if match else "?"
    if not match or unit not in _UNITS or float(match.group(1)) * _UNITS[unit] < 1:
        raise Refused(f"--max_shard_size must read like 5GB or 500MB, found {text!r}.")
    return int(float(match.group(1)) * _UNITS[unit])


def _shards(tensors: List[Planned], limit: int) -> List[List[Planned]]:
    """Tensors in their order, a new file whenever the next one would not fit any more."""
    shards: List[List[Planned]] = [[]]
    room = limit
    for tensor in tensors:
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


def _config(origin: Optional[Path], model: Optional[Model]) -> Tuple[Dict[str, Any], Model]:
    if origin is not None:
        config = read_json(origin / "config.json")
        return config, Model(**read_folder(origin).sizes)
    if model is None:
        raise Refused("the sizes of the model are needed: give --torch_ckpt_dir (the original folder) or --profile.")
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.n_kv_heads or model.num_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embedding,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.theta,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
    }
    if model.vocab_size > 151643:  # Qwen's own vocabulary
        config.update(bos_token_id=151643, eos_token_id=151643)
    return config, model


def _check(path: Path, weights: Dict[str, Tensor], model: Model) -> None:
    adapters = [name for name in weights if "mindpet_delta" in name]
    if adapters:
        raise Refused(
            f"{path} holds an adapter ({len(adapters)} matrices). Merge it first: qwenlib weights merge-lora."
        )
    problems = []
    wanted = {entry.ms: entry.shape for entry in entries(model)}
    for name, shape in wanted.items():
        if name not in weights:
            problems.append(f"{name} is missing")
        elif weights[name].shape != shape:
            problems.append(f"{name} is {list(weights[name].shape)}, the sizes ask for {list(shape)}")
        elif weights[name].kind not in FLOATS:
            problems.append(f"{name} has the number type {weights[name].kind}")
    problems += [f"{name} is unknown" for name in weights if name not in wanted]
    if problems:
        more = f" and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise Refused(f"{path}: {'; '.join(problems[:12])}{more}.")


def _check_folder(folder: Path, names: List[str], read: Sequence[Optional[Path]]) -> None:
    if not folder.exists():
        return
    if any(path is not None and folder.samefile(path) for path in read):
        raise Refused(f"{folder} is what is read; it would be replaced. Choose another folder.")
    if not folder.is_dir():
        raise Refused(f"{folder} is a file; give a folder to export into.")
    others = sorted(
        item.name for pattern in ("*.safetensors", "*.bin") for item in folder.glob(pattern) if item.name not in names
    )
    if others:
        raise Refused(f"{folder} holds another model ({', '.join(others[:4])}). Choose another folder.")
