"""Plans that fit: every way to lay a training out over some cards, ranked."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from qwenlib.errors import Refused
from qwenlib.estimate.memory import limit_bytes, per_card
from qwenlib.estimate.speed import default_mfu, length, rows_per_step
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

ALPACA_ROWS = 52002
"""Records of alpaca_data.json: what is reckoned with when no data set is at hand."""
MOST_CARDS = 64
CARDS_A_SERVER = 8
FULL = 0.95
"""Share of max_device_memory that a suggested plan may fill: an estimate needs room for what it leaves out."""


def suggest(
    profile: Profile,
    task_name: str,
    cards: int,
    *,
    rows: int = ALPACA_ROWS,
    real_share: float = 1.0,
    mfu: float = 0.0,
    most: int = 8,
) -> List[Dict[str, Any]]:
    """Plans for ``cards`` cards that fit into memory, the fastest first; [] when none fits.

    The order is by estimated tokens a second: ``mfu`` (that of the profile's own layout; 0: what the guide's row
    implies), more or less by what another layout costs (:func:`qwenlib.estimate.speed.efficiency`). ``hours``: for
    ``rows`` rows as they are; ``hours_packed``: when short records are packed into full rows (``real_share`` of the
    places hold a token). Of the batch sizes, numbers of micro-batches and with or without recomputing, the best of
    each layout is kept. ``vocab_emb_dp`` is the profile's; where that fits nowhere, the embedding and lm_head are
    split too.

    Raises:
        Refused: ``cards`` is not 1 to 64.
    """
    if not 1 <= cards <= MOST_CARDS:
        raise Refused(f"cards must be 1 to {MOST_CARDS}, found {cards}.")
    task = profile.task(task_name)
    scale = mfu / default_mfu(task, profile.model, profile.data.seq_length) if mfu else 1.0
    for whole in dict.fromkeys((task.parallel.vocab_emb_dp, False)):
        found = [
            _row(with_task(profile, task_name, trial), trial, cards, rows, real_share, scale, peak)
            for trial, peak in _fitting(profile, task_name, cards, whole)
            if rows_per_step(trial) <= rows
        ]
        # Equal speed: the plan that leaves more memory, then the smaller step.
        found.sort(key=lambda row: (-row["tokens_per_second"], row["peak_gib"], row["rows_per_step"]))
        best: Dict[Any, Dict[str, Any]] = {}
        for row in found:
            best.setdefault(tuple(row[key] for key in ("data_parallel", "model_parallel", "pipeline_stage")), row)
        if best:
            return list(best.values())[:most]
    return []


def fewest_cards(profile: Profile, task_name: str) -> Optional[int]:
    """The fewest cards (1, 2, 4 or whole servers of 8) on which a plan fits; None: more than 64."""
    whole_servers = range(CARDS_A_SERVER, MOST_CARDS + 1, CARDS_A_SERVER)
    return next((cards for cards in (1, 2, 4, *whole_servers) if suggest(profile, task_name, cards, most=1)), None)


def servers(cards: int) -> Tuple[int, int]:
    """``(servers, cards on each)``: as few as can be; HCCL on 910A takes 1, 2, 4 or 8 cards of a server, all alike."""
    each = next(number for number in (8, 4, 2, 1) if cards % number == 0)
    return cards // each, each


def settings(task_name: str, row: Mapping[str, Any]) -> List[str]:
    """A suggested plan as overrides of the profile (``-s``)."""
    keys = ("data_parallel", "model_parallel", "pipeline_stage", "micro_batch_num", "vocab_emb_dp")
    found = [f"{task_name}.parallel.{key}={_word(row[key])}" for key in keys]
    return found + [f"{task_name}.{key}={_word(row[key])}" for key in ("batch_size", "recompute")]


def _word(value: Any) -> str:
    return str(value).lower()


def with_task(profile: Profile, name: str, task: Task) -> Profile:
    """``profile`` with another task of that name."""
    changes: Dict[str, Any] = {name: task}
    return dataclasses.replace(profile, **changes)


def _fitting(profile: Profile, task_name: str, cards: int, vocab_emb_dp: bool) -> Iterator[Tuple[Task, int]]:
    limit = FULL * limit_bytes(profile)
    for trial in _candidates(profile.model, profile.task(task_name), cards, vocab_emb_dp):
        peak = max(stage.total for stage in per_card(with_task(profile, task_name, trial), task_name))
        if peak <= limit:
            yield trial, peak


def _row(
    profile: Profile, trial: Task, cards: int, rows: int, real_share: float, scale: float, peak: int
) -> Dict[str, Any]:
    mfu = scale * default_mfu(trial, profile.model, profile.data.seq_length)
    told = length(profile, trial, rows, real_share, mfu)
    plan = dataclasses.asdict(trial.parallel)
    keys = ("data_parallel", "model_parallel", "pipeline_stage", "micro_batch_num", "vocab_emb_dp")
    return {
        **{key: plan[key] for key in keys},
        "batch_size": trial.batch_size,
        "recompute": trial.recompute,
        "rows_per_step": told["rows_per_step"],
        "peak_gib": round(peak / 2**30, 1),
        "tokens_per_second": round(told["tokens_per_second_per_card"] * cards),
        "hours": round(told["hours"], 2),
        "hours_packed": round(told["hours"] * (1.0 if profile.data.pack else real_share), 2),
    }


def _candidates(model: Model, task: Task, cards: int, vocab_emb_dp: bool) -> Iterator[Task]:
    kv = model.n_kv_heads or model.num_heads
    for mp in (1, 2, 4, 8):  # not across servers: HCCS joins the cards of one
        if cards % mp or any(size % mp for size in (model.num_heads, kv, model.hidden_size, model.intermediate_size)):
            continue
        if not vocab_emb_dp and model.vocab_size % mp:
            continue
        for pp in range(1, min(cards // mp, model.num_layers // 2) + 1):
            if cards // mp % pp:
                continue
            for micro in (1,) if pp == 1 else (2 * pp, 4 * pp, 8 * pp):
                plan = Parallel(cards // mp // pp, mp, pp, micro, vocab_emb_dp=vocab_emb_dp)
                for recompute in (False, True):
                    for batch in (1, 2, 4):
                        yield dataclasses.replace(task, parallel=plan, recompute=recompute, batch_size=batch)
