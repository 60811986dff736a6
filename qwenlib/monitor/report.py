"""A diagnosis in words: a page, a paragraph, or JSON."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional

if TYPE_CHECKING:
    from qwenlib.monitor.diagnosis import Diagnosis, Finding

WIDTH = 110
_UNDER_WAY = ("waiting", "starting", "running")


def text(found: Diagnosis) -> str:
    """The whole report."""
    ranks = f"{found.ranks} rank{'s' if found.ranks != 1 else ''}, " if found.ranks else ""
    lines = [f"{found.run_dir}: {_state(found)} ({ranks}{found.logs} logs, {found.size / 2**20:.1f} MiB read)", ""]
    cause = found.cause
    if cause is not None:
        lines += [f"{cause.what}.", *_fields(cause)]
    elif found.state == "done" and not found.others:
        lines.append("Nothing to explain: every rank ended well.")
    elif found.state in _UNDER_WAY and not (found.others or found.unknown or found.said):
        lines.append("Nothing to explain: it has not ended, and no line of the logs looks like an error.")
    else:
        lines.append("Not recognised: no line of the logs has a signature of the table.")
        if found.said:
            lines += _wrapped("launcher", found.said)
        if found.unknown:
            first = found.unknown[0]
            lines += [*_place(first), *_wrapped("error", first.line)]
            lines += _wrapped(
                "do", "read the log around that line; a signature for it can be added (--signatures FILE)."
            )
        else:
            lines.append("  There is no line that looks like an error, either.")
    for other in found.others:
        lines += ["", f"Also: {other.what}.", *_place(other), *_wrapped("line", other.line)]
    if found.hint:
        lines += ["", *textwrap.wrap(found.hint, WIDTH)]
    if found.secondary:
        lines += [
            "",
            *textwrap.wrap(f"Not shown, they follow from it or are not errors: {_counted(found.secondary)}.", WIDTH),
        ]
    return "\n".join(lines)


def paragraph(found: Diagnosis) -> str:
    """The cause in a paragraph; empty when nothing was recognised."""
    cause = found.cause
    if cause is None:
        return ""
    place = ", ".join(filter(None, [_who(cause), _where(cause)]))
    parts = [f"Diagnosis ({cause.id}): {cause.what} ({place})."]
    if cause.line:
        parts.append(f"The line: {cause.line[:200]}")
    parts += [f"Cause: {cause.cause}" if cause.cause else "", f"What to do: {cause.advice}", found.hint]
    return " ".join(filter(None, parts))


def to_dict(found: Diagnosis) -> Dict[str, Any]:
    """A JSON document; times are local, ISO 8601."""
    return {
        "run_dir": str(found.run_dir),
        "state": found.state,
        "recognised": found.cause is not None,
        "cause": _finding(found.cause),
        "others": [_finding(other) for other in found.others],
        "secondary": [
            {"id": name, "kind": items[0].kind, "ranks": _ranks(items), "lines": sum(item.count for item in items)}
            for name, items in _by_id(found.secondary).items()
        ],
        "unknown": [_finding(item) for item in found.unknown],
        "hint": found.hint,
        "launcher": found.said,
        "ranks": found.ranks,
        "logs": found.logs,
        "bytes": found.size,
    }


def _finding(finding: Optional[Finding]) -> Optional[Dict[str, Any]]:
    if finding is None:
        return None
    return {
        "id": finding.id,
        "kind": finding.kind,
        "what": finding.what,
        "rank": finding.rank,
        "server": finding.server,
        "time": _when(finding.time, "%Y-%m-%dT%H:%M:%S") or None,
        "file": finding.file,
        "line_number": finding.number or None,
        "line": finding.line,
        "cause": finding.cause,
        "advice": finding.advice,
        "lines": finding.count,
    }


def _state(found: Diagnosis) -> str:
    return {"unknown": "a run without launch.json", "done": "ended well"}.get(found.state, found.state)


def _fields(finding: Finding) -> List[str]:
    lines = _place(finding)
    for name, said in (("line", finding.line), ("cause", finding.cause), ("do", finding.advice)):
        lines += _wrapped(name, said)
    return lines


def _place(finding: Finding) -> List[str]:
    said = [("rank", _who(finding).replace("rank ", "", 1)), ("log", _where(finding)), ("time", _when(finding.time))]
    return [line for name, value in said if value for line in _wrapped(name, value)]


def _wrapped(name: str, said: str) -> List[str]:
    return textwrap.wrap(" ".join(said.split()), WIDTH, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11)


def _who(finding: Finding) -> str:
    if finding.rank is None:
        return ""
    return f"rank {finding.rank}" + (f" on server {finding.server}" if finding.server else "")


def _where(finding: Finding) -> str:
    return f"{finding.file}, line {finding.number}" if finding.number else finding.file


def _when(seconds: Optional[float], form: str = "%Y-%m-%d %H:%M:%S") -> str:
    try:
        return "" if seconds is None else time.strftime(form, time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return ""


def _by_id(findings: List[Finding]) -> Dict[str, List[Finding]]:
    found: Dict[str, List[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.id, []).append(finding)
    return found


def _ranks(findings: List[Finding]) -> List[int]:
    return sorted(finding.rank for finding in findings if finding.rank is not None)


def _counted(findings: List[Finding]) -> str:
    parts = []
    for name, items in _by_id(findings).items():
        ranks = _ranks(items)
        on = f" on rank{'s' if len(ranks) > 1 else ''} {_ranges(ranks)}" if ranks else ""
        lines = sum(item.count for item in items)
        parts.append(f"{name}{on} ({lines} line{'s' if lines != 1 else ''})")
    return "; ".join(parts)


def _ranges(numbers: List[int]) -> str:
    """``0-3, 5`` for 0, 1, 2, 3, 5."""
    parts: List[List[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
