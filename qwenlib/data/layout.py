"""What a MindRecord says of itself, whoever built it: its columns and how long its rows are."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import List, Sequence, Union

from qwenlib.data.mindrecord import parts, row_at
from qwenlib.data.rows import COLUMNS
from qwenlib.errors import Refused

LARGEST = 2**30
"""Bytes of a header that are believed; MindSpore's grows with the number of pages."""


def columns(path: Union[str, Path]) -> List[str]:
    """The names of the columns, sorted, from the file's header, without MindSpore.

    The first 8 bytes are the length of a JSON document that follows them (MindRecord 3.0).

    Raises:
        Refused: no such pair of files, or no MindRecord.
    """
    part = parts(path)[0]
    try:
        with open(part, "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > LARGEST:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(stream.read(size))
        return sorted(name for schema in header["schema"] for name in schema["schema"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{part} does not begin as a MindRecord does ({error}). Build the data set again.") from None


def check_columns(path: Union[str, Path], wanted: Sequence[str] = COLUMNS) -> None:
    """Refuse a MindRecord without the columns that are to be read.

    Raises:
        Refused: one is missing (and as :func:`columns`).
    """
    found = columns(path)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise Refused(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(found)}. Build it with qwenlib data build."
        )


def check_rows(path: Union[str, Path], seq_length: int, wanted: Sequence[str] = COLUMNS) -> None:
    """Refuse a MindRecord whose first row is not ``seq_length + 1`` long (read by MindSpore).

    MindFormers would end while it compiles: "x.shape and y.shape need to broadcast".

    Raises:
        Refused: another length, or a column missing.
    """
    check_columns(path, wanted)
    found = len(row_at(path, 0)["input_ids"])
    if found != seq_length + 1:
        raise Refused(
            f"{path} has rows of {found} tokens (seq_length {found - 1}), but the training's seq_length is "
            f"{seq_length}, which needs {seq_length + 1}. Build it again with --seq_length {seq_length}, or set "
            f"data.seq_length={found - 1}."
        )
