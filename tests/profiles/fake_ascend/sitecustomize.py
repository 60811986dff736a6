"""On a fake Ascend host: what MindFormers would do in a rank, which needs a card. Every Python there loads this.

In ``python -m qwenlib.engine.rank JOB.json`` it records what the rank was started with, writes the log lines and files
that a training leaves, and ends. In every other process it does nothing: launcher, supervisor and notebooks are the
real ones.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import List

LINES = """\
2026-11-24 00:27:26,123 - mindformers[mindformers/core/callback/callback.py:313] - INFO - \
{ Epoch:[  1/  3], step:[    2/    30], loss: 2.346, per_step_time: 1004ms, lr: 0.0008, overflow cond: False, \
loss_scale: 65536.0
2026-11-24 00:27:26,124 - mindformers[mindformers/core/callback/callback.py:323] - INFO -    0.0% |          | \
0.49801 samples/s/p  0:00:30 }
"""


def rank(argv: List[str]) -> None:
    job = json.loads(Path(argv[-1]).read_text(encoding="utf-8"))
    number = os.environ["RANK_ID"]
    yaml = next(Path(argv[-1]).parent.glob("*.yaml")).read_text(encoding="utf-8")
    record = {
        "host": socket.gethostname(),
        "cwd": os.getcwd(),
        "argv": argv,
        "environ": dict(os.environ),
        "job": job,
        "yaml": yaml,
    }
    target = Path(os.environ["FAKE_RECORDS"]) / f"rank_{number}.json"
    target.write_text(json.dumps(record), encoding="utf-8")
    print(LINES, end="", flush=True)
    folder = Path(job["config"]["output_dir"]) / "checkpoint_network" / f"rank_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"qwen2_rank_{number}-network.ckpt").write_bytes(b"")
    if number == "0":
        Path(job["result"]).write_text(json.dumps({"steps": 30, "trainable_parameters": 1}), encoding="utf-8")


ARGV = Path("/proc/self/cmdline").read_bytes().decode().split("\0")[:-1]
if ARGV[1:3] == ["-m", "qwenlib.engine.rank"]:
    rank(ARGV)
    os._exit(0)
