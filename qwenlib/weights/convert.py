"""Hugging Face safetensors -> one MindSpore checkpoint, a tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Union

from qwenlib.errors import Refused
from qwenlib.files import atomic_path, require_space
from qwenlib.profile import Model
from qwenlib.progress import Progress
from qwenlib.weights.checkpoint import CheckpointWriter
from qwenlib.weights.hf import Folder, read_folder
from qwenlib.weights.names import Entry, entries
from qwenlib.weights.place import target

DTYPES = ("float16", "float32")


def convert(
    torch_ckpt_dir: Union[str, Path], mindspore_ckpt_path: Union[str, Path], dtype: str = "float16"
) -> Dict[str, Any]:
    """Rename and cast every tensor of ``torch_ckpt_dir`` and write it for MindSpore.

    ``mindspore_ckpt_path`` is a .ckpt file, or a model_dir: then the file is ``model_dir/rank_0/qwen1_5.ckpt``, where
    MindFormers looks for it. Upstream's script (``convert_weight.py``) writes the same tensors as float16 and leaves
    the moving to the user; a tied lm_head, which it loses, is written here.

    Returns:
        ``{"checkpoint", "tensors", "parameters", "bytes", "dtype", "sizes"}``.

    Raises:
        Refused: a folder that is not a whole Qwen1.5 checkpoint, an older checkpoint in rank_0, too little disk,
            or values that do not fit float16.
    """
    if dtype not in DTYPES:
        raise Refused(f"--dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    folder = read_folder(torch_ckpt_dir)
    wanted = entries(Model(**folder.sizes))
    out = target(mindspore_ckpt_path)
    width = 2 if dtype == "float16" else 4
    parameters = sum(_size(entry) for entry in wanted)
    require_space(out, parameters * width, f"converting {folder.path}")
    with atomic_path(out) as part, Progress("convert", len(wanted), "tensors") as bar, CheckpointWriter(part) as writer:
        written = _copy(folder, wanted, dtype, writer, bar)
    return {
        "checkpoint": out,
        "tensors": len(wanted),
        "parameters": parameters,
        "bytes": written,
        "dtype": dtype,
        "sizes": folder.sizes,
    }


def _size(entry: Entry) -> int:
    size = 1
    for side in entry.shape:
        size *= side
    return size


def _copy(folder: Folder, wanted: List[Entry], dtype: str, writer: CheckpointWriter, bar: Progress) -> int:
    import torch
    from safetensors import safe_open

    kind = getattr(torch, dtype)
    opened: Dict[Path, Any] = {}
    written = 0
    for entry in wanted:
        source = "model.embed_tokens.weight" if entry.hf == "lm_head.weight" and folder.tied else entry.hf
        path = folder.where[source]
        if path not in opened:
            opened[path] = safe_open(str(path), framework="pt")
        tensor = opened[path].get_tensor(source)
        cast = tensor.to(kind)
        bad = int((~torch.isfinite(cast)).sum())
        if bad:
            raise Refused(
                f"{path.name}: {source} has {bad} values that are not finite as {dtype}. Use --dtype float32."
            )
        written += writer.add(entry.ms, cast.numpy())
        bar.advance(note=entry.ms)
    return written
