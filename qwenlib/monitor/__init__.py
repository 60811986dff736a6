"""Watching a training: rank logs in, ``metrics.jsonl`` and pictures out; and, when it fails, the reason."""

from __future__ import annotations

from qwenlib.monitor.diagnosis import Diagnosis, diagnose
from qwenlib.monitor.metrics import MetricsTail, read_metrics, summarize
from qwenlib.monitor.plots import LivePlot, plot
from qwenlib.monitor.reader import LossReader, Step
from qwenlib.monitor.signatures import load_signatures
from qwenlib.monitor.watch import watch

__all__ = [
    "Diagnosis",
    "LivePlot",
    "LossReader",
    "MetricsTail",
    "Step",
    "diagnose",
    "load_signatures",
    "plot",
    "read_metrics",
    "summarize",
    "watch",
]
