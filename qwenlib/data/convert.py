"""Alpaca records to messages, one JSON object a line, as upstream's ``alpaca_converter.py`` writes them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, Set, Union

from qwenlib.data import alpaca, chatml
from qwenlib.errors import Refused
from qwenlib.files import atomic_path
from qwenlib.progress import Progress


def convert(
    data_path: Union[str, Path], output_path: Union[str, Path], *, system: str = chatml.SYSTEM
) -> Dict[str, Any]:
    """Write the messages of ``data_path`` to ``output_path`` (JSON Lines, UTF-8), which is replaced when whole.

    Each line is ``{"type": "chatml", "messages": [system, user, assistant]}``, equal as an object to upstream's.

    Returns:
        ``records``, ``with_input``, ``empty_answers``, ``duplicates`` (records like an earlier one), ``special_tokens``
        (control tokens spelled in texts; :func:`qwenlib.data.build` reads them as plain text), ``output_path``.

    Raises:
        Refused: the file or a record is malformed (nothing is written then), or both paths are the same file.
    """
    source, target = Path(data_path), Path(output_path)
    if target.is_dir():
        raise Refused(f"{target} is a folder; give the name of a file to write.")
    if source.exists() and target.exists() and os.path.samefile(source, target):
        raise Refused(f"{target} is the input itself; give another output_path.")
    counts = dict.fromkeys(("records", "with_input", "empty_answers", "duplicates", "special_tokens"), 0)
    seen: Set[bytes] = set()
    with (
        atomic_path(target) as part,
        open(part, "w", encoding="utf-8") as out,
        Progress("convert", unit="records") as bar,
    ):
        for record in alpaca.read(source):
            messages = chatml.to_messages(record, system)
            out.write(json.dumps({"type": "chatml", "messages": messages}, ensure_ascii=False) + "\n")
            mark = hashlib.blake2b(
                "\0".join((record.instruction, record.input, record.output)).encode("utf-8"), digest_size=8
            ).digest()
            counts["records"] += 1
            counts["with_input"] += bool(record.input)
            counts["empty_answers"] += not record.output.strip()
            counts["duplicates"] += mark in seen
            counts["special_tokens"] += chatml.special_in(messages)
            seen.add(mark)
            bar.advance()
    return {**counts, "output_path": str(target)}


convert_file = convert
