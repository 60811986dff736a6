"""Watching a launch to its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Union

from qwenlib import launch
from qwenlib.errors import QwenlibError, WorkFailed
from qwenlib.launch import Run
from qwenlib.monitor.diagnosis import diagnose
from qwenlib.monitor.facts import Facts
from qwenlib.monitor.metrics import METRICS_FILE, MetricsTail, read_metrics
from qwenlib.monitor.panel import LivePlot
from qwenlib.monitor.tensorboard import FOLDER, EventWriter
from qwenlib.progress import PLAIN_SECONDS

if TYPE_CHECKING:
    import pandas


def watch(
    run: Run,
    *,
    seq_length: int,
    total_steps: int = 0,
    title: str = "training",
    real_share: float = 1.0,
    lead: int = 0,
    flops_per_token: Optional[float] = None,
    peak_flops: Optional[float] = None,
    seconds: float = PLAIN_SECONDS,
    timeout: Optional[float] = None,
    tensorboard: bool = False,
) -> pandas.DataFrame:
    """Wait for a run's end; meanwhile write ``metrics.jsonl`` and keep the view up to date.

    Args:
        run: what :func:`qwenlib.launch.start` returned.
        seq_length: tokens of a row, for tokens per second.
        total_steps: steps of the whole training; 0: what the log says.
        title: over the picture and in front of each line.
        real_share: the part of the tokens that is not padding.
        lead: the rank whose log is read; with pipeline stages, one of the last stage.
        flops_per_token: :func:`qwenlib.monitor.flops.flops_per_token`, for the MFU.
        peak_flops: FLOP/s of a card (:func:`qwenlib.monitor.flops.peak_here`); None: no MFU.
        seconds: between two plain lines when headless.
        timeout: seconds after which a tied run is ended, and a detached one no longer watched.
        tensorboard: also write event files below ``tensorboard/`` in the run directory.

    Returns:
        The metrics (:func:`~qwenlib.monitor.metrics.read_metrics`).

    Raises:
        WorkFailed: as :meth:`Run.wait`, with a diagnosis when the logs have a known error; ``metrics.jsonl`` and
            ``loss.png`` then show what was seen until then.
        Refused: ``tensorboard`` without the package tensorboardX.
    """
    facts = Facts(title, seq_length, total_steps, real_share, lead, flops_per_token, peak_flops)
    writer = EventWriter(run.run_dir / FOLDER) if tensorboard else None
    facts.save(run.run_dir, run.poll().get("id"))
    return _follow(run, facts, seconds, timeout, writer)


def attach(
    run_dir: Union[str, Path],
    *,
    seconds: float = PLAIN_SECONDS,
    timeout: Optional[float] = None,
    tensorboard: bool = False,
) -> pandas.DataFrame:
    """Go on watching a run of which only the directory is known, from another kernel or shell.

    What was seen before is shown, too. An interrupt, or ``timeout``, ends the watching, not the training. A run that
    has ended is told as :func:`watch` would have.

    Raises:
        Refused: there is no launch in ``run_dir``.
        WorkFailed: as :func:`watch`.
    """
    run = launch.attach(run_dir)
    facts = Facts.load(run.run_dir, run.poll().get("id"))
    return _follow(run, facts, seconds, timeout, EventWriter(run.run_dir / FOLDER) if tensorboard else None)


def _follow(
    run: Run, facts: Facts, seconds: float, timeout: Optional[float], writer: Optional[EventWriter]
) -> pandas.DataFrame:
    status = run.poll()
    here = [entry["rank"] for entry in status.get("ranks") or []]
    lead = facts.lead if facts.lead in here or not here else max(here)  # the last stage may run on another host
    metrics, log = run.run_dir / METRICS_FILE, run.rank_log(lead)
    world = status.get("world_size") or 1
    tail = MetricsTail(log, metrics, facts.seq_length, world, facts.real_share, facts.flops_per_token, facts.peak_flops)
    plot = LivePlot(run.run_dir, facts.title, facts.total_steps, seconds, log, button=True)
    panel = _Panel(plot)
    seen: Dict[str, Any] = status
    told = False

    def tick(now: Dict[str, Any]) -> None:
        seen.clear()
        seen.update(now)
        take(tail.update(), now)
        if plot.stop_asked.is_set():
            plot.stop_asked.clear()
            run.stop()

    def take(records: List[Dict[str, Any]], now: Dict[str, Any]) -> None:
        nonlocal told
        if tail.trouble and not told:
            told = True
            print(tail.trouble, file=sys.stderr, flush=True)
        if writer is not None:
            writer.add(records)
        panel.update(records, now)

    try:
        run.wait(tick, timeout=timeout)
    except WorkFailed as error:
        raise WorkFailed(explained(str(error), run.run_dir, seen)) from None
    finally:
        take(tail.update(last=True), seen)
        panel.finish(seen)
        tail.close()
        if writer is not None:
            writer.close()
    return read_metrics(metrics)


def explained(message: str, run_dir: Path, status: Dict[str, Any]) -> str:
    """``message`` and, when the run failed and its logs have a known error, the diagnosis as a second paragraph."""
    if status.get("state") != "failed":
        return message
    try:
        known = diagnose(run_dir).paragraph()
    except (QwenlibError, OSError, ValueError) as error:
        return f"{message}\n\nThe logs could not be diagnosed: {error}"
    return f"{message}\n\n{known}" if known else message


class _Panel:
    """A view that cannot be drawn must not end a training: it is told once, and the training goes on."""

    def __init__(self, plot: LivePlot):
        self.plot, self.broken = plot, False

    def update(self, *values: Any) -> None:
        self._try(self.plot.update, *values)

    def finish(self, *values: Any) -> None:
        self._try(self.plot.finish, *values)

    def _try(self, call: Any, *values: Any) -> None:
        if self.broken:
            return
        try:
            call(*values)
        except Exception as error:
            self.broken = True
            print(f"the live plot is off: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
