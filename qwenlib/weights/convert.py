"""A Hugging Face folder -> one MindSpore checkpoint, in bounded memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Union

from qwenlib.errors import Refused
from qwenlib.files import require_space, write_json
from qwenlib.profile import Model
from qwenlib.weights import pump
from qwenlib.weights.hf import Folder, read_folder
from qwenlib.weights.layout import Planned, checkpoint_layout
from qwenlib.weights.names import Entry, entries
from qwenlib.weights.output import written
from qwenlib.weights.place import describe, target
from qwenlib.weights.tensors import Tensor, whole

DTYPES = ("float16", "float32")


def convert(
    torch_ckpt_dir: Union[str, Path],
    mindspore_ckpt_path: Union[str, Path],
    dtype: str = "float16",
    clamp: bool = False,
) -> Dict[str, Any]:
    """Rename and cast every tensor of ``torch_ckpt_dir`` and write it for MindSpore.

    ``mindspore_ckpt_path`` is a .ckpt file, or a model_dir: then the file is ``model_dir/rank_0/qwen1_5.ckpt``, where
    MindFormers looks for it. Upstream's script (``convert_weight.py``) writes the same tensors as float16 and leaves
    the moving to the user; a tied lm_head, which it loses, is written here. ``clamp``: values too large for float16
    become 65504 instead of a refusal. Beside the file, ``<name>.meta.json`` says what it was made from.

    Returns:
        ``{"checkpoint", "tensors", "parameters", "bytes", "dtype", "sizes", "clamped", "nonfinite", "seconds"}``;
        ``clamped`` and ``nonfinite`` (NaN and Inf of the source) count values by tensor.

    Raises:
        Refused: a folder that is not a whole Qwen1.5 checkpoint, an older checkpoint in rank_0, too little disk,
            or values that do not fit float16 (counted by tensor).
    """
    require_dtype(dtype)
    begun = time.monotonic()
    folder = read_folder(torch_ckpt_dir)
    wanted = entries(Model(**folder.sizes))
    out = target(mindspore_ckpt_path)
    layout = checkpoint_layout([Planned(entry.ms, dtype, entry.shape) for entry in wanted])
    require_space(out, layout.size, f"converting {folder.path}")
    with written({out: layout}) as (file,):
        moves = [
            pump.Move(tensor, dtype, [pump.Target(file, layout.places[entry.ms], whole(entry.shape))])
            for entry, tensor in zip(wanted, sources(folder, wanted))
        ]
        found = pump.run(moves, "convert", clamp=clamp, digest=True)
        refuse_overflow(found, folder.path, dtype, clamp)
        meta = {
            "checkpoint": out.name,
            "dtype": dtype,
            "tensors": len(wanted),
            "parameters": sum(tensor.size for tensor in sources(folder, wanted)),
            "bytes": layout.size,
            "sizes": folder.sizes,
            "tied": folder.tied,
            "clamped": found.overflow,
            "nonfinite": found.nonfinite,
            "sources": describe(found.sha256),
        }
        meta_path(out).unlink(missing_ok=True)  # it told of the file that is replaced now
    meta["seconds"] = round(time.monotonic() - begun, 2)
    write_json(meta_path(out), meta)
    keys = ("tensors", "parameters", "bytes", "dtype", "sizes", "clamped", "nonfinite", "seconds")
    return {"checkpoint": out, **{key: meta[key] for key in keys}}


def meta_path(checkpoint: Path) -> Path:
    """Where the description of a written checkpoint lies: ``x.ckpt.meta.json``."""
    return checkpoint.with_name(checkpoint.name + ".meta.json")


def require_dtype(dtype: str) -> None:
    """Refuse what MindFormers r1.0.a cannot take as ``param_init_type``."""
    if dtype not in DTYPES:
        raise Refused(f"--dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")


def sources(folder: Folder, wanted: List[Entry]) -> List[Tensor]:
    """The stored tensor of every entry, under MindSpore's name; a tied lm_head is the embedding."""
    found = []
    for entry in wanted:
        hf = "model.embed_tokens.weight" if entry.hf == "lm_head.weight" and folder.tied else entry.hf
        stored = folder.tensors[hf]
        found.append(Tensor(entry.ms, stored.kind, stored.shape, stored.parts))
    return found


def refuse_overflow(found: pump.Outcome, where: Path, dtype: str, clamp: bool) -> None:
    """Refuse values that were finite and no longer are, unless they were clamped.

    Raises:
        Refused: with the number of values by tensor.
    """
    if not found.overflow or clamp:
        return
    worst = sorted(found.overflow.items(), key=lambda item: -item[1])
    told = ", ".join(f"{name}: {number}" for name, number in worst[:12])
    more = f" and {len(worst) - 12} more tensors" if len(worst) > 12 else ""
    raise Refused(
        f"{where}: {sum(found.overflow.values())} values are not finite as {dtype} ({told}{more}). Nothing was "
        "written. Use --dtype float32, or --clamp to write the largest float16 (65504) in their place."
    )
