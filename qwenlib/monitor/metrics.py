"""``metrics.jsonl``: one line of JSON per training step, appended while the ranks run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Union

from qwenlib.errors import Refused
from qwenlib.monitor.reader import Follower, LossReader, Step

if TYPE_CHECKING:
    import pandas

METRICS_FILE = "metrics.jsonl"
MOST_PORTIONS = 64
"""MiB of log read in one go while the ranks still write."""
COLUMNS = {
    "step": "int64",
    "total_steps": "int64",
    "epoch": "int64",
    "loss": "float64",
    "per_step_time_ms": "int64",
    "lr": "float64",
    "loss_scale": "float64",
    "overflow": "boolean",
    "global_norm": "float64",
    "samples_per_second_per_rank": "float64",
    "tokens_per_second_per_rank": "float64",
    "tokens_per_second": "float64",
    "real_tokens_per_second": "float64",
}
"""Columns of :func:`read_metrics`. ``tokens_*``: rows of ``seq_length``, padding included; ``real_*``: without."""


class MetricsTail:
    """Follows one rank's log and appends its steps to ``metrics.jsonl``.

    Args:
        log: the rank's log. With pipeline stages, only the last stage's loss means something: give its rank's.
        metrics: the file to append to.
        seq_length: tokens of a row.
        ranks: ranks over all hosts.
        real_share: the part of the tokens that is not padding, 0 to 1.
    """

    def __init__(
        self, log: Union[str, Path], metrics: Union[str, Path], seq_length: int, ranks: int, real_share: float = 1.0
    ):
        if seq_length < 1 or ranks < 1 or not 0 <= real_share <= 1:
            raise Refused(
                f"seq_length and ranks must be at least 1 and real_share 0 to 1, "
                f"found {seq_length}, {ranks} and {real_share}."
            )
        self.metrics = Path(metrics)
        self.seq_length, self.ranks, self.real_share = seq_length, ranks, real_share
        self.follower, self.reader = Follower(log), LossReader()

    def update(self, last: bool = False) -> List[Dict[str, Any]]:
        """Read what is new and append it; returns the new records. ``last``: the log has ended."""
        steps: List[Step] = []
        portions = 0
        while last or portions < MOST_PORTIONS:  # a rank that floods its log must not keep us here for ever
            data = self.follower.read()
            if not data:
                break
            portions += 1
            steps += self.reader.feed(data)
        if last:
            steps += self.reader.close()
        records = [self._record(step) for step in steps]
        if records:
            append(self.metrics, records)
        return records

    def _record(self, step: Step) -> Dict[str, Any]:
        rate = step.samples_per_second_per_rank
        tokens: Optional[float] = None if rate is None else rate * self.seq_length
        return {
            **step.to_dict(),
            "tokens_per_second_per_rank": tokens,
            "tokens_per_second": None if tokens is None else tokens * self.ranks,
            "real_tokens_per_second": None if tokens is None else tokens * self.ranks * self.real_share,
        }


def append(path: Path, records: List[Dict[str, Any]]) -> None:
    """Append whole lines by one ``write``, so that a reader sees all of a line or (at the very end) none."""
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    handle = os.open(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        data = text.encode("utf-8")
        while data:
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def read_metrics(path: Union[str, Path]) -> pandas.DataFrame:
    """``metrics.jsonl`` (or the run directory that holds it) as a table with the columns :data:`COLUMNS`.

    No file: an empty table with the same columns. A last line that is still being written is left out.

    Raises:
        Refused: a line that is not JSON (path and line).
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise Refused(f"{path}, line {number}: not JSON ({error.msg}).") from None
    return to_frame(records)


def to_frame(records: List[Dict[str, Any]]) -> pandas.DataFrame:
    """Records as a table with the columns and types of :data:`COLUMNS`."""
    import pandas

    return pandas.DataFrame(
        {name: pandas.Series([record.get(name) for record in records], dtype=kind) for name, kind in COLUMNS.items()}
    )


def summarize(frame: pandas.DataFrame) -> Dict[str, Any]:
    """A run in a few numbers: steps, first and last loss, the median of the speed without the first (compiling) step,
    how many steps overflowed. Empty when there was no step.
    """
    if frame.empty:
        return {}
    speed = frame.iloc[1:] if len(frame) > 1 else frame

    def median(name: str) -> Optional[float]:
        value = float(speed[name].median()) if speed[name].notna().any() else None
        return None if value is None else round(value, 3)

    return {
        "steps": int(frame["step"].iloc[-1]),
        "first_loss": _number(frame["loss"].iloc[0]),
        "last_loss": _number(frame["loss"].iloc[-1]),
        "lowest_loss": _number(frame["loss"].min()),
        "overflows": int(frame["overflow"].fillna(False).sum()),
        "first_step_ms": int(frame["per_step_time_ms"].iloc[0]),
        "step_ms": median("per_step_time_ms"),
        "tokens_per_second_per_rank": median("tokens_per_second_per_rank"),
        "tokens_per_second": median("tokens_per_second"),
        "real_tokens_per_second": median("real_tokens_per_second"),
    }


def _number(value: Any) -> Optional[float]:
    return None if value != value else float(value)
