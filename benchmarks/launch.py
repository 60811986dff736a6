"""What the launcher and the live monitor cost: the same training under them, and as bare ranks of a plain script.

    python benchmarks/launch.py [--run runs/smoke] [--epochs 14] [--repeat 3]

Both start the very same commands in the very same environments; the bare ranks write to files and nobody looks. The
two take turns. From the ranks' own log: seconds from the start to the first step, and steps per second after it (the
first fifth of the steps is left out). From the system: the CPU seconds of all processes together, which say what the
launcher takes even on a machine that others use, too; and the share of a core that supervisor and monitor take
between the first step and the last, which is all that the ranks can miss. Prints the ratios with their spread; exit
code 1 when the median of the steps per second falls by more than 2 % and by more than the bare runs differ among
themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Tuple

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("QWENLIB_HEADLESS", "1")

from qwenlib import profile as profiles
from qwenlib.engine import work
from qwenlib.errors import Refused
from qwenlib.files import read_json
from qwenlib.launch import plan as plans
from qwenlib.launch import read_status
from qwenlib.launch.heartbeat import read_beat

STEP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - .*step:\[\s*(\d+)/")
ALLOWED = 0.02


def job(run: Path) -> Dict[str, Any]:
    """What 02_weights and 03_data of a workbook run have left."""
    weights = read_json(run / "02_weights" / "meta.json")["outputs"]
    data = read_json(run / "03_data" / "meta.json")["outputs"]
    return {
        "load_checkpoint": weights["model_dir"],
        "train_dataset": data["mindrecord"],
        "vocab_file": weights["vocab_file"],
        "merges_file": weights["merges_file"],
    }


def bare(profile: profiles.Profile, files: Dict[str, Any], folder: Path) -> None:
    """Start the ranks as a plain script would, and wait."""
    plan = plans.with_port(work.training_plan(profile, "finetune", run_dir=folder, **files))
    children = []
    for process in plans.processes(plan):
        place = folder / process["name"]
        place.mkdir(parents=True)
        environment = {**os.environ, **{key: text for key, text in process["env"].items() if text is not None}}
        for key in [key for key, text in process["env"].items() if text is None]:
            environment.pop(key, None)
        with open(place / "rank.log", "wb") as log:
            children.append(
                subprocess.Popen(process["command"], cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    codes = [child.wait() for child in children]
    assert codes == [0] * len(codes), f"the bare ranks failed: {codes}, see {folder}"


def measure(log: Path, begun: float) -> Tuple[float, float]:
    """``(seconds to the first step, steps per second)`` from the times in a rank's log."""
    times = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        found = STEP.match(line)
        if found:
            times.append(datetime.strptime(found.group(1), "%Y-%m-%d %H:%M:%S,%f").timestamp())
    assert len(times) >= 10, f"only {len(times)} steps in {log}"
    skip = len(times) // 5
    return times[0] - begun, (len(times) - 1 - skip) / (times[-1] - times[skip])


class Share(threading.Thread):
    """Per cent of a core that this process and the supervisor of ``folder`` take while the ranks make steps."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.over = folder, threading.Event()
        self.looks: List[Tuple[float, float]] = []

    def run(self) -> None:
        """Look once a second."""
        while not self.over.wait(1.0):
            status, beat = read_status(self.folder), read_beat(self.folder / "rank_0")
            if status is None or not beat.get("step") or beat["step"] == beat.get("total"):
                continue
            with contextlib.suppress(psutil.Error):
                ours = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), status["supervisor"]["pid"])]
                self.looks.append((time.monotonic(), sum(each.user + each.system for each in ours)))

    def end(self) -> float:
        """Stop looking; the share."""
        self.over.set()
        self.join()
        (begun, before), (ended, after) = self.looks[0], self.looks[-1]
        return 100 * (after - before) / (ended - begun)


def cpu_seconds() -> float:
    """Of this process and of all that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def row(name: str, ours: List[float], theirs: List[float]) -> str:
    """Medians, and the ratio of the pairs with its spread."""
    ratios = [a / b for a, b in zip(ours, theirs)]
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return f"{name:26} {median(theirs):10.2f} {median(ours):10.2f} {median(ratios):8.3f}   {spread}"


def main() -> None:
    """Measure, print the table, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/smoke"), help="a workbook run with 02 and 03 (smoke)")
    parser.add_argument("--epochs", type=int, default=14, help="of 15 steps each")
    parser.add_argument("--repeat", type=int, default=3, help="pairs")
    options = parser.parse_args()
    try:
        files = job(options.run)
    except Refused as error:
        sys.exit(f"{error} Make a run first: qwenlib workbook run --profile smoke --output {options.run}")
    profile = profiles.load("smoke", [f"finetune.epochs={options.epochs}"])
    firsts: Dict[str, List[float]] = {"bare": [], "ours": []}
    speeds: Dict[str, List[float]] = {"bare": [], "ours": []}
    cpu: Dict[str, List[float]] = {"bare": [], "ours": []}
    shares: List[float] = []
    with tempfile.TemporaryDirectory(prefix="qwenlib-bench-") as scratch:
        for number in range(options.repeat):
            order = ("bare", "ours") if number % 2 == 0 else ("ours", "bare")
            for name in order:
                folder = Path(scratch) / f"{name}{number}"
                begun, used = time.time(), cpu_seconds()
                if name == "bare":
                    bare(profile, files, folder)
                else:
                    share = Share(folder)
                    share.start()
                    work.finetune(profile, "finetune", run_dir=folder, **files)
                    shares.append(share.end())
                cpu[name].append(cpu_seconds() - used)
                first, speed = measure(folder / "rank_0" / "rank.log", begun)
                firsts[name].append(first)
                speeds[name].append(speed)
                print(f"pair {number + 1}, {name}: first step {first:.1f} s, {speed:.2f} steps/s", file=sys.stderr)
    print(f"{'':26} {'bare':>10} {'launcher':>10} {'ratio':>8}   spread of {options.repeat} pairs")
    print(row("start to first step, s", firsts["ours"], firsts["bare"]))
    print(row("steps/s", speeds["ours"], speeds["bare"]))
    print(row("CPU of all processes, s", cpu["ours"], cpu["bare"]))
    spread = f"{min(shares):.2f} to {max(shares):.2f}"
    print(f"supervisor and monitor while training: {median(shares):.2f} % of a core ({spread})")
    noise = max(speeds["bare"]) / min(speeds["bare"]) - 1
    loss = 1 - median(a / b for a, b in zip(speeds["ours"], speeds["bare"]))
    print(f"overhead in steps/s {loss:+.1%} (allowed {ALLOWED:.0%}; the bare runs differ by {noise:.1%})")
    sys.exit(1 if loss > max(ALLOWED, noise) else 0)


if __name__ == "__main__":
    main()
