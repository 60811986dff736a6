"""Which part of each parameter a rank holds under MindFormers' Llama (r1.0.a) in semi-automatic parallel mode.

Split by ``model_parallel`` as the network's matmul strategies say, then by the optimizer shard
(``enable_parallel_optimizer``): dimension 0 over the ranks that hold the same slice. tests/estimate compares names,
shapes, strategies, flags and stages with those of the network that MindFormers builds.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import List, Optional, Tuple

from qwenlib.profile import Adapter, Model, Parallel
from qwenlib.weights.names import entries

SHARD_THRESHOLD = 64 * 1024
"""Bytes below which a parameter is not sharded over the optimizer's ranks (parallel_optimizer_threshold, KB)."""

_BY_ROWS = ("wq", "wk", "wv", "w1", "w3")
_BY_COLUMNS = ("wo", "w2")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Slice:
    """A parameter and what one rank of its stage keeps of it."""

    name: str
    shape: Tuple[int, ...]
    stage: int
    trainable: bool
    split: Tuple[int, ...]
    """Cuts by model_parallel, per dimension."""
    shard: int
    """Cuts of dimension 0 by the optimizer shard; 1: none."""

    @property
    def size(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    @property
    def in_use(self) -> int:
        """Elements that the rank computes with (after the AllGather of the optimizer shard)."""
        return self.size // math.prod(self.split)

    @property
    def kept(self) -> int:
        """Elements that the rank keeps."""
        return self.in_use // self.shard


@dataclass(frozen=True)
class Held:
    """What a rank of one pipeline stage holds, in numbers: all parameters, and those of them that learn."""

    layers: int
    kept: int
    in_use: int
    learned_kept: int
    learned_in_use: int


@functools.lru_cache(maxsize=1024)
def held(model: Model, plan: Parallel, adapter: Optional[Adapter] = None) -> Tuple[Held, ...]:
    """The sums of :func:`slices`, stage by stage; give ``micro_batch_num`` 1, on which they do not depend."""
    found = []
    for stage in range(plan.pipeline_stage):
        mine = [item for item in slices(model, plan, adapter) if item.stage == stage]
        learned = [item for item in mine if item.trainable]
        found.append(
            Held(
                len([item for item in mine if item.name.endswith("attention_norm.weight")]),
                sum(item.kept for item in mine),
                sum(item.in_use for item in mine),
                sum(item.kept for item in learned),
                sum(item.in_use for item in learned),
            )
        )
    return tuple(found)


@functools.lru_cache(maxsize=64)
def slices(model: Model, plan: Parallel, adapter: Optional[Adapter] = None) -> Tuple[Slice, ...]:
    """Every parameter of the network (and of its LoRA adapter) as a rank of its stage holds it."""
    found = [_base(entry.ms, entry.shape, model, plan, adapter) for entry in entries(model)]
    if adapter is not None:
        for item in list(found):
            kind = _linear(item.name)
            # MindPet matches the cell's name from its beginning.
            if (
                kind
                and item.name.endswith(".weight")
                and re.match(adapter.target_modules, item.name[: -len(".weight")])
            ):
                found += _adapter(item, kind, plan, adapter.lora_rank)
    return tuple(found)


def stage_of(layer: int, model: Model, plan: Parallel) -> int:
    """MindFormers' ``layer_compute_dtype``: the last stage takes what is left over."""
    per_stage = max((model.num_layers + 1) // plan.pipeline_stage, 1)
    return min(layer // per_stage, plan.pipeline_stage - 1)


def layers_of_stages(model: Model, plan: Parallel) -> List[int]:
    """How many layers each pipeline stage has."""
    stages = [stage_of(layer, model, plan) for layer in range(model.num_layers)]
    return [stages.count(stage) for stage in range(plan.pipeline_stage)]


def _linear(name: str) -> str:
    kind = name.split(".")[-2]
    return kind if kind in _BY_ROWS + _BY_COLUMNS else ""


def _base(name: str, shape: Tuple[int, ...], model: Model, plan: Parallel, adapter: Optional[Adapter]) -> Slice:
    layer = _LAYER.match(name)
    last = plan.pipeline_stage - 1
    stage = stage_of(int(layer[1]), model, plan) if layer else (0 if "tok_embeddings" in name else last)
    trainable = adapter is None or (adapter.train_lm_head and name.startswith("lm_head"))
    kind, mp = _linear(name), plan.model_parallel
    split = [1] * len(shape)
    if kind in _BY_ROWS:
        split[0] = mp
    elif kind in _BY_COLUMNS:
        split[1] = mp
    elif name.startswith(("lm_head", "model.tok_embeddings")) and not plan.vocab_emb_dp and shape[0] % mp == 0:
        split[0] = mp
    may = len(shape) == 2 and "tok_embeddings" not in name
    return Slice(name, shape, stage, trainable, tuple(split), _shard(shape, split, plan) if may else 1)


def _adapter(base: Slice, kind: str, plan: Parallel, rank: int) -> List[Slice]:
    rows, columns = base.shape
    by_rows = kind in _BY_ROWS
    stem = base.name[: -len("weight")] + "mindpet_delta_lora_"
    parts = [
        ("a", (rank, columns), [1, 1] if by_rows else [1, plan.model_parallel]),
        ("b", (rows, rank), [plan.model_parallel, 1] if by_rows else [1, 1]),
    ]
    return [
        Slice(stem + letter, shape, base.stage, True, tuple(split), _shard(shape, split, plan))
        for letter, shape, split in parts
    ]


def _shard(shape: Tuple[int, ...], split: List[int], plan: Parallel) -> int:
    replicas = plan.data_parallel * plan.model_parallel // math.prod(split)
    rows = shape[0] // split[0]
    small = 2 * math.prod(shape) // math.prod(split) < SHARD_THRESHOLD
    return 1 if small or rows % replicas else replicas
