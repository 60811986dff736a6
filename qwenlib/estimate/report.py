"""The estimate of one profile as a value, a table and a figure."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

from qwenlib.errors import Refused
from qwenlib.estimate.memory import GIB, limit_bytes, per_card
from qwenlib.estimate.plans import SIZES, suggest
from qwenlib.estimate.slices import slices
from qwenlib.estimate.speed import HOW, default_mfu, guide_rows, length
from qwenlib.profile import Profile

ALPACA_ROWS = 52002
"""Records of alpaca_data.json: what is reckoned with when no data set is at hand."""


def with_size(profile: Profile, size: str) -> Profile:
    """``profile`` with the sizes of another Qwen1.5 ("14B").

    Raises:
        Refused: no such size.
    """
    if size not in SIZES:
        raise Refused(f"there is no Qwen1.5 of size {size!r}; there are: {', '.join(SIZES)}.")
    sizes = {"n_kv_heads": None, "vocab_size": 151936, **SIZES[size]}
    return dataclasses.replace(profile, model=dataclasses.replace(profile.model, **sizes))


def estimate(
    profile: Profile,
    task_name: str,
    *,
    rows: int = ALPACA_ROWS,
    real_share: float = 1.0,
    mfu: float = 0.0,
    cards: int = 0,
) -> Dict[str, Any]:
    """Everything about one training before it starts, as plain values (bytes, tokens, hours).

    Args:
        rows: rows of the data set.
        real_share: the part of its tokens that is not padding.
        mfu: model FLOPs utilisation to reckon with; 0: what the guide's measured row implies.
        cards: for how many cards plans are suggested; 0: the profile's.

    Raises:
        Refused: the profile has no such task; a number out of its range.
    """
    task = profile.task(task_name)
    if rows < 1 or not 0 < real_share <= 1 or not 0 <= mfu <= 1:
        raise Refused(f"rows must be 1 or more ({rows}), real_share in (0, 1] ({real_share}), mfu in [0, 1] ({mfu}).")
    ascend = profile.device_target == "Ascend"
    stages = per_card(profile, task_name)
    limit, peak = limit_bytes(profile), max(stage.total for stage in stages)
    every = slices(profile.model, task.parallel, task.adapter)
    learned = sum(item.size for item in every if item.trainable)
    whole = (2 if profile.model.param_init_type == "float16" else 4) * sum(item.size for item in every)
    copies = task.keep_checkpoint_max
    return {
        "profile": profile.name,
        "task": task_name,
        "cards": task.parallel.ranks,
        "limit": limit,
        "peak": peak,
        "fits": peak <= limit,
        "stages": [{"stage": stage.stage, "total": stage.total, **stage.parts} for stage in stages],
        "parameters": sum(item.size for item in every),
        "trainable_parameters": learned,
        "length": length(profile, task, rows, real_share, mfu or default_mfu(task)),
        "mfu_counted": HOW,
        # Weights alone, overwritten at each save; and with Adam's two float32 states, keep_checkpoint_max of them.
        "disk": {"weights": whole, "with_optimizer": copies * (whole + 8 * learned)},
        "guide": guide_rows(),
        "plans": suggest(profile, task_name, cards or task.parallel.ranks, real_share) if ascend else [],
    }


def text(found: Dict[str, Any]) -> str:
    """An estimate in a few lines."""
    told, disk = found["length"], found["disk"]
    fits = "fits" if found["fits"] else "DOES NOT FIT"
    speed = "no speed is known for a CPU"
    if told["hours"] is not None:
        speed = (
            f"{told['hours']:.1f} h at MFU {told['mfu']:.1%} ({told['tokens_per_second_per_card']:.0f} tokens/s a card)"
        )
    lines = [
        f"{found['profile']}, {found['task']} on {found['cards']} card(s): {found['peak'] / GIB:.1f} of "
        f"{found['limit'] / GIB:.0f} GiB a card, it {fits}; {found['trainable_parameters']:,} of "
        f"{found['parameters']:,} parameters learn",
    ]
    for stage in found["stages"]:
        parts = ", ".join(f"{key} {value / GIB:.1f}" for key, value in stage.items() if key not in ("stage", "total"))
        lines.append(f"  stage {stage['stage']}: {stage['total'] / GIB:.1f} GiB = {parts}")
    lines += [
        f"{told['steps']:,} steps of {told['rows_per_step']} rows; {told['tokens']:,} tokens, {told['real_tokens']:,} "
        f"without padding; {speed}",
        f"checkpoints: {disk['weights'] / GIB:.1f} GiB weights, {disk['with_optimizer'] / GIB:.1f} GiB to resume from",
    ]
    if told["hours"] is None:
        return "\n".join(lines)
    for row in found["guide"]:
        lines.append(
            f"guide: {row['config']}, {row['cards']} cards, seq_length {row['seq_length']}: "
            f"{row['tokens_per_second_per_card']:.0f} tokens/s a card, MFU {row['mfu']:.1%}"
        )
    lines.append(f"({found['mfu_counted']})")
    lines.append("plans that fit, fastest first:" if found["plans"] else "no plan fits on so many cards")
    lines += ["  " + ", ".join(f"{key} {value}" for key, value in row.items()) for row in found["plans"]]
    return "\n".join(lines)


def frame(found: Dict[str, Any]) -> Any:
    """The suggested plans as a pandas table."""
    import pandas

    return pandas.DataFrame(found["plans"])


def figure(found: Dict[str, Any]) -> Any:
    """A stacked bar of a card's memory for each pipeline stage, against the limit (a matplotlib figure)."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 1.6 + 0.5 * len(found["stages"])), layout="constrained")
    axes = drawn.subplots()
    parts = [key for key in found["stages"][0] if key not in ("stage", "total")]
    labels = [f"stage {stage['stage']}" for stage in found["stages"]]
    left = [0.0] * len(labels)
    for part in parts:
        widths = [stage[part] / GIB for stage in found["stages"]]
        axes.barh(labels, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths)]
    axes.axvline(found["limit"] / GIB, color="black", linestyle="--", label=f"limit {found['limit'] / GIB:.0f}")
    axes.invert_yaxis()
    axes.set_xlabel("GiB a card (estimate)")
    axes.set_title(f"{found['profile']} · {found['task']}")
    axes.legend(ncols=4, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.25 - 0.25 / len(labels)))
    return drawn
