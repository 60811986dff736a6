"""Watching a launch to its end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Optional

from qwenlib.launch import Run
from qwenlib.monitor.metrics import METRICS_FILE, MetricsTail, read_metrics
from qwenlib.monitor.plots import LivePlot
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
    seconds: float = PLAIN_SECONDS,
    timeout: Optional[float] = None,
) -> pandas.DataFrame:
    """Wait for a run's end; meanwhile write ``metrics.jsonl`` and keep the picture up to date.

    Args:
        run: what :func:`qwenlib.launch.start` returned.
        seq_length: tokens of a row, for tokens per second.
        total_steps: steps of the whole training; 0: what the log says.
        title: over the picture and in front of each line.
        real_share: the part of the tokens that is not padding.
        lead: the rank whose log is read; with pipeline stages, one of the last stage.
        seconds: between two plain lines when headless.
        timeout: seconds after which the run is ended.

    Returns:
        The metrics (:func:`~qwenlib.monitor.metrics.read_metrics`).

    Raises:
        WorkFailed: as :meth:`Run.wait`; ``metrics.jsonl`` and ``loss.png`` then show what was seen until then.
    """
    metrics = run.run_dir / METRICS_FILE
    status = run.poll()
    tail = MetricsTail(run.rank_log(lead), metrics, seq_length, status.get("world_size") or 1, real_share)
    panel = _Panel(LivePlot(run.run_dir, title, total_steps, seconds))
    try:
        run.wait(lambda _status: panel.update(tail.update()), timeout=timeout)
    finally:
        panel.update(tail.update(last=True))
        panel.finish()
    return read_metrics(metrics)


class _Panel:
    """A picture that cannot be drawn must not end a training: it is told once, and the training goes on."""

    def __init__(self, plot: LivePlot):
        self.plot, self.broken = plot, False

    def update(self, records: Any) -> None:
        self._try(self.plot.update, records)

    def finish(self) -> None:
        self._try(self.plot.finish)

    def _try(self, call: Any, *values: Any) -> None:
        if self.broken:
            return
        try:
            call(*values)
        except Exception as error:
            self.broken = True
            print(f"the live plot is off: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
