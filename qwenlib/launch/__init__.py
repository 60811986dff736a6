"""Launching ranks: a supervisor that owns them, and the client that starts, waits for and stops it.

    plan = Plan([sys.executable, "train.py"], ranks=2, run_dir="runs/x/04_lora", rendezvous="dynamic_cluster")
    with start(plan) as run:
        run.wait()

A run directory holds ``launch.json`` (the state), ``spec.json`` (what was started), ``supervisor.log``, and for
each process ``rank_N/`` (or ``scheduler/``): its working folder, with ``rank.log`` and, after a failure that its
program could tell, ``error.json``. Earlier launches are kept in ``earlier/N/``.
"""

from __future__ import annotations

from qwenlib.launch.client import Run, read_status, start
from qwenlib.launch.failure import record_error
from qwenlib.launch.plan import Plan, rank_environment, scheduler_environment

__all__ = ["Plan", "Run", "rank_environment", "read_status", "record_error", "scheduler_environment", "start"]
