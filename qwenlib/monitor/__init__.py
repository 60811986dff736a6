"""Watching a training: rank logs in, ``metrics.jsonl`` and pictures out; and, when it fails, the reason."""

from __future__ import annotations

from qwenlib.monitor.diagnosis import Diagnosis, diagnose
from qwenlib.monitor.flops import flops_per_token, peak_flops, peak_here
from qwenlib.monitor.metrics import MetricsTail, last_steps, read_metrics, summarize
from qwenlib.monitor.panel import LivePlot
from qwenlib.monitor.plots import compare, plot
from qwenlib.monitor.reader import LossReader, Step
from qwenlib.monitor.signatures import load_signatures
from qwenlib.monitor.tensorboard import export
from qwenlib.monitor.watch import attach, explained, watch

__all__ = [
    "Diagnosis",
    "LivePlot",
    "LossReader",
    "MetricsTail",
    "Step",
    "attach",
    "compare",
    "diagnose",
    "explained",
    "export",
    "flops_per_token",
    "last_steps",
    "load_signatures",
    "peak_flops",
    "peak_here",
    "plot",
    "read_metrics",
    "summarize",
    "watch",
]
