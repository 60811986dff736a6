"""The estimate of one profile as a value, a table and a figure."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from qwenlib.errors import QwenlibError, Refused
from qwenlib.estimate.memory import GIB, SOURCES, limit_bytes, per_card
from qwenlib.estimate.plans import ALPACA_ROWS, SIZES, fewest_cards, servers, settings, suggest
from qwenlib.estimate.slices import slices
from qwenlib.estimate.speed import HOW, default_mfu, guide_rows, length
from qwenlib.profile import Profile


def with_size(profile: Profile, size: str) -> Profile:
    """``profile`` with the sizes of another Qwen1.5 ("14B").

    Raises:
        Refused: no such size.
    """
    if size not in SIZES:
        raise Refused(f"there is no Qwen1.5 of size {size!r}; there are: {', '.join(SIZES)}.")
    sizes = {"n_kv_heads": None, "vocab_size": 151936, **SIZES[size]}
    return dataclasses.replace(profile, model=dataclasses.replace(profile.model, **sizes))


def data_at_hand(path: Union[str, Path], rows: int = 0, real_share: float = 0.0) -> Tuple[int, float]:
    """``(rows, real_share)`` of a MindRecord: what is given (not 0) stands, the rest is read from it.

    Raises:
        Refused: the file is not there, or cannot be read.
    """
    from qwenlib.data import count_rows, read_meta

    counted = rows or count_rows(path)
    if not real_share:
        with contextlib.suppress(QwenlibError):  # not built by qwenlib: nobody knows
            real_share = float(read_meta(path).get("real_share", 1.0))
    return counted, real_share or 1.0


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
    on = cards or task.parallel.ranks
    plans = suggest(profile, task_name, on, rows=rows, real_share=real_share, mfu=mfu) if ascend else []
    return {
        "profile": profile.name,
        "task": task_name,
        "cards": task.parallel.ranks,
        "limit": limit,
        "peak": peak,
        "fits": peak <= limit if ascend else None,
        "stages": [{"stage": stage.stage, "total": stage.total, **stage.parts} for stage in stages],
        "parameters": sum(item.size for item in every),
        "trainable_parameters": learned,
        "length": length(
            profile, task, rows, real_share, mfu or default_mfu(task, profile.model, profile.data.seq_length)
        ),
        "mfu_counted": HOW,
        # Weights alone, overwritten at each save; and with Adam's two float32 states, keep_checkpoint_max of them.
        "disk": {"weights": whole, "with_optimizer": copies * (whole + 8 * learned)},
        "guide": guide_rows(),
        "memory_counted": SOURCES,
        "plans": plans,
        "plans_for": on,
        "fewest_cards": fewest_cards(profile, task_name) if ascend and not plans else None,
    }


def text(found: Dict[str, Any]) -> str:
    """An estimate in a few lines."""
    told, disk = found["length"], found["disk"]
    memory = f"{_size(found['peak'])} a rank"
    speed = "no speed is known for a CPU"
    if found["fits"] is not None:
        fits = "it fits" if found["fits"] else "it DOES NOT FIT"
        memory = f"{_size(found['peak'])} of {_size(found['limit'])} a card, {fits}"
        speed = (
            f"{told['seconds_per_step']:.2f} s a step, {told['hours']:.1f} h at MFU {told['mfu']:.1%} "
            f"({told['tokens_per_second_per_card']:.0f} tokens/s a card)"
        )
    lines = [
        f"{found['profile']}, {found['task']} on {found['cards']} card(s): {memory}; "
        f"{found['trainable_parameters']:,} of {found['parameters']:,} parameters learn",
    ]
    for stage in found["stages"]:
        parts = [f"{key} {_size(value)}" for key, value in stage.items() if key not in ("stage", "total") and value]
        lines.append(f"  stage {stage['stage']}: {_size(stage['total'])} = {', '.join(parts)}")
    lines += [
        f"{told['steps']:,} steps of {told['rows_per_step']} rows; {told['tokens']:,} tokens, {told['real_tokens']:,} "
        f"without padding; {speed}",
        f"checkpoints: {_size(disk['weights'])} weights, {_size(disk['with_optimizer'])} to resume from",
    ]
    if found["fits"] is None:
        return "\n".join(lines)
    for row in found["guide"]:
        lines.append(
            f"guide: {row['config']}, {row['cards']} cards, seq_length {row['seq_length']}: "
            f"{row['tokens_per_second_per_card']:.0f} tokens/s a card, MFU {row['mfu']:.1%}"
        )
    return "\n".join([*lines, f"({found['mfu_counted']})", f"({found['memory_counted']})", *_plans(found)])


_HEADS = {
    "data_parallel": "dp",
    "model_parallel": "mp",
    "pipeline_stage": "pp",
    "micro_batch_num": "micro",
    "batch_size": "batch",
    "recompute": "recompute",
    "rows_per_step": "rows/step",
    "peak_gib": "GiB",
    "tokens_per_second": "tokens/s",
    "hours": "hours",
    "hours_packed": "packed",
}


def _plans(found: Dict[str, Any]) -> List[str]:
    many, each = servers(found["plans_for"])
    where = f"{found['plans_for']} card(s) ({many} server(s) with {each})"
    if not found["plans"]:
        fewest = found["fewest_cards"]
        instead = f"--cards {fewest} is the least that does" if fewest else "nor on any number of cards up to 64"
        return [f"no plan fits on {where} and fills its steps with {found['length']['rows']:,} rows; {instead}"]
    cells = [list(_HEADS.values()), *([_cell(row[key]) for key in _HEADS] for row in found["plans"])]
    widths = [max(len(row[place]) for row in cells) for place in range(len(_HEADS))]
    table = ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells]
    best = " ".join(f"-s {item}" for item in settings(found["task"], found["plans"][0]))
    return [f"plans that fit on {where}, fastest first (packed: hours with data.pack):", *table, f"the first: {best}"]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def frame(found: Dict[str, Any]) -> Any:
    """The suggested plans as a pandas table."""
    import pandas

    return pandas.DataFrame(found["plans"])


def figure(found: Dict[str, Any]) -> Any:
    """A stacked bar of a card's memory for each pipeline stage, against the limit (a matplotlib figure)."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 2 + 0.5 * len(found["stages"])), layout="constrained")
    axes = drawn.subplots()
    cards = found["fits"] is not None
    unit, name = (GIB, "GiB") if cards or found["peak"] >= GIB else (2**20, "MiB")
    parts = [key for key in found["stages"][0] if key not in ("stage", "total")]
    labels = [f"stage {stage['stage']}" for stage in found["stages"]]
    left = [0.0] * len(labels)
    for part in parts:
        widths = [stage[part] / unit for stage in found["stages"]]
        if any(widths):
            axes.barh(labels, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths)]
    if cards:
        axes.axvline(found["limit"] / unit, color="black", linestyle="--", label=f"limit {_size(found['limit'])}")
    axes.invert_yaxis()
    axes.set_xlabel(f"{name} a {'card' if cards else 'rank'} (estimate)")
    axes.set_title(f"{found['profile']} · {found['task']}")
    drawn.legend(ncols=4, fontsize="small", loc="outside lower center")
    return drawn


def picture(found: Dict[str, Any]) -> Any:
    """:func:`figure` as a PNG that every front end shows (a figure without pyplot may be shown as its name only)."""
    import io

    from IPython.display import Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = figure(found)
    FigureCanvasAgg(drawn)
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=110)
    return Image(stream.getvalue(), format="png", alt=f"memory: {_size(found['peak'])} at the most")
