"""Which rank failed first, and how to say it in a paragraph."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional

from qwenlib.files import write_json

ERROR_FILE, LOG_FILE = "error.json", "rank.log"
TAIL_BYTES, TAIL_LINES, LINE_LENGTH, MESSAGE_LENGTH = 65536, 6, 300, 800
_CHATTER = re.compile(r"\[(WARNING|INFO|DEBUG)\] \w+\(\d+,")  # what MindSpore's C++ core says all the time
_RULE = re.compile(r"\n\s*-{5,}\s*\n")  # MindSpore's message ends here; call stacks follow


def record_error(error: BaseException, exit_code: int = 1, folder: Optional[Path] = None) -> Path:
    """Called by a rank's program when it fails: leaves ``error.json`` where the supervisor looks for it.

    ``{"type", "message", "stack", "time", "exit_code"}``; time in seconds since 1970. The folder is the rank's
    own (``QWENLIB_RANK_DIR``, set by the launcher).
    """
    path = Path(folder or os.environ.get("QWENLIB_RANK_DIR") or os.getcwd()) / ERROR_FILE
    stack = traceback.format_exception(type(error), error, error.__traceback__)
    write_json(
        path,
        {
            "type": type(error).__name__,
            "message": str(error),
            "stack": "".join(stack),
            "time": time.time(),
            "exit_code": exit_code,
        },
    )
    return path


def read_error(folder: Path) -> Optional[Dict[str, Any]]:
    """A rank's ``error.json`` with a usable time; None when there is none that can be read."""
    path = folder / ERROR_FILE
    try:
        error = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        written = path.stat().st_mtime
    except (OSError, ValueError):
        return None
    if not isinstance(error, dict):
        return None
    with contextlib.suppress(TypeError, ValueError):
        written = float(error.get("time", written))
    return {**error, "time": written}


def last_lines(log: Path, count: int = TAIL_LINES) -> List[str]:
    """The last lines of a log that say something, cut to a readable length; undecodable bytes are replaced.

    MindSpore's own warnings are passed over unless there is nothing else.
    """
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    lines = [line for line in lines if not _CHATTER.match(line)] or lines
    return [line if len(line) <= LINE_LENGTH else line[:LINE_LENGTH] + " …" for line in lines[-count:]]


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def root_cause(run_dir: Path, ranks: List[Dict[str, Any]], oom: bool) -> Optional[Dict[str, Any]]:
    """The earliest real failure among the processes of a launch: ``{rank, reason, message, time, log}``.

    A rank's own ``error.json`` tells its time; without one, the end of the process does, if it ended before we
    began to end the others (``ended_by_us``). A rank that fell because another did writes its error later.
    """
    found: List[Dict[str, Any]] = []
    for rank in ranks:
        if rank["exit_code"] in (0, None) and not rank["signal"]:
            continue
        folder = run_dir / rank["name"]
        error = read_error(folder)
        if error is None and rank["ended_by_us"]:
            continue
        cause = {"rank": rank["name"], "log": str(folder / LOG_FILE)}
        if error is not None:
            kind, message = error.get("type") or "error", _brief(str(error.get("message") or ""))
            cause.update(time=error["time"], reason=kind, message=f"{kind}: {message}" if message else kind)
        else:
            cause.update(time=rank["finished"], reason=rank["signal"] or f"exit code {rank['exit_code']}")
            cause["message"] = _ended(rank, oom)
            cause["last_lines"] = last_lines(folder / LOG_FILE)
        found.append(cause)
    return min(found, key=lambda cause: cause["time"]) if found else None


def _brief(message: str) -> str:
    """The message without MindSpore's call stacks, on one line; all of it is in ``error.json``."""
    text = " ".join(_RULE.split(message, maxsplit=1)[0].split())
    return text if len(text) <= MESSAGE_LENGTH else text[:MESSAGE_LENGTH] + " …"


def _ended(rank: Dict[str, Any], oom: bool) -> str:
    seconds = f"after {max(0.0, rank['finished'] - rank['started']):.0f} s"
    if not rank["signal"]:
        return f"ended with exit code {rank['exit_code']} {seconds}"
    text = f"was killed by {rank['signal']} {seconds}"
    if rank["signal"] == "SIGKILL":
        text += " (the kernel's out-of-memory killer)" if oom else " (not by us; the machine may be out of memory)"
    return text


def hang_text(hanging: Dict[str, Any]) -> str:
    """What the watchdog saw, as a predicate: "has taken no step for 300 s …"."""
    more = f" (the same holds for {', '.join(hanging['ranks'][1:])})" if hanging["ranks"][1:] else ""
    seconds = max(hanging["seconds"], time.time() - hanging.get("since", math.inf))
    text = (
        f"hangs: no step for {seconds:.0f} s after step {hanging['step']}, where one usually takes "
        f"{hanging['usual']:.2g} s{more}"
    )
    for name, pid in (hanging.get("stopped") or {}).items():
        text += f"; {name} was stopped by a signal, and goes on with: kill -CONT {pid}"
    return text


def paragraph(status: Dict[str, Any]) -> str:
    """What went wrong, for a person: rank, what, the last lines of its log or the log's place."""
    cause = status.get("root_cause") or {"rank": None, "message": f"the run is {status.get('state')}"}
    if cause["rank"] is None:
        return str(cause["message"])
    total = len(status.get("ranks", []))
    who, message = cause["rank"].replace("_", " "), cause["message"]
    if not who.startswith("rank"):
        who = f"the {who} of the {total} ranks"
    elif total > 1:
        who += f" of {total}"
    text = f"{who} {message}" if cause.get("last_lines") is not None else f"{who} failed: {message}"
    text = text.rstrip(". ") + "."
    if total > 1:
        text += " The other ranks were ended."
    if cause.get("before"):  # the launcher saw it
        text += f" Before that, {cause['before']}."
    if cause.get("last_lines"):
        return f"{text} The last lines of {cause['log']}:\n" + "\n".join(f"  | {line}" for line in cause["last_lines"])
    return f"{text} Its log: {cause['log']}"
