"""What a watcher must know of a training besides its logs: kept beside it for those who watch it later."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from qwenlib.errors import Refused
from qwenlib.files import write_json
from qwenlib.monitor.metrics import read_records

FACTS_FILE = "watch.json"


@dataclass
class Facts:
    """``watch.json`` of a run directory."""

    title: str = "training"
    seq_length: Optional[int] = None
    total_steps: int = 0
    real_share: float = 1.0
    lead: int = 0
    flops_per_token: Optional[float] = None
    peak_flops: Optional[float] = None

    def save(self, run_dir: Path, launch_id: Optional[str]) -> None:
        """Write them beside the launch that they belong to."""
        write_json(run_dir / FACTS_FILE, {"launch": launch_id, **asdict(self)})

    @classmethod
    def load(cls, run_dir: Path, launch_id: Optional[str]) -> Facts:
        """Read them. Without a file, or with that of another launch, they are drawn from ``metrics.jsonl``."""
        facts = cls(title=run_dir.absolute().name)
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads((run_dir / FACTS_FILE).read_text(encoding="utf-8"))
            if found.pop("launch", None) == launch_id:
                return cls(**found)
        with contextlib.suppress(Refused, KeyError, TypeError, ZeroDivisionError, IndexError):
            last = read_records(run_dir)[-1]
            facts.seq_length = round(last["tokens_per_second_per_rank"] / last["samples_per_second_per_rank"])
            facts.real_share = min(1.0, last["real_tokens_per_second"] / last["tokens_per_second"])
        return facts
