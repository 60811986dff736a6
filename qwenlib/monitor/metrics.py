"""``metrics.jsonl``: one line of JSON per training step, appended while the ranks run."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple, Union

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
    "mfu": "float64",
}
"""Columns of :func:`read_metrics`. ``tokens_*``: rows of ``seq_length``, padding included; ``real_*``: without.
``mfu``: 0 to 1, padding included (:mod:`qwenlib.monitor.flops`); empty for a chip whose peak is not known."""


SHOWN = (
    *("step", "epoch", "loss", "lr", "per_step_time_ms", "loss_scale", "overflow", "global_norm"),
    *("tokens_per_second", "mfu"),
)
"""Columns of :func:`last_steps`."""


class MetricsTail:
    """Follows one rank's log and appends its steps to ``metrics.jsonl``, from where an earlier watcher stopped.

    Several may watch one run: the one that holds the file's lock writes, the others read what it writes; when it is
    gone (a kernel was restarted), one of them takes over.

    Args:
        log: the rank's log. With pipeline stages, only the last stage's loss means something: give its rank's.
        metrics: the file to append to.
        seq_length: tokens of a row; None: not known, and so no tokens per second.
        ranks: ranks over all hosts.
        real_share: the part of the tokens that is not padding, 0 to 1.
        flops_per_token: see :func:`qwenlib.monitor.flops.flops_per_token`.
        peak_flops: FLOP/s of one card; without both, there is no MFU.
    """

    def __init__(
        self,
        log: Union[str, Path],
        metrics: Union[str, Path],
        seq_length: Optional[int],
        ranks: int,
        real_share: float = 1.0,
        flops_per_token: Optional[float] = None,
        peak_flops: Optional[float] = None,
    ):
        if (seq_length is not None and seq_length < 1) or ranks < 1 or not 0 <= real_share <= 1:
            raise Refused(
                f"seq_length and ranks must be at least 1 and real_share 0 to 1, "
                f"found {seq_length}, {ranks} and {real_share}."
            )
        self.metrics = Path(metrics)
        self.seq_length, self.ranks, self.real_share = seq_length, ranks, real_share
        self.of_peak = flops_per_token / peak_flops if flops_per_token and peak_flops else None
        self.follower, self.reader = Follower(log), LossReader()
        self.written = Follower(self.metrics)
        self._half = b""
        self._steps: List[int] = []
        self._known: Optional[int] = None
        self._lock: Optional[IO[bytes]] = None
        self._unwritten: List[Dict[str, Any]] = []
        self.trouble = ""
        """Why the last records are not in the file (a full disk); they follow as soon as it takes them."""

    def update(self, last: bool = False) -> List[Dict[str, Any]]:
        """Read what is new and append it; returns the new records. ``last``: the log has ended."""
        records = [] if self._lock else self._read_written()
        if not self._lock:
            more = self._take_over()
            if more is None:
                return records
            records += more
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
        new = [self._record(step) for step in self._not_written(steps)]
        self._write(new)
        return records + new

    def _write(self, new: List[Dict[str, Any]]) -> None:
        """A disk that takes nothing must not end a training for a line of its metrics."""
        self._unwritten += new
        if not self._unwritten:
            return
        try:
            append(self.metrics, self._unwritten)
        except OSError as error:
            self.trouble = f"{self.metrics} cannot be written: {error.strerror}"
            return
        self._unwritten, self.trouble = [], ""

    def _not_written(self, steps: List[Step]) -> List[Step]:
        """Without those of the log that an earlier watcher wrote: they stand at the file's end, in the same order.

        Before them may stand what a resumed training began with. Numbers alone do not tell: a restarted training goes
        back and trains steps once more.
        """
        if self._known is None and steps:
            first = steps[0].step
            self._known = len(self._steps) - self._steps.index(first) if first in self._steps else 0
        known = min(self._known or 0, len(steps))
        self._known = self._known and self._known - known
        return steps[known:]

    def close(self) -> None:
        """Let another watcher write."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _take_over(self) -> Optional[List[Dict[str, Any]]]:
        """Become the writer: nothing is lost or written twice, for a log always gives the same steps.

        Returns what was written before and not read yet; None: another one is the writer.
        """
        if not self.follower.path.exists():
            return None  # as long as there is nothing to write, leave no file
        handle = open(self.metrics, "ab")  # noqa: SIM115 (held as long as we write)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
        except OSError:
            pass  # a file system without locks
        records = self._read_written()
        lines = count_lines(self.metrics)
        handle.truncate(lines[1])  # without the half line of a writer that was killed
        self._lock, self._half = handle, b""
        return records

    def _read_written(self) -> List[Dict[str, Any]]:
        data = b"".join(iter(self.written.read, b""))
        *lines, self._half = (self._half + data).split(b"\n")
        records = [record for record in map(_parsed, lines) if record is not None]
        self._steps += [int(record["step"]) for record in records]
        return records

    def _record(self, step: Step) -> Dict[str, Any]:
        rate, length = step.samples_per_second_per_rank, self.seq_length
        tokens: Optional[float] = None if rate is None or length is None else rate * length
        return {
            **step.to_dict(),
            "tokens_per_second_per_rank": tokens,
            "tokens_per_second": None if tokens is None else tokens * self.ranks,
            "real_tokens_per_second": None if tokens is None else tokens * self.ranks * self.real_share,
            "mfu": None if tokens is None or self.of_peak is None else tokens * self.of_peak,
        }


def _parsed(line: bytes) -> Optional[Dict[str, Any]]:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def count_lines(path: Path) -> Tuple[int, int]:
    """Whole lines of a file, and where the last of them ends."""
    count = end = place = 0
    with open(path, "rb") as stream:
        for data in iter(lambda: stream.read(2**20), b""):
            count += data.count(b"\n")
            if b"\n" in data:
                end = place + data.rfind(b"\n") + 1
            place += len(data)
    return count, end


def append(path: Path, records: List[Dict[str, Any]]) -> None:
    """Append whole lines by one ``write``, so that a reader sees all of a line or (at the very end) none.

    When the disk does not take all of them, the file is as it was.
    """
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    handle = os.open(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    size = os.fstat(handle).st_size
    try:
        data = text.encode("utf-8")
        while data:
            data = data[os.write(handle, data) :]
    except OSError:
        os.ftruncate(handle, size)
        raise
    finally:
        os.close(handle)


def read_metrics(path: Union[str, Path]) -> pandas.DataFrame:
    """``metrics.jsonl`` (or the run directory that holds it) as a table with the columns :data:`COLUMNS`.

    No file: an empty table with the same columns. A last line that is still being written is left out.

    Raises:
        Refused: a line that is not JSON (path and line).
    """
    return to_frame(read_records(path))


def read_records(path: Union[str, Path]) -> List[Dict[str, Any]]:
    """The lines of ``metrics.jsonl`` (or of the run directory that holds it); [] when there is none.

    What a restarted training trained once more is there once, as it was the last time.

    Raises:
        Refused: a line that is not a JSON object (path and line).
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise Refused(f"{path}, line {number}: not JSON ({error.msg}).") from None
        if not isinstance(records[-1], dict):
            raise Refused(f"{path}, line {number}: a step is a JSON object, found {line[:60]}.")
    return join([], records)


def join(kept: List[Dict[str, Any]], more: Iterable[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Append ``more`` to ``kept`` and return it; a step that was trained once more ends what was told from it on."""
    for record in more:
        step = record.get("step")
        while kept and isinstance(step, int) and isinstance(kept[-1].get("step"), int) and kept[-1]["step"] >= step:
            kept.pop()
        kept.append(record)
    return kept


def to_frame(records: List[Dict[str, Any]]) -> pandas.DataFrame:
    """Records as a table with the columns and types of :data:`COLUMNS`."""
    import pandas

    return pandas.DataFrame(
        {name: pandas.Series([record.get(name) for record in records], dtype=kind) for name, kind in COLUMNS.items()}
    )


def last_steps(frame: pandas.DataFrame, count: int = 5) -> pandas.DataFrame:
    """The last ``count`` rows of :func:`read_metrics`, as narrow as a page: :data:`SHOWN`, without empty columns."""
    shown = frame[list(SHOWN)].dropna(axis=1, how="all").tail(count)
    return shown.round({"tokens_per_second": 1, "mfu": 4})


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
        "mfu": median("mfu"),
    }


def _number(value: Any) -> Optional[float]:
    return None if value != value else float(value)
