"""LoRA adapters: merge one into its base, save it alone, put both together again.

MindPet names a layer's two matrices ``<layer>.mindpet_delta_lora_a`` [rank, in] and ``…_b`` [out, rank]; the layer then
computes ``x W^T + lora_alpha / rank * (x A^T) B^T``, so the merged weight is ``W + lora_alpha / rank * B A``.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json, require_space, write_json
from qwenlib.weights import pump
from qwenlib.weights.compare import same
from qwenlib.weights.convert import meta_path, refuse_overflow, require_dtype
from qwenlib.weights.kinds import as_float32
from qwenlib.weights.layout import checkpoint_layout
from qwenlib.weights.names import LORA_A, LORA_B
from qwenlib.weights.output import written
from qwenlib.weights.place import target
from qwenlib.weights.slicing import copy, is_weight
from qwenlib.weights.source import Source, open_source, planned
from qwenlib.weights.tensors import Files, Tensor, matrix, whole

PathLike = Union[str, Path]
Model = Union[str, Path, Source]
"""A path that :func:`open_source` takes, or what it gave."""


def merge_lora(
    adapter: Model,
    mindspore_ckpt_path: PathLike,
    *,
    base: Optional[Model] = None,
    lora_alpha: Optional[float] = None,
    dtype: str = "",
    clamp: bool = False,
) -> Dict[str, Any]:
    """Write the full checkpoint of ``base`` with ``adapter`` added in.

    ``adapter``: what :func:`save_adapter` wrote, or a run's own checkpoint, which holds the base too; ``base`` may then
    be left out. What else the adapter's file trained (the lm_head) replaces the base's. ``lora_alpha``: the profile's;
    left out, the one noted beside the adapter. ``dtype``: empty keeps the base's.

    Returns:
        ``{"checkpoint", "merged", "replaced", "lora_rank", "lora_alpha", "bytes", "seconds"}``, ``merged``: how many
        layers.

    Raises:
        Refused: there is no adapter in it, no base, matrices that do not fit (all told), no lora_alpha, values that do
            not fit float16, or the output is the adapter's or the base's own file.
    """
    begun = time.monotonic()
    if dtype:
        require_dtype(dtype)
    held = open_source(adapter)
    pairs, rank = lora_pairs(held)
    alpha = _alpha(held.path, lora_alpha)
    weights, replaced = _with_base(held, base)
    problems = _misfits(pairs, weights)
    if problems:
        raise Refused(f"{held.path} does not fit the base: {'; '.join(problems[:8])}.")
    out = target(mindspore_ckpt_path)
    pump.refuse_own_source([out], held.tensors.values())
    if base is not None:  # of which nothing may be read, when the run's own checkpoint holds it all
        pump.refuse_own_source([out], open_source(base).tensors.values())
    wanted = planned(weights, dtype)
    layout = checkpoint_layout(wanted)
    require_space(out, layout.size, f"merging into {out}")
    with Files() as files, written({out: layout}) as (file,):
        moves = []
        for item in wanted:
            layer = item.name[: -len(".weight")]
            change = _Delta(files, *pairs[layer], alpha / rank) if layer in pairs else None
            goal = pump.Target(file, layout.places[item.name], whole(item.shape))
            moves.append(pump.Move(weights[item.name], item.kind, [goal], change))
        found = pump.run(moves, "merge-lora", clamp=clamp)
        refuse_overflow(found, held.path, dtype or "float16", clamp)
        meta_path(out).unlink(missing_ok=True)
    result = {
        "checkpoint": out,
        "merged": len(pairs),
        "replaced": replaced,
        "lora_rank": rank,
        "lora_alpha": alpha,
        "bytes": layout.size,
        "nonfinite": found.nonfinite,
        "seconds": round(time.monotonic() - begun, 2),
    }
    write_json(meta_path(out), {**result, "adapter": held.path, "base": base and open_source(base).path})
    return result


def save_adapter(
    checkpoint: Model,
    adapter_path: PathLike,
    *,
    base: Optional[Model] = None,
    lora_alpha: Optional[float] = None,
) -> Dict[str, Any]:
    """Write only what a LoRA run trained: the adapter, and with ``base`` given every other weight that differs from it.

    Without ``base`` nothing tells whether the lm_head was trained; it is then left out, and named in ``left_out``.

    Returns:
        ``{"checkpoint", "tensors", "lora_rank", "lora_alpha", "also", "left_out", "bytes"}``.

    Raises:
        Refused: the checkpoint holds no adapter, or the base lacks one of its weights.
    """
    held = open_source(checkpoint)
    pairs, rank = lora_pairs(held)
    out = Path(adapter_path).expanduser()
    if out.suffix != ".ckpt":
        raise Refused(f"the adapter's file must end in .ckpt, found {out.name!r}.")
    kept = {tensor.name: tensor for pair in pairs.values() for tensor in pair}
    others = {name: item for name, item in held.tensors.items() if is_weight(name) and name not in kept}
    also: List[str] = []
    if base is not None:
        stands = open_source(base).tensors
        pump.refuse_own_source([out], stands.values())
        lacking = [name for name in others if name not in stands]
        if lacking:
            raise Refused(f"the base lacks {', '.join(lacking[:6])}: {held.path} was not trained on it.")
        also = [name for name, item in others.items() if not same(item, stands[name])]
    copy({**kept, **{name: others[name] for name in also}}, out, "adapter")
    result = {
        "checkpoint": out,
        "tensors": len(kept) + len(also),
        "lora_rank": rank,
        "lora_alpha": lora_alpha,
        "also": also,
        "left_out": ["lm_head.weight"] if base is None and "lm_head.weight" in others else [],
        "bytes": out.stat().st_size,
    }
    write_json(meta_path(out), {**result, "source": held.path})
    return result


def join_adapter(adapter: Model, mindspore_ckpt_path: PathLike, *, base: Model) -> Dict[str, Any]:
    """Base and adapter in one checkpoint, unmerged, as MindFormers loads a LoRA network.

    Raises:
        Refused: no adapter in ``adapter``, or matrices that do not fit the base.
    """
    held = open_source(adapter)
    pairs, rank = lora_pairs(held)
    weights, replaced = _with_base(held, base)
    problems = _misfits(pairs, weights)
    if problems:
        raise Refused(f"{held.path} does not fit the base: {'; '.join(problems[:8])}.")
    out = target(mindspore_ckpt_path)
    pump.refuse_own_source([out], open_source(base).tensors.values())
    found = {**weights, **{tensor.name: tensor for pair in pairs.values() for tensor in pair}}
    copy(found, out, "join")
    return {"checkpoint": out, "tensors": len(found), "replaced": replaced, "lora_rank": rank}


def lora_pairs(held: Source) -> Tuple[Dict[str, Tuple[Tensor, Tensor]], int]:
    """``({layer: (a, b)}, rank)`` of the adapter in ``held``.

    Raises:
        Refused: no adapter, half a pair, or several ranks.
    """
    names = [name for name in held.tensors if is_weight(name)]  # not the optimizer's states of the same names
    layers = sorted({name[: -len(end)] for name in names for end in (LORA_A, LORA_B) if name.endswith(end)})
    if not layers:
        raise Refused(f"{held.path} holds no LoRA adapter (no name ends in {LORA_A}).")
    half = [layer for layer in layers if layer + LORA_A not in held.tensors or layer + LORA_B not in held.tensors]
    if half:
        raise Refused(f"{held.path}: only one of the two matrices is there for {', '.join(half[:6])}.")
    pairs = {layer: (held.tensors[layer + LORA_A], held.tensors[layer + LORA_B]) for layer in layers}
    ranks = {pair[0].shape[0] for pair in pairs.values()} | {matrix(pair[1].shape)[1] for pair in pairs.values()}
    if len(ranks) != 1:
        raise Refused(f"{held.path}: the adapter's matrices have different ranks: {sorted(ranks)}.")
    return pairs, ranks.pop()


def _alpha(path: Path, given: Optional[float]) -> float:
    if given is None and path.suffix == ".ckpt" and meta_path(path).is_file():
        given = read_json(meta_path(path)).get("lora_alpha")
    if given is None:
        raise Refused(
            f"lora_alpha is not noted beside {path}: give --lora_alpha, or --profile with the adapter's settings."
        )
    if not 0 < float(given) < math.inf:
        raise Refused(f"lora_alpha must be above 0, found {given}: the adapter is added times lora_alpha / rank.")
    return float(given)


def _with_base(held: Source, base: Optional[Model]) -> Tuple[Dict[str, Tensor], List[str]]:
    """Every weight of the network, and the names that come from the adapter's file although the base has them."""
    own = {name: item for name, item in held.tensors.items() if is_weight(name) and not name.endswith((LORA_A, LORA_B))}
    if base is None:
        if "model.tok_embeddings.embedding_weight" not in own:
            raise Refused(f"{held.path} holds an adapter only; give its base with --base.")
        return own, []
    opened = open_source(base)
    weights = {
        name: item for name, item in opened.tensors.items() if is_weight(name) and not name.endswith((LORA_A, LORA_B))
    }
    strange = [name for name, item in own.items() if name not in weights or weights[name].shape != item.shape]
    if strange:
        raise Refused(f"{opened.path} is not the base of {held.path}: {', '.join(strange[:6])} differ in shape.")
    if len(own) == len(weights):  # a run's own checkpoint: it holds the base, too
        return {**weights, **own}, []
    return {**weights, **own}, sorted(own)


def _misfits(pairs: Dict[str, Tuple[Tensor, Tensor]], weights: Dict[str, Tensor]) -> List[str]:
    problems = []
    for layer, (a, b) in pairs.items():
        weight = weights.get(f"{layer}.weight")
        if weight is None:
            problems.append(f"{layer}.weight is missing")
        elif matrix(weight.shape) != (b.shape[0], a.shape[1]):
            problems.append(f"{layer}.weight is {list(weight.shape)}, B A is {[b.shape[0], a.shape[1]]}")
    return problems


class _Delta:
    """Adds ``scale * B A`` to rows of a weight; A is held only while its layer passes by."""

    def __init__(self, files: Files, a: Tensor, b: Tensor, scale: float):
        self.files, self.a, self.b, self.scale = files, a, b, scale
        self.left, self.held = b.shape[0], None  # type: int, Any
        self.lock = threading.Lock()

    def __call__(self, rows: Any, top: int) -> Any:
        with self.lock:
            if self.held is None:
                self.held = as_float32(self.files.rows(self.a, 0, self.a.shape[0])[0], self.a.kind)
            a = self.held
            b = as_float32(self.files.rows(self.b, top, top + len(rows))[0], self.b.kind)
            self.left -= len(rows)
            if not self.left:
                self.held = None
        return rows + (b @ a) * rows.dtype.type(self.scale)
