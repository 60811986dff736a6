"""Which part of each parameter a rank holds and computes with, and which parameters learn.

The cuts are those of :mod:`qwenlib.weights.slice_plan`; tests/estimate compares names, shapes, strategies, flags and
stages with those of the network that MindFormers builds.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Tuple

from qwenlib.profile import Adapter, Model, Parallel
from qwenlib.weights.layout import Planned
from qwenlib.weights.names import LORA_A, LORA_B, full_shapes
from qwenlib.weights.slice_plan import make_plan, stage_of_layer


class Slice(NamedTuple):
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
    stages = [[0, 0, 0, 0] for _ in range(plan.pipeline_stage)]
    for item in slices(model, plan, adapter):
        kept, in_use = item.kept, item.in_use
        learned = (kept, in_use) if item.trainable else (0, 0)
        stages[item.stage] = [old + new for old, new in zip(stages[item.stage], (kept, in_use, *learned))]
    return tuple(Held(layers, *sums) for layers, sums in zip(layers_of_stages(model, plan), stages))


@functools.lru_cache(maxsize=64)
def slices(model: Model, plan: Parallel, adapter: Optional[Adapter] = None) -> Tuple[Slice, ...]:
    """Every parameter of the network (and of its LoRA adapter) as a rank of its stage holds it, stage by stage.

    Raises:
        Refused: sizes that model_parallel does not divide.
    """
    shapes = full_shapes(model, adapter)
    cuts = make_plan([Planned(name, model.param_init_type, shape) for name, shape in shapes.items()], plan)
    return tuple(
        Slice(
            name,
            shapes[name],
            stage,
            _learns(name, adapter),
            tuple(cut.parts(dimension) for dimension in range(len(shapes[name]))),
            cut.shards,
        )
        for stage, mine in enumerate(cuts.stages)
        for name, cut in mine.items()
    )


def layers_of_stages(model: Model, plan: Parallel) -> List[int]:
    """How many layers each pipeline stage has."""
    stages = [stage_of_layer(layer, model.num_layers, plan.pipeline_stage) for layer in range(model.num_layers)]
    return [stages.count(stage) for stage in range(plan.pipeline_stage)]


def _learns(name: str, adapter: Optional[Adapter]) -> bool:
    if adapter is None or name.endswith((LORA_A, LORA_B)):
        return True
    return adapter.train_lm_head and name.startswith("lm_head.")
