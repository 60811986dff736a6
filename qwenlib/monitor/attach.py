"""Watching a run of which only the directory is known: another kernel, another shell, after a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Union

import psutil

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import write_json
from qwenlib.launch import failure, processes, read_status
from qwenlib.launch.client import FINAL
from qwenlib.monitor.metrics import read_records

FACTS_FILE = "watch.json"
STOP_SECONDS = 60.0


@dataclass
class Facts:
    """What a watcher must know of a training besides its logs; kept as ``watch.json`` in the run directory."""

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
        import json

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


class Attached:
    """A run as its directory tells it; the counterpart of :class:`qwenlib.launch.Run` for those who did not start it.

    Raises:
        Refused: there is no ``launch.json`` in the directory.
    """

    def __init__(self, run_dir: Union[str, Path]):
        self.run_dir = Path(run_dir).absolute()
        if read_status(self.run_dir) is None:
            raise Refused(
                f"{self.run_dir} holds no launch (launch.json); give a stage's folder, e.g. runs/smoke/04_lora."
            )

    def rank_log(self, rank: int) -> Path:
        """Where stdout and stderr of a rank go."""
        return self.run_dir / f"rank_{rank}" / failure.LOG_FILE

    def poll(self) -> Dict[str, Any]:
        """What ``launch.json`` says; a supervisor that is gone before its time is told as ``failed``."""
        status = read_status(self.run_dir) or {"state": "starting", "ranks": [], "root_cause": None}
        if status["state"] not in FINAL and status.get("supervisor") and not processes.find(status["supervisor"]):
            status = read_status(self.run_dir) or status  # it may have ended in between, in good order
            if status["state"] not in FINAL:
                message = "the supervisor of the ranks was killed; `qwenlib stop` ends what is left of them."
                cause = {"rank": None, "reason": "launcher", "message": message, "time": time.time(), "log": None}
                status = {**status, "state": "failed", "root_cause": cause}
        return status

    def wait(
        self,
        on_tick: Optional[Callable[[Dict[str, Any]], object]] = None,
        interval: float = 0.5,
        timeout: Optional[float] = None,
    ) -> Dict[str, Any]:
        """As :meth:`qwenlib.launch.Run.wait`; but an interrupt or the timeout ends the watching, not the training.

        Raises:
            WorkFailed: a rank failed, the run was stopped, or it takes longer than ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                status = self.poll()
                if on_tick is not None:
                    on_tick(status)
                if status["state"] in FINAL:
                    break
                if deadline is not None and time.monotonic() > deadline:
                    raise WorkFailed(f"not finished after {timeout:g} s; the ranks go on. {self._how_to_stop()}")
                time.sleep(interval)
        except KeyboardInterrupt:
            print(f"Stopped watching; the ranks go on. {self._how_to_stop()}")
            raise
        if status["state"] != "done":
            raise WorkFailed(failure.paragraph(status))
        return status

    def stop(self) -> Dict[str, Any]:
        """Ask the supervisor to end all ranks (SIGTERM) and wait for it."""
        supervisor = processes.find((read_status(self.run_dir) or {}).get("supervisor"))
        if supervisor is not None:
            with contextlib.suppress(psutil.Error):
                os.kill(supervisor.pid, signal.SIGTERM)
                supervisor.wait(STOP_SECONDS)
        return self.poll()

    def _how_to_stop(self) -> str:
        return f"To stop them: qwenlib stop {self.run_dir}"
