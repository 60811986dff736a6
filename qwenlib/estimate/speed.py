"""Steps, tokens and hours; and what the guide's two measured rows say about the machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from qwenlib import profile as profiles
from qwenlib.doctor.needs import parameters
from qwenlib.estimate.slices import layers_of_stages
from qwenlib.monitor.flops import PEAK_FLOPS, flops_per_token
from qwenlib.profile import Model, Profile, Task

PEAK = PEAK_FLOPS["910A"]
"""Float16 operations a second of a card."""

SPLIT_COST = 0.06
"""Assumed loss of speed each time model_parallel doubles within a server (AllReduce after attention and MLP)."""

HOW = (
    "MFU counts what the model needs, recomputation not: 6 operations a token and trained weight that multiplies, 4 "
    "for a frozen one (LoRA needs no gradient of it), none for the embedding table, and 12·layers·hidden·seq_length "
    "for the attention scores (PaLM, appendix B, arXiv:2204.02311); padding counts as tokens; over 256 TFLOPS float16 "
    "a card"
)
"""How :func:`qwenlib.monitor.flops.flops_per_token` counts."""


@dataclass(frozen=True)
class Measured:
    """A row of the guide: tokens a second and card."""

    profile: str
    task: str
    tokens_per_second: float


GUIDE = (Measured("lora_7b_910a", "lora", 1020.0), Measured("finetune_7b_910a", "finetune", 1060.0))


@functools.lru_cache(maxsize=1)
def guide_rows() -> List[Dict[str, Any]]:
    """The guide's measured speeds with the MFU that each implies (upstream's LoRA also trains lm_head)."""
    found: List[Dict[str, Any]] = []
    for row in GUIDE:
        settings = ["lora.adapter.train_lm_head=true"] if row.task == "lora" else []
        profile = profiles.load(row.profile, settings)
        task = profile.task(row.task)
        each = flops_per_token(profile.model, profile.data.seq_length, task.adapter)
        found.append(
            {
                "config": row.profile,
                "cards": task.parallel.ranks,
                "seq_length": profile.data.seq_length,
                "tokens_per_second_per_card": row.tokens_per_second,
                "mfu": each * row.tokens_per_second / PEAK,
            }
        )
    return found


def efficiency(model: Model, task: Task, seq_length: int) -> float:
    """What a layout leaves of the speed: bubble, uneven stages, the cost of splitting matrices, recomputing."""
    plan = task.parallel
    left = (1 - SPLIT_COST) ** (plan.model_parallel.bit_length() - 1)
    left *= (1 - bubble(task)) * balance(model, task, seq_length)
    if task.recompute:  # the forward pass once more
        left *= 3 / 4 if task.adapter is None else 2 / 3
    return left


def balance(model: Model, task: Task, seq_length: int) -> float:
    """An even share of the operations over those of the pipeline's busiest card, 0 to 1.

    The last stage has lm_head beside its layers, and what the layers do not divide by; with ``vocab_emb_dp`` every
    card of a model_parallel group computes the whole lm_head (MindFormers' strategy ((dp, 1), (1, 1))).
    """
    plan, passes = task.parallel, 6.0 if task.adapter is None else 4.0
    head = passes * model.vocab_size * model.hidden_size
    embeddings = 2 * model.vocab_size * model.hidden_size
    layer = passes * (parameters(model) - embeddings) / model.num_layers + 12.0 * model.hidden_size * seq_length
    split = not plan.vocab_emb_dp and model.vocab_size % plan.model_parallel == 0
    counts = layers_of_stages(model, plan)
    busy = [count * layer / plan.model_parallel for count in counts]
    busy[-1] += head / (plan.model_parallel if split else 1)
    even = (model.num_layers * layer + head) / (plan.model_parallel * plan.pipeline_stage)
    return even / max(busy)


def bubble(task: Task) -> float:
    """The part of a step in which a pipeline stage waits: (p - 1)/(m + p - 1) (Narayanan et al. 2021)."""
    plan = task.parallel
    return (plan.pipeline_stage - 1) / (plan.micro_batch_num + plan.pipeline_stage - 1)


def default_mfu(task: Task, model: Optional[Model] = None, seq_length: int = 0) -> float:
    """The MFU of the guide's row of the same kind (LoRA or all parameters), carried over to the task's layout.

    ``model`` and ``seq_length`` left out: the guide's own.
    """
    place = 0 if task.adapter is not None else 1
    there = profiles.load(GUIDE[place].profile) if model is None or not seq_length else None
    here = efficiency(model or there.model, task, seq_length or there.data.seq_length)  # type: ignore[union-attr]
    return float(guide_rows()[place]["mfu"]) * here / _efficiency_there(place)


@functools.lru_cache(maxsize=2)
def _efficiency_there(place: int) -> float:
    measured = profiles.load(GUIDE[place].profile)
    return efficiency(measured.model, measured.task(GUIDE[place].task), measured.data.seq_length)


def rows_per_step(task: Task) -> int:
    """Rows of one step over all ranks; MindFormers counts micro-batches only with a pipeline."""
    plan = task.parallel
    micro = plan.micro_batch_num if plan.pipeline_stage > 1 else 1
    return task.batch_size * plan.data_parallel * micro


def length(profile: Profile, task: Task, rows: int, real_share: float, mfu: float) -> Dict[str, Any]:
    """Steps, tokens with and without padding, tokens a second and card, seconds a step, hours.

    On the CPU, whose speed nobody has stated, what follows from the speed is None.
    """
    seq, per_step = profile.data.seq_length, rows_per_step(task)
    steps = rows // per_step * task.epochs
    known = profile.device_target == "Ascend"
    speed = mfu * PEAK / flops_per_token(profile.model, seq, task.adapter)
    tokens = steps * per_step * seq
    return {
        "rows": rows,
        "rows_per_step": per_step,
        "steps": steps,
        "tokens": tokens,
        "real_tokens": round(tokens * real_share),
        "mfu": mfu if known else None,
        "pipeline_bubble": bubble(task),
        "tokens_per_second_per_card": speed if known else None,
        "seconds_per_step": per_step * seq / (speed * task.parallel.ranks) if known else None,
        "hours": tokens / (speed * task.parallel.ranks) / 3600 if known else None,
    }
