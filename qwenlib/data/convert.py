"""Records to messages, one JSON object a line, as upstream's ``alpaca_converter.py`` writes them."""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any, Dict, Optional, Union

import numpy

from qwenlib.data import chatml
from qwenlib.data.formats import FORMATS, detect, to_conversation
from qwenlib.data.reader import Item, read_items
from qwenlib.errors import Refused
from qwenlib.files import atomic_path, check_target
from qwenlib.progress import Progress

ON_ERROR = ("stop", "skip")
SPECIAL = ("escape", "keep")
COUNTS = ("records", "with_input", "skipped", "empty_answers", "without_answer", "duplicates", "special_tokens")


def convert(
    data_path: Union[str, Path],
    output_path: Union[str, Path],
    *,
    format: str = "auto",
    system: str = chatml.SYSTEM,
    on_error: str = "stop",
    special_tokens: str = "escape",
) -> Dict[str, Any]:
    """Write the messages of ``data_path`` to ``output_path`` (JSON Lines, UTF-8), which is replaced when whole.

    Each line is ``{"type": "chatml", "messages": [system, user, assistant]}``, for alpaca records equal as an object to
    upstream's. The file is streamed: memory does not grow with it but for 8 bytes a record.

    Args:
        data_path: a JSON array or JSON Lines.
        output_path: the file to write.
        format: ``alpaca``, ``sharegpt``, ``messages``, or ``auto``: what the first record's keys say.
        system: the system message of records that have none ("": none); ready-made messages stay as they are.
        on_error: ``stop`` at the first bad record, or ``skip`` bad ones into ``output_path.skipped.jsonl``
            (``index``, ``line``, ``reason``, ``record``).
        special_tokens: ``escape`` control tokens that texts spell (``<|im_end|>`` becomes ``<| im_end |>``), or
            ``keep`` them: :func:`qwenlib.data.build` reads them as plain text all the same, upstream's script does not.

    Returns:
        The counts ``records``, ``with_input``, ``skipped``, ``empty_answers``, ``without_answer`` (conversations that
        teach none), ``duplicates`` (records like an earlier one), ``special_tokens`` (spelled in texts); ``format``,
        ``format_reason``, ``skipped_path`` ("": nothing was skipped), ``output_path``.

    Raises:
        Refused: the file or, with ``stop``, a record is malformed; no record was good; an argument is wrong; both paths
            are the same file. Nothing is written then.
    """
    source, target = Path(data_path), Path(output_path)
    _check(source, target, format, on_error, special_tokens)
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(atomic_path(target))
        out = stack.enter_context(open(part, "w", encoding="utf-8"))
        bar = stack.enter_context(Progress("convert", unit="records"))
        skipped = _Skipped(source, target, stack) if on_error == "skip" else None
        work = _Conversion(source, out, "" if format == "auto" else format, system, special_tokens == "escape")
        bad = skipped.take if skipped else _stop
        for item in read_items(source, bad):
            try:
                work.add(item)
            except Refused as error:
                if not (skipped or work.format):
                    raise  # the first record: none will be better
                bad(item, error)
            bar.advance()
        if skipped:
            work.counts["skipped"] = skipped.count
        if not work.counts["records"]:
            first = skipped.first if skipped else "it is empty."
            raise Refused(f"{source}: none of its {work.counts['skipped']} records is good; the first: {first}")
    if not work.counts["skipped"]:
        _side(target).unlink(missing_ok=True)
    return {
        **work.counts,
        "duplicates": work.duplicates(),
        "format": work.format,
        "format_reason": work.reason or "named",
        "skipped_path": str(_side(target)) if work.counts["skipped"] else "",
        "output_path": str(target),
    }


convert_file = convert


class _Conversion:
    """Turns items into lines of ``out`` and counts."""

    def __init__(self, source: Path, out: IO[str], format: str, system: str, escape: bool):
        self.source, self.out, self.format, self.system, self.escape = source, out, format, system, escape
        self.reason = ""
        self.counts = dict.fromkeys(COUNTS, 0)
        self._marks = array.array("Q")

    def add(self, item: Item) -> None:
        where = item.where(self.source)
        if not self.format:
            self.format, reason = detect(item.value)
            if not self.format:
                raise Refused(f"{where}: {reason}.")
            self.reason = reason
        messages, with_input = to_conversation(item, where, self.format, self.system)
        special = chatml.special_in(messages)
        if special and self.escape:
            messages = chatml.escape(messages)
        line = json.dumps({"type": "chatml", "messages": messages}, ensure_ascii=False) + "\n"
        self.out.write(line)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        self.counts["records"] += 1
        self.counts["with_input"] += with_input
        self.counts["empty_answers"] += any(not answer.strip() for answer in answers)
        self.counts["without_answer"] += not answers
        self.counts["special_tokens"] += special
        digest = hashlib.blake2b(line.encode("utf-8"), digest_size=8).digest()
        self._marks.append(int.from_bytes(digest, "little"))

    def duplicates(self) -> int:
        """Records like an earlier one. Sorts in place: a copy of the marks is what memory would end at."""
        marks = numpy.frombuffer(self._marks, dtype=numpy.uint64)
        marks.sort()
        return int(numpy.count_nonzero(marks[1:] == marks[:-1]))


class _Skipped:
    """The side file, made when the first bad record comes, and there when the output is whole."""

    def __init__(self, source: Path, target: Path, stack: contextlib.ExitStack):
        self.source, self.target, self.stack = source, target, stack
        self.count = 0
        self.first = ""
        self._out: Optional[IO[str]] = None

    def take(self, item: Item, error: Refused) -> None:
        if self._out is None:
            part = self.stack.enter_context(atomic_path(_side(self.target)))
            self._out = self.stack.enter_context(part.open("w", encoding="utf-8"))
        self.count += 1
        self.first = self.first or str(error)
        reason = str(error).replace(f"{item.where(self.source)}: ", "").replace(f"{self.source}, ", "")
        entry = {"index": item.index, "line": item.line, "reason": reason, "record": item.value}
        self._out.write(json.dumps(entry) + "\n")  # ASCII: half a character, too, can be written so


def _stop(item: Item, error: Refused) -> None:
    raise Refused(f"{error} Correct it, or have bad records skipped: --on-error skip.") from None


def _side(target: Path) -> Path:
    return target.with_name(target.name + ".skipped.jsonl")


def _check(source: Path, target: Path, format: str, on_error: str, special_tokens: str) -> None:
    for name, value, allowed in (
        ("format", format, ("auto", *FORMATS)),
        ("on_error", on_error, ON_ERROR),
        ("special_tokens", special_tokens, SPECIAL),
    ):
        if value not in allowed:
            raise Refused(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, found {value!r}.")
    check_target(target)
    for written in (target, _side(target)):
        if source.exists() and written.exists() and os.path.samefile(source, written):
            raise Refused(f"{written} is the input itself; give another output_path.")
