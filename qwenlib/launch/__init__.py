"""Launching ranks: a supervisor that owns them, and the client that starts, attaches to, waits for and stops it.

    plan = Plan([sys.executable, "train.py"], ranks=2, run_dir="runs/x/04_lora", rendezvous="dynamic_cluster")
    with start(plan) as run:
        run.wait()

    start(plan, detach=True)                # outlives this process
    attach("runs/x/04_lora").wait()         # later, from anywhere on the host

A run directory holds ``launch.json`` (the state), ``spec.json`` (what was started), ``supervisor.log``, and for
each process ``rank_N/`` (or ``scheduler/``): its working folder, with ``rank.log``, ``heartbeat.json`` and, after a
failure that its program could tell, ``error.json``. Earlier launches are kept in ``earlier/N/``; a further node
keeps its own in ``node_N/``.

Who ends when: tied ranks end with their client, however that ends; detached ones end by themselves, by a failure,
or by ``stop``. No rank outlives its supervisor: a supervisor that is killed takes them along, and what they started
is ended by ``stop``.
"""

from __future__ import annotations

from qwenlib.launch.client import Run, attach, start
from qwenlib.launch.failure import record_error
from qwenlib.launch.heartbeat import report_ready, report_step
from qwenlib.launch.plan import Plan, rank_environment, scheduler_environment
from qwenlib.launch.rundir import check_free, read_status

__all__ = [
    "Plan",
    "Run",
    "attach",
    "check_free",
    "rank_environment",
    "read_status",
    "record_error",
    "report_ready",
    "report_step",
    "scheduler_environment",
    "start",
]
