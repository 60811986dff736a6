"""Reading the logs of eight ranks while they grow: lines per second and memory, for the metrics and for the diagnosis.

    python benchmarks/monitor.py [--quick]

Writes 8 logs of a million lines (``--quick``: 100,000) with MindFormers' loss lines among MindSpore's chatter, and
reads them in turns, a MiB at a time, as the live view does. Peak memory is measured in a process of its own for each
reader, above what Python and its imports take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, List, Tuple

RANKS = 8
CHATTER = (
    "[WARNING] DISTRIBUTED(24419,7f613f292b80,python):2026-11-24-03:01:23.553.834 [mindspore/ccsrc/distributed/rpc/tcp/"
    "tcp_comm.cc:494] Connect] Waiting for the state of the connection to 127.0.0.1:36061 to be connected...Retry\n"
)
LOSS = (
    "2026-11-24 03:01:27,615 - mindformers[mindformers/core/callback/callback.py:313] - INFO - {{ Epoch:[  1/  1], "
    "step:[{step:5d}/999999], loss: 2.346, per_step_time: 1004ms, lr: 0.0008, overflow cond: False, "
    "loss_scale: 65536.0\n"
    "2026-11-24 03:01:27,616 - mindformers[mindformers/core/callback/callback.py:327] - INFO -    0.1% |          | "
    "0.99602 samples/s/p  3:37:03 }}\n"
)


def write_logs(folder: Path, lines: int) -> List[Path]:
    """A loss line pair every 10 lines; the last rank ends with an error."""
    paths = [folder / f"rank_{rank}" / "rank.log" for rank in range(RANKS)]
    for path in paths:
        path.parent.mkdir()
        with open(path, "w", encoding="utf-8") as stream:
            for step in range(1, lines // 10 + 1):
                stream.write(LOSS.format(step=step) + CHATTER * 8)
    with open(paths[-1], "a", encoding="utf-8") as stream:
        stream.write("EL0004: Failed to allocate memory.\n")
    return paths


def read_metrics(paths: List[Path]) -> int:
    """The loss reader over all logs in turns; returns the steps found."""
    from qwenlib.monitor.reader import Follower, LossReader

    pairs = [(Follower(path), LossReader()) for path in paths]
    steps, busy = 0, True
    while busy:
        busy = False
        for follower, reader in pairs:
            data = follower.read()
            busy = busy or bool(data)
            steps += len(reader.feed(data))
    return steps


def diagnose(paths: List[Path]) -> int:
    """The whole diagnosis; returns 1 when it found the error of the last rank."""
    from qwenlib.monitor import diagnose

    found = diagnose(paths[0].parent.parent)
    return int(found.cause is not None and found.cause.id == "EL0004" and found.cause.rank == RANKS - 1)


def measure(work: Callable[[List[Path]], int], paths: List[Path]) -> Tuple[float, float, int]:
    """Seconds, MiB above the start, and the result, in a fresh process."""

    def child(end: Any) -> None:
        from qwenlib.monitor.signatures import load_signatures

        load_signatures()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        result = work(paths)
        seconds = time.perf_counter() - start
        end.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, result))

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    theirs.close()  # ours: a child that fails then ends the waiting
    answer = ours.recv()
    process.join()
    return answer


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 lines a rank instead of a million")
    lines = 100_000 if parser.parse_args().quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        paths = write_logs(Path(name), lines)
        size = sum(path.stat().st_size for path in paths)
        print(f"{RANKS} ranks x {lines:,} lines, {size / 2**20:,.0f} MiB")
        print(f"{'reader':<14}{'seconds':>9}{'lines/s':>14}{'MiB/s':>9}{'peak MiB':>10}  found")
        for title, work, what in (("metrics", read_metrics, "steps"), ("diagnosis", diagnose, "error")):
            seconds, peak, result = measure(work, paths)
            speed, rate = RANKS * lines / seconds, size / 2**20 / seconds
            print(f"{title:<14}{seconds:>9.1f}{speed:>14,.0f}{rate:>9.0f}{peak:>10.1f}  {result:,} {what}")


if __name__ == "__main__":
    main()
