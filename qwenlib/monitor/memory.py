"""What the ranks of this host use: host memory and CPU by psutil, card memory by npu-smi."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import psutil

from qwenlib.ascend import NpuInfo, npu_info
from qwenlib.launch import processes

SECONDS, NPU_SECONDS = 5.0, 15.0
"""Between two looks at the processes, and at npu-smi (which takes a second and more)."""
MOST_SAMPLES = 720


@dataclass
class Usage:
    """What one rank, with the processes that it started, uses now."""

    rss: int = 0
    """Bytes in memory; pages that ranks share count for each of them."""
    pss: Optional[int] = None
    """Bytes in memory, shared pages divided among those who share; None where the system does not say."""
    cpu: Optional[float] = None
    """Per cent of one core since the last look; None at the first."""
    hbm: Optional[Tuple[int, int]] = None
    """MB in use and in all on its card."""


class Memory:
    """Samples the ranks of a launch now and then; ``usage`` is the last look, ``history`` the host memory by time."""

    def __init__(self, npu: bool = True):
        self.usage: Dict[int, Usage] = {}
        self.peak: Dict[int, int] = {}
        self.history: List[Tuple[float, Dict[int, int]]] = []
        self._known: Dict[Tuple[int, float], psutil.Process] = {}
        self._looked = 0.0
        self._npu: Optional[NpuInfo] = None
        self._npu_looked, self._npu_wanted = 0.0, npu
        self._thread: Optional[threading.Thread] = None

    def look(self, status: Dict[str, Any], force: bool = False) -> bool:
        """Take a sample when it is time; True when there is a new one."""
        now = time.monotonic()
        if not force and now - self._looked < SECONDS:
            return False
        self._looked = now
        self._look_at_cards(now)
        cards = sorted(self._npu.cards, key=lambda card: (card.npu, card.chip)) if self._npu else []
        self.usage = {}
        for place, entry in enumerate(status.get("ranks") or []):
            process = processes.find(entry)
            if process is None:
                continue
            usage = self._of([process, *processes.below(process.pid)])
            if place < len(cards) and cards[place].hbm_total:
                usage.hbm = (cards[place].hbm_used or 0, cards[place].hbm_total or 0)
            self.usage[entry["rank"]] = usage
            taken = usage.rss if usage.pss is None else usage.pss
            self.peak[entry["rank"]] = max(self.peak.get(entry["rank"], 0), taken)
        if self.usage:
            sample = {rank: usage.rss if usage.pss is None else usage.pss for rank, usage in self.usage.items()}
            self.history.append((now, sample))
            if len(self.history) > MOST_SAMPLES:
                self.history = self.history[::2]
        return True

    @property
    def cpu(self) -> float:
        """Per cent of one core that all ranks use together."""
        return sum(usage.cpu or 0.0 for usage in self.usage.values())

    def _of(self, tree: List[psutil.Process]) -> Usage:
        usage = Usage()
        shares: List[Optional[int]] = []
        for process in tree:
            with contextlib.suppress(psutil.Error, OSError):
                known = self._known.get((process.pid, process.create_time()))
                process = self._known.setdefault((process.pid, process.create_time()), process)
                busy = process.cpu_percent(None)  # since the last call on this very object; the first one says 0
                if known is not None:
                    usage.cpu = (usage.cpu or 0.0) + busy
                usage.rss += process.memory_info().rss
                shares.append(getattr(process.memory_full_info(), "pss", None))
        if shares and None not in shares:
            usage.pss = sum(share or 0 for share in shares)
        return usage

    def _look_at_cards(self, now: float) -> None:
        """In a thread: npu-smi may take its 20 seconds, and the ranks' logs must not wait for it."""
        if not self._npu_wanted or now - self._npu_looked < NPU_SECONDS or (self._thread and self._thread.is_alive()):
            return
        self._npu_looked = now

        def ask() -> None:
            found = npu_info()
            self._npu_wanted = found.found
            self._npu = found if found.cards else None

        self._thread = threading.Thread(target=ask, daemon=True)
        self._thread.start()
