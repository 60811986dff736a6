"""A growing file of answers, JSON Lines or CSV, that survives being cut off in the middle of a line."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Type, Union

from qwenlib.errors import Refused, WorkFailed

FIELDS = (
    "id",
    "question",
    "answer",
    "expected",
    "finish",
    "prompt_tokens",
    "cut_tokens",
    "dropped_turns",
    "answer_tokens",
    "first_token_seconds",
    "seconds",
    "tokens_per_second",
    "model",
    "made_by",
)
"""Columns. ``tokens_per_second``: tokens of the answer by all of its seconds, the first token's included; ``made_by``:
a mark of the checkpoint and the settings."""
KINDS = (".jsonl", ".csv")
_NUMBERS = {
    "prompt_tokens": int,
    "cut_tokens": int,
    "dropped_turns": int,
    "answer_tokens": int,
    "first_token_seconds": float,
    "seconds": float,
    "tokens_per_second": float,
}


class AnswersFile:
    """``with AnswersFile(path) as answers: answers.rows; answers.add(row)``; no second process can have it open.

    What an earlier process left is read; half a record at its end is taken away.

    Raises:
        Refused: the name ends in neither .jsonl nor .csv, the file holds something else, or is being written.
    """

    def __init__(self, path: Union[str, Path], overwrite: bool = False):
        self.path = Path(path)
        if self.path.suffix not in KINDS:
            raise Refused(f"{self.path}: the answers' file must end in {' or '.join(KINDS)}.")
        if self.path.is_dir():
            raise Refused(f"{self.path} is a folder; give the name of a file to write.")
        self.rows: Dict[str, Dict[str, Any]] = {}
        self._csv = self.path.suffix == ".csv"
        self._overwrite = overwrite
        self._out: Optional[BinaryIO] = None

    def __enter__(self) -> AnswersFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(str(self.path), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise Refused(f"{self.path} cannot be written: {error.strerror}. Choose another place.") from None
        self._out = os.fdopen(handle, "r+b")
        try:
            self._begin(self._out)
        except BaseException:
            self._out.close()
            raise
        return self

    def _begin(self, out: BinaryIO) -> None:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"another process is writing {self.path}; wait for it, or name another file.") from None
        content = b"" if self._overwrite else out.read()
        begins = _csv_line(FIELDS) if self._csv else b'{"id": "'
        if content[: len(begins)] != begins[: len(content)]:
            raise _foreign(self.path, 1)
        whole = _whole(content, self._csv)
        rows = _read_csv(whole, self.path) if self._csv else _read_jsonl(whole, self.path)
        self.rows = {row["id"]: row for row in rows}
        out.seek(len(whole))
        out.truncate()
        if self._csv and not whole:
            self._write(_csv_line(FIELDS))

    def require(self, questions: Mapping[str, str], made_by: str) -> None:
        """Refuse to go on with answers to other questions, or of another model or other settings."""
        for key, row in self.rows.items():
            if key not in questions:
                why = f"it answers a question {key!r} that is not asked"
            elif row["question"] != questions[key]:
                why = f"its question {key!r} is another: {row['question']!r:.80}"
            elif row["made_by"] != made_by:
                why = f"its answer {key!r} was made by another checkpoint ({row['model']}) or with other settings"
            else:
                continue
            raise Refused(f"{self.path} cannot be gone on with: {why}. Name another file, or overwrite this one.")

    def add(self, row: Dict[str, Any]) -> None:
        """Write a row; it is on the disk when this returns.

        Raises:
            WorkFailed: the disk is full.
        """
        if self._csv:
            self._write(_csv_line(["" if row[key] is None else row[key] for key in FIELDS]))
        else:
            self._write(json.dumps({key: row[key] for key in FIELDS}, ensure_ascii=False).encode() + b"\n")
        self.rows[row["id"]] = row

    def _write(self, line: bytes) -> None:
        assert self._out is not None
        try:
            self._out.write(line)
            self._out.flush()
            os.fsync(self._out.fileno())
        except OSError as error:
            raise WorkFailed(f"{self.path} cannot be written: {error.strerror}; what it holds is whole.") from error

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._out is not None:
            self._out.close()


def _whole(content: bytes, is_csv: bool) -> bytes:
    """``content`` up to the end of its last whole record; a line break within CSV's quotes ends none."""
    if not is_csv:
        return content[: content.rfind(b"\n") + 1]
    end, quotes, place = 0, 0, 0
    for line in content.splitlines(keepends=True):
        place += len(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            end = place
    return content[:end]


def _read_jsonl(content: bytes, path: Path) -> List[Dict[str, Any]]:
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            raise _foreign(path, number)
        rows.append(row)
    return rows


def _read_csv(content: bytes, path: Path) -> List[Dict[str, Any]]:
    if not content:
        return []
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True)
        header, *records = lines
    except (UnicodeDecodeError, csv.Error):
        raise _foreign(path, 1) from None
    rows: List[Dict[str, Any]] = []
    for number, record in enumerate(records, start=2):
        row: Dict[str, Any] = dict(zip(FIELDS, record))
        try:
            for key, kind in _NUMBERS.items():
                row[key] = kind(row[key]) if row[key] else None
        except (KeyError, ValueError):
            raise _foreign(path, number) from None
        rows.append(row)
    if tuple(header) != FIELDS or any(len(record) != len(FIELDS) for record in records):
        raise _foreign(path, 1)
    return rows


def _foreign(path: Path, number: int) -> Refused:
    return Refused(
        f"{path}, record {number}: not written by qwenlib predict. Name another file, or overwrite this one."
    )


def _csv_line(values: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([str(value).replace("\0", "\ufffd") for value in values])
    return out.getvalue().encode()
