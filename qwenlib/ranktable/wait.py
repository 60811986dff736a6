"""Wait until the platform has filled the rank table; never for ever."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any, Callable, Dict, Tuple, Union

from qwenlib.errors import Refused, WorkFailed
from qwenlib.progress import Progress
from qwenlib.ranktable.parse import decode, read_raw

TIMEOUT = 1800.0
"""Seconds; HCCL itself gives up after as many."""

SETTLE = 10.0
"""A file that is no JSON and has not changed for so many seconds is broken, not half-written."""


def wait_for(
    path: Union[str, Path],
    timeout: float = TIMEOUT,
    interval: float = 1.0,
    settle: float = SETTLE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Dict[str, Any]:
    """Wait until ``path`` holds whole JSON whose ``status`` is not ``initializing``; return the document.

    Absent, empty, cut off and ``initializing`` are waited for, with a progress line that says which.

    Raises:
        WorkFailed: ``timeout`` seconds have passed; the message names what is missing.
        Refused: the file is broken in a way that waiting does not mend; a ``timeout`` that never comes.
    """
    path = Path(path)
    if not 0 <= timeout < math.inf:
        raise Refused(f"wait_seconds must be a number of seconds, 0 or more, found {timeout:g}; for ever is no choice.")
    start = clock()
    stable: Tuple[Any, float] = (None, start)
    document, missing, broken = look(path)
    if document is not None:
        return document
    with Progress(f"waiting for {path}", total=timeout, unit="s") as bar:
        while document is None:
            now = clock()
            stamp = _stamp(path)
            if stamp != stable[0]:
                stable = (stamp, now)
            if broken and now - stable[1] >= settle:
                with contextlib.suppress(FileNotFoundError):  # the platform may just be replacing it
                    decode(read_raw(path), str(path))  # raises, with line and column
            if now - start >= timeout:
                raise WorkFailed(
                    f"the rank table is not ready after {timeout:g} s: {missing}. On ModelArts, see whether all nodes "
                    "of the job have started and whether RANK_TABLE_FILE is defined for the image; on your own "
                    "servers, "
                    "make one: qwenlib ranktable generate. wait_seconds (--wait_seconds) sets how long to wait."
                )
            pause = min(interval, max(timeout - (now - start), 0.0))
            sleep(pause)
            bar.advance(pause, missing)
            document, missing, broken = look(path)
    return document


def look(path: Path) -> Tuple[Any, str, bool]:
    """One look: (the document or None, what is missing, whether the file is damaged rather than cut off)."""
    try:
        raw = read_raw(path)
    except FileNotFoundError:
        return None, f"{path} does not exist", False
    except OSError as error:
        raise Refused(f"rank table {path} cannot be read: {error.strerror}.") from None
    if not raw.strip(b"\xef\xbb\xbf \t\r\n\x00"):
        return None, f"{path} is empty", False
    try:
        text = raw.decode("utf-8-sig")
        document = json.loads(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith(
            ("Unterminated", "Invalid \\escape", "Invalid \\u")
        )
        where = f"line {error.lineno}, column {error.colno}"
        return None, f"{path} is {'half-written' if cut else 'not JSON'} ({where}: {error.msg})", not cut
    except UnicodeDecodeError as error:
        cut = error.end >= len(raw) - 3
        return None, f"{path} is {'half-written' if cut else 'not UTF-8'} (byte {error.start})", not cut
    except (RecursionError, ValueError):
        return None, f"{path} is not a rank table (nested too deeply)", True
    if isinstance(document, dict) and document.get("status") == "initializing":
        servers = [key for key in ("server_list", "group_list") if key in document]
        return (
            None,
            f"{path} says status initializing ({'no servers yet' if not servers else 'servers incomplete'})",
            False,
        )
    if isinstance(document, dict) and not document:
        return None, f"{path} is an empty object", False
    return document, "", False


def _stamp(path: Path) -> Any:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
