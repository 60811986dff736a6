"""Watching a training: rank logs in, ``metrics.jsonl`` and pictures out."""

from __future__ import annotations

from qwenlib.monitor.metrics import MetricsTail, read_metrics, summarize
from qwenlib.monitor.plots import LivePlot, plot
from qwenlib.monitor.reader import LossReader, Step
from qwenlib.monitor.watch import watch

__all__ = ["LivePlot", "LossReader", "MetricsTail", "Step", "plot", "read_metrics", "summarize", "watch"]
