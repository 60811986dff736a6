"""Parse and check rank tables of 1,024 to 8,192 ranks in one process: CPU seconds, memory, and linearity.

python benchmarks/ranktable.py [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwenlib.ranktable import check, load

SERVERS = (128, 256, 512, 1024)
CARDS = 8


def table(servers: int) -> Dict[str, object]:
    """A valid table in the layout of ModelArts: four NIC planes, 192.1 to 192.4."""
    entries: List[Dict[str, object]] = []
    for number in range(servers):
        cards = []
        for card in range(CARDS):
            host = number * 2 + card // 4 + 1
            address = f"192.{card % 4 + 1}.{host // 254}.{host % 254 + 1}"
            cards.append({"device_id": str(card), "device_ip": address, "rank_id": str(number * CARDS + card)})
        server_id = f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
        entries.append({"server_id": server_id, "device": cards, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(servers), "server_list": entries, "status": "completed"}


def measure(path: Path, repeat: int) -> Tuple[float, float, float]:
    """(seconds of json.loads alone, seconds of load + check, peak MiB of load + check); the best of ``repeat``."""
    plain, ours = [], []
    for _ in range(repeat):
        begun = time.process_time()
        json.loads(path.read_text(encoding="utf-8"))
        plain.append(time.process_time() - begun)
        begun = time.process_time()
        load(path)
        report = check(path, here=False)
        ours.append(time.process_time() - begun)
        assert not report.problems, report.text()
    tracemalloc.start()
    load(path)
    check(path, here=False)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return min(plain), min(ours), peak


def main() -> None:
    """Print the table; exit code 1 when time does not grow linearly with the number of ranks (within a factor 2)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs a row; the best counts")
    repeat = parser.parse_args().repeat
    heads = ["servers", "ranks", "file KiB", "json.loads s", "load+check s", "ratio", "µs a rank", "growth", "peak MiB"]
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * len(heads)}")
    first = 0.0
    growth = 1.0
    with tempfile.TemporaryDirectory() as folder:
        for servers in SERVERS:
            path = Path(folder) / f"hccl_{servers}s.json"
            path.write_text(json.dumps(table(servers), indent=4), encoding="utf-8")
            plain, ours, peak = measure(path, repeat)
            ranks = servers * CARDS
            first = first or ours / ranks
            growth = ours / ranks / first
            size = path.stat().st_size / 1024
            print(f"| {servers} | {ranks} | {size:.0f} | {plain:.4f} | {ours:.3f} | {ours / plain:.0f}x ", end="")
            print(f"| {1e6 * ours / ranks:.1f} | {growth:.2f}x | {peak:.1f} |")
    print(
        f"time per rank grows {growth:.2f}x from {SERVERS[0] * CARDS} to {SERVERS[-1] * CARDS} ranks (linear is 1.00x)"
    )
    sys.exit(growth > 2)


if __name__ == "__main__":
    main()
