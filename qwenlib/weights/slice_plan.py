"""Which rank holds which part of which parameter, for MindFormers' Llama under semi-auto parallelism.

Rules: the ``shard`` calls of MindFormers r1.0.a ``llama*.py`` (weights are [out, in]) and MindSpore's optimizer
parallelism. A strategy file of a real compile, when there is one, is the authority: :func:`plan_from_strategy`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.profile import Parallel
from qwenlib.weights.kinds import KINDS
from qwenlib.weights.layout import Planned
from qwenlib.weights.strategy import Cut, read_strategy, stages_of
from qwenlib.weights.tensors import Window, elements

THRESHOLD = 64 * 1024
"""``parallel_optimizer_threshold``: smaller slices (bytes) are not cut for the optimizer."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_STATES = ("adam_m.", "adam_v.", "accu_grads.")
_COLUMN = re.compile(r"\.(wq|wk|wv|w1|w3)\.(weight|bias|mindpet_delta_lora_[ab])$")
_ROW = re.compile(r"\.(wo|w2)\.(weight|mindpet_delta_lora_[ab])$")


@dataclass(frozen=True)
class Plan:
    """Layouts by stage; every stage has ``devices`` ranks, numbered on from stage to stage."""

    stages: Tuple[Dict[str, Cut], ...]
    devices: int

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.stages) * self.devices

    def window(self, name: str, shape: Tuple[int, ...], rank: int) -> Optional[Window]:
        """What ``rank`` holds of parameter ``name``; None: nothing, it belongs to another stage.

        Raises:
            Refused: ``shape`` cannot be cut as the plan says.
        """
        stage, device = divmod(rank, self.devices)
        cut = self.stages[stage].get(name)
        if cut is None:
            if any(name in other for other in self.stages):
                return None
            cut = Cut((self.devices,), ())  # unknown to the strategy: every rank holds it whole, as MindSpore does
        try:
            return cut.window(shape, device)
        except ValueError as error:
            raise Refused(f"{name}: {error}. Choose another model_parallel or data_parallel.") from None


def base_name(name: str) -> str:
    """The parameter that an optimizer state belongs to (``adam_m.x`` -> ``x``), or ``name`` itself."""
    for prefix in _STATES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def stage_of_layer(layer: int, layers: int, stages: int) -> int:
    """MindFormers gives a stage ``int((layers + 1) / stages)`` layers, the last the rest (``layer_compute_dtype``)."""
    return min(layer // max((layers + 1) // stages, 1), stages - 1)


def stage_of(name: str, layers: int, stages: int) -> Optional[int]:
    """The pipeline stage of a parameter; None: every stage (scalars such as the loss scale)."""
    name = base_name(name)
    found = _LAYER.match(name)
    if found:
        return stage_of_layer(int(found.group(1)), layers, stages)
    if name.startswith("model.tok_embeddings."):
        return 0
    return stages - 1 if name.startswith(("model.norm_out.", "lm_head.")) else None


def make_plan(tensors: Sequence[Planned], parallel: Parallel, optimizer_parallel: bool = True) -> Plan:
    """The layout of each of ``tensors`` (full shapes) under ``parallel``.

    Raises:
        Refused: tensors that cannot be cut into ``model_parallel`` equal parts, all of them named.
    """
    names = [base_name(item.name) for item in tensors]
    layers = 1 + max([int(found.group(1)) for name in names for found in [_LAYER.match(name)] if found] or [0])
    stages: List[Dict[str, Cut]] = [{} for _ in range(parallel.pipeline_stage)]
    cuts: Dict[Planned, Cut] = {}
    problems = []
    for tensor, name in zip(tensors, names):
        kind = Planned(_LAYER.sub("", name), tensor.kind, tensor.shape)  # every layer is cut alike
        cut = cuts[kind] if kind in cuts else cuts.setdefault(kind, _cut(kind, parallel, optimizer_parallel))
        home = stage_of(name, layers, parallel.pipeline_stage)
        for stage in range(parallel.pipeline_stage) if home is None else [home]:
            stages[stage][tensor.name] = cut
        for dimension, side in enumerate(tensor.shape[:2]):
            if side % cut.parts(dimension):
                problems.append(f"{tensor.name} {list(tensor.shape)}")
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise Refused(f"model_parallel {parallel.model_parallel} does not divide: {', '.join(problems[:6])}{more}.")
    return Plan(tuple(stages), parallel.data_parallel * parallel.model_parallel)


def _cut(tensor: Planned, parallel: Parallel, optimizer_parallel: bool) -> Cut:
    dp, mp = parallel.data_parallel, parallel.model_parallel
    name, shape = tensor.name, tensor.shape
    by_mp, uncut = 0, -1
    tensor_map = [uncut] * len(shape)
    if _COLUMN.search(name) and not name.endswith("_a"):
        tensor_map[0] = by_mp
    elif _ROW.search(name) and not name.endswith("_b"):
        tensor_map[1] = by_mp
    elif name.startswith(("lm_head.", "model.tok_embeddings.")) and not parallel.vocab_emb_dp:
        tensor_map[0] = by_mp
    cut = Cut((dp, mp), tuple(tensor_map))
    if not optimizer_parallel or name.startswith("model.tok_embeddings.") or len(shape) < 2:
        return cut
    held = cut.parts(0) * cut.parts(1)
    step, size = (mp, dp) if held > 1 else (1, dp * mp)
    slice_bytes = elements(shape) // held * KINDS[tensor.kind].width
    if size == 1 or slice_bytes < THRESHOLD or shape[0] % (cut.parts(0) * size):
        return cut
    return Cut((dp, mp), tuple(tensor_map), step, size)


def plan_from_strategy(path: Union[str, Path]) -> Plan:
    """The plan in a strategy file that MindSpore wrote (``*_rank_N.ckpt``; several stages: the merged file).

    Raises:
        Refused: no strategy file, or stages of different sizes.
    """
    stages = stages_of(read_strategy(path))
    sizes = {cut.devices for stage in stages for cut in stage.values()}
    if len(sizes) != 1:
        raise Refused(f"{path}: the layouts speak of {sorted(sizes)} devices a stage; they must agree.")
    return Plan(tuple(stages), sizes.pop())


def wanted_ranks(text: str, ranks: int) -> List[int]:
    """``"0-3,8"`` -> [0, 1, 2, 3, 8]; empty: all.

    Raises:
        Refused: not of this form, or a rank beyond the plan.
    """
    if not text.strip():
        return list(range(ranks))
    found: Set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise Refused(f"--ranks must read like 0-3,8; found {text!r}.")
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first or last >= ranks:
            raise Refused(f"--ranks {part.strip()}: the plan has the ranks 0 to {ranks - 1}.")
        found.update(range(first, last + 1))
    return sorted(found)
