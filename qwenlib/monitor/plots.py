"""Pictures of trainings: one run's loss, learning rate, throughput and memory; several runs in one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import atomic_path
from qwenlib.monitor.metrics import read_metrics

if TYPE_CHECKING:
    import pandas

MOST_POINTS = 2000
_GIB = 2**30


def plot(
    frame: pandas.DataFrame, title: str = "", memory: Optional[Sequence[Tuple[float, Dict[int, int]]]] = None
) -> Any:
    """A matplotlib figure of a run's metrics: loss (each step and smoothed), learning rate, tokens per second.

    ``memory``: ``[(seconds, {rank: bytes})]``; adds a fourth picture.
    """
    figure = _figure(11 if memory is None else 14, title)
    axes = figure.subplots(1, 3 if memory is None else 4)
    loss, rate, speed = axes[:3]
    thin = frame.iloc[:: max(1, len(frame) // MOST_POINTS)]
    line = {"marker": "o"} if len(frame) < 4 else {}  # a line of one point cannot be seen
    smooth = frame["loss"].ewm(span=smoothing(len(frame))).mean().loc[thin.index]
    loss.plot(thin["step"], thin["loss"], **line, color="0.75", linewidth=1, label="each step")
    loss.plot(thin["step"], smooth, **line, color="tab:blue", linewidth=2, label="smoothed")
    bad = frame[frame["overflow"].fillna(False).astype(bool)]
    if not bad.empty:
        loss.plot(bad["step"], bad["loss"], "x", color="tab:red", label=f"overflow, skipped ({len(bad)})")
    loss.set(title="loss", xlabel="step")
    if len(frame):
        loss.legend(fontsize="small")
    rate.plot(thin["step"], thin["lr"], **line, color="tab:orange")
    rate.set(title="learning rate", xlabel="step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    usual = thin.iloc[1:] if len(thin) > 1 else thin  # the first step includes the compilation
    speed.plot(usual["step"], usual["tokens_per_second"], **line, color="tab:green", label="all tokens")
    if not usual["real_tokens_per_second"].equals(usual["tokens_per_second"]):
        real = usual["real_tokens_per_second"]
        speed.plot(usual["step"], real, **line, color="tab:olive", label="without padding")
        speed.legend(fontsize="small")
    speed.set(title="tokens/s, all ranks", xlabel="step", ylim=(0, None))
    for each, column in ((loss, "loss"), (rate, "lr"), (speed, "tokens_per_second")):
        _finish(each, bool(frame[column].notna().any()))
    if memory is not None:
        _plot_memory(axes[3], memory)
    return figure


def _plot_memory(axes: Any, memory: Sequence[Tuple[float, Dict[int, int]]]) -> None:
    start = memory[0][0] if memory else 0.0
    for rank in sorted({rank for _, sample in memory for rank in sample}):
        seen = [((at - start) / 60, sample[rank] / _GIB) for at, sample in memory if rank in sample]
        axes.plot(*zip(*seen), marker="o" if len(seen) < 4 else "", label=f"rank {rank}")
    width = max(0.1, (memory[-1][0] - start) / 60 if memory else 0.0)  # one sample has no width of its own
    edge = 0.03 * width
    axes.set(title="host memory of the ranks, GiB", xlabel="minutes", xlim=(-edge, width + edge))
    axes.set_ylim(0, 1.1 * max([0.01, *(bytes_ / _GIB for _, sample in memory for bytes_ in sample.values())]))
    axes.grid(alpha=0.3)
    if not memory:
        axes.text(0.5, 0.5, "no rank seen here", ha="center", color="0.5", transform=axes.transAxes)
    elif len(axes.lines) <= 8:
        axes.legend(fontsize="small")


def compare(
    runs: Union[Sequence[Union[str, Path]], Mapping[str, Union[str, Path]]],
    title: str = "",
    file: Optional[Union[str, Path]] = None,
) -> Any:
    """Several runs in one figure: smoothed loss, learning rate, tokens per second.

    Args:
        runs: run directories (or ``metrics.jsonl`` files), or ``{name: run directory}``. Without names, they are
            called by the part of their paths that differs.
        file: also save it there, as PNG.

    Raises:
        Refused: no run is given, or one has no metrics.
    """
    named = dict(runs) if isinstance(runs, Mapping) else dict(zip(_names([str(run) for run in runs]), runs))
    if not named:
        raise Refused("give at least one run directory to compare.")
    frames = {name: read_metrics(path) for name, path in named.items()}
    empty = [str(named[name]) for name, frame in frames.items() if frame.empty]
    if empty:
        raise Refused(f"{', '.join(empty)}: no metrics.jsonl with a step in it, nothing to compare.")
    figure = _figure(13, title)
    loss, rate, speed = figure.subplots(1, 3)
    for name, frame in frames.items():
        thin = frame.iloc[:: max(1, len(frame) // MOST_POINTS)]
        smooth = frame["loss"].ewm(span=smoothing(len(frame))).mean().loc[thin.index]
        line = {"marker": "o"} if len(frame) < 4 else {}
        loss.plot(thin["step"], smooth, **line, label=name)
        rate.plot(thin["step"], thin["lr"], **line)
        usual = thin.iloc[1:] if len(thin) > 1 else thin
        speed.plot(usual["step"], usual["tokens_per_second"], **line)
    loss.set(title="loss, smoothed", xlabel="step")
    loss.legend(fontsize="small")
    rate.set(title="learning rate", xlabel="step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    speed.set(title="tokens/s, all ranks", xlabel="step", ylim=(0, None))
    for axes, column in ((loss, "loss"), (rate, "lr"), (speed, "tokens_per_second")):
        _finish(axes, any(frame[column].notna().any() for frame in frames.values()))
    if file is not None:
        with atomic_path(file) as part:
            figure.savefig(part, format="png")
    return figure


def _names(paths: List[str]) -> List[str]:
    """The parts of the paths that differ: ``a/x/04_lora`` and ``b/x/04_lora`` are ``a`` and ``b``."""
    parts = [Path(path).absolute().parts for path in paths]
    if len(paths) < 2 or len(set(parts)) < len(parts):
        return [os.path.relpath(path) for path in paths]
    ahead = _alike(parts)
    behind = _alike([part[ahead:][::-1] for part in parts])
    return ["/".join(part[ahead : len(part) - behind]) or part[-1] for part in parts]


def _alike(rows: Sequence[Sequence[str]]) -> int:
    """How many entries all rows begin with alike."""
    return next((place for place, column in enumerate(zip(*rows)) if len(set(column)) > 1), min(map(len, rows)))


def smoothing(steps: int) -> int:
    """Span of the exponential mean: a tenth of the run, 3 to 50 steps."""
    return min(50, max(3, steps // 10))


def _figure(width: float, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # drawn without pyplot: no global state, no window, no second copy in a notebook
    if title:
        figure.suptitle(title)
    return figure


def _finish(axes: Any, any_value: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not any_value:
        axes.text(0.5, 0.5, "not in the log", ha="center", color="0.5", transform=axes.transAxes)
