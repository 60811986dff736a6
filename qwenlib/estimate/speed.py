"""Steps, tokens and hours; and what the guide's two measured rows say about the machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Dict, List

from qwenlib import profile as profiles
from qwenlib.doctor.needs import parameters
from qwenlib.estimate.slices import slices
from qwenlib.profile import Model, Profile, Task

PEAK_FLOPS = 256e12
"""Float16 operations a second of an Ascend 910, as Huawei states them."""

SPLIT_COST = 0.06
"""Assumed loss of speed each time model_parallel doubles within a server (AllReduce after attention and MLP)."""

HOW = (
    "MFU counts the operations that the model needs, not recomputed ones: 2 a token and matrix element in the forward "
    "pass (all but the embedding), twice that in the backward pass (once for frozen matrices: LoRA needs no gradient "
    "of them), and 4·layers·hidden·seq_length for the attention scores, three times (PaLM, appendix B; padding "
    "counts); over 256 TFLOPS float16 a card"
)


@dataclass(frozen=True)
class Measured:
    """A row of the guide: tokens a second and card."""

    profile: str
    task: str
    tokens_per_second: float


GUIDE = (Measured("lora_7b_910a", "lora", 1020.0), Measured("finetune_7b_910a", "finetune", 1060.0))


def flops_per_token(model: Model, task: Task, seq_length: int) -> float:
    """Floating-point operations of one trained token; see :data:`HOW`."""
    matrices = parameters(model) - model.vocab_size * model.hidden_size
    attention = 12.0 * model.num_layers * model.hidden_size * seq_length
    if task.adapter is None:
        return 6.0 * matrices + attention
    learned = sum(item.size for item in slices(model, profiles.Parallel(), task.adapter) if item.trainable)
    adapter = learned - (model.vocab_size * model.hidden_size if task.adapter.train_lm_head else 0)
    # Forward and the gradient of the activations through everything; gradients of weights for what is learned.
    return 4.0 * (matrices + adapter) + 2.0 * learned + attention


@functools.lru_cache(maxsize=1)
def guide_rows() -> List[Dict[str, Any]]:
    """The guide's measured speeds with the MFU that each implies (upstream's LoRA also trains lm_head)."""
    found: List[Dict[str, Any]] = []
    for row in GUIDE:
        settings = ["lora.adapter.train_lm_head=true"] if row.task == "lora" else []
        profile = profiles.load(row.profile, settings)
        task = profile.task(row.task)
        each = flops_per_token(profile.model, task, profile.data.seq_length)
        found.append(
            {
                "config": row.profile,
                "cards": task.parallel.ranks,
                "seq_length": profile.data.seq_length,
                "tokens_per_second_per_card": row.tokens_per_second,
                "mfu": each * row.tokens_per_second / PEAK_FLOPS,
            }
        )
    return found


def efficiency(task: Task) -> float:
    """What a layout leaves of the speed: the pipeline's bubble, the cost of splitting matrices, recomputing."""
    plan = task.parallel
    left = (1 - SPLIT_COST) ** (plan.model_parallel.bit_length() - 1) * (1 - bubble(task))
    if task.recompute:  # the forward pass once more
        left *= 3 / 4 if task.adapter is None else 2 / 3
    return left


def bubble(task: Task) -> float:
    """The part of a step in which a pipeline stage waits: (p - 1)/(m + p - 1) (Narayanan et al. 2021)."""
    plan = task.parallel
    return (plan.pipeline_stage - 1) / (plan.micro_batch_num + plan.pipeline_stage - 1)


def default_mfu(task: Task) -> float:
    """The MFU of the guide's row of the same kind (LoRA or all parameters), carried over to the task's layout."""
    place = 0 if task.adapter is not None else 1
    row = GUIDE[place]
    measured = profiles.load(row.profile).task(row.task)
    return float(guide_rows()[place]["mfu"]) * efficiency(task) / efficiency(measured)


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
    speed = mfu * PEAK_FLOPS / flops_per_token(profile.model, task, seq)
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
