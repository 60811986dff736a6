"""Plans that fit: every way to lay a training out over some cards, ranked."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator, List

from qwenlib.errors import Refused
from qwenlib.estimate.memory import limit_bytes, per_card
from qwenlib.estimate.speed import default_mfu, length
from qwenlib.profile import Model, Parallel, Profile, Task

SIZES: Dict[str, Dict[str, Any]] = {
    "0.5B": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 2816},
    "1.8B": {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "intermediate_size": 5504},
    "4B": {"hidden_size": 2560, "num_layers": 40, "num_heads": 20, "intermediate_size": 6912},
    "7B": {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "intermediate_size": 11008},
    "14B": {"hidden_size": 5120, "num_layers": 40, "num_heads": 40, "intermediate_size": 13696, "vocab_size": 152064},
    "32B": {
        "hidden_size": 5120,
        "num_layers": 64,
        "num_heads": 40,
        "n_kv_heads": 8,
        "intermediate_size": 27392,
        "vocab_size": 152064,
    },
    "72B": {"hidden_size": 8192, "num_layers": 80, "num_heads": 64, "intermediate_size": 24576, "vocab_size": 152064},
    "110B": {
        "hidden_size": 8192,
        "num_layers": 80,
        "num_heads": 64,
        "n_kv_heads": 8,
        "intermediate_size": 49152,
        "vocab_size": 152064,
    },
}
"""Qwen1.5's sizes (config.json of each); vocab_size 151936 unless it says otherwise."""

MOST_CARDS = 64
FULL = 0.95
"""Share of max_device_memory that a suggested plan may fill: an estimate needs room for what it leaves out."""


def suggest(
    profile: Profile, task_name: str, cards: int, real_share: float = 1.0, most: int = 8
) -> List[Dict[str, Any]]:
    """Plans for ``cards`` cards that fit into memory, the fastest first; [] when none fits.

    The order is by estimated tokens a second: the MFU of the guide's row, more or less by what the layout costs
    (:func:`qwenlib.estimate.speed.efficiency`); ``packing_gain``: what packing short records into full rows would bring
    (1 / real_share).

    Raises:
        Refused: ``cards`` is not 1 to 64.
    """
    if not 1 <= cards <= MOST_CARDS:
        raise Refused(f"cards must be 1 to {MOST_CARDS}, found {cards}.")
    limit, found = limit_bytes(profile), []
    for task in _candidates(profile.model, profile.task(task_name), cards):
        trial = with_task(profile, task_name, task)
        peak = max(stage.total for stage in per_card(trial, task_name))
        if peak > FULL * limit:
            continue
        told = length(trial, task, 10**6, real_share, default_mfu(task))
        plan = task.parallel
        found.append(
            {
                "data_parallel": plan.data_parallel,
                "model_parallel": plan.model_parallel,
                "pipeline_stage": plan.pipeline_stage,
                "micro_batch_num": plan.micro_batch_num,
                "batch_size": task.batch_size,
                "recompute": task.recompute,
                "rows_per_step": told["rows_per_step"],
                "peak_gib": round(peak / 2**30, 1),
                "tokens_per_second": round(told["tokens_per_second_per_card"] * cards),
                "packing_gain": round(1 / real_share, 2) if real_share > 0 else None,
            }
        )
    # Equal speed: the plan that leaves more memory, then the smaller step.
    found.sort(key=lambda row: (-row["tokens_per_second"], row["peak_gib"], row["rows_per_step"]))
    return found[:most]


def with_task(profile: Profile, name: str, task: Task) -> Profile:
    """``profile`` with another task of that name."""
    changes: Dict[str, Any] = {name: task}
    return dataclasses.replace(profile, **changes)


def _candidates(model: Model, task: Task, cards: int) -> Iterator[Task]:
    kv = model.n_kv_heads or model.num_heads
    for mp in (1, 2, 4, 8):  # not across servers: HCCS joins the cards of one
        if cards % mp or any(size % mp for size in (model.num_heads, kv, model.hidden_size, model.intermediate_size)):
            continue
        for pp in (1, 2, 4, 8, 16):
            if cards // mp % pp or pp > model.num_layers // 2:
                continue
            for micro in (1,) if pp == 1 else (2 * pp, 4 * pp, 8 * pp):
                plan = Parallel(cards // mp // pp, mp, pp, micro, vocab_emb_dp=task.parallel.vocab_emb_dp)
                for recompute in (False, True):
                    for batch in (1, 2, 4):
                        yield dataclasses.replace(task, parallel=plan, recompute=recompute, batch_size=batch)
