"""What made a run fail: the signatures of all ranks' logs, put in order.

The order is that of the HCCL guides: an error of its own beats a log that just stops, and that beats the timeouts of
the ranks that waited for it. Among equals the earliest wins. When all ranks only report timeouts, the distance in
time between the first and the last tells a slow rank from a broken network.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from qwenlib.launch import read_status, rundir
from qwenlib.launch.failure import ERROR_FILE
from qwenlib.monitor import logs, report
from qwenlib.monitor.scan import Hit, scan_bytes, scan_file
from qwenlib.monitor.signatures import Signature, load_signatures
from qwenlib.progress import Progress

CONNECT_TIMEOUT = 120.0
"""Seconds that HCCL waits for the other ranks when HCCL_CONNECT_TIMEOUT does not say otherwise."""
_LEVEL = {"real": 0, "killed": 1, "maybe": 1, "family": 1, "timeout": 3, "wrapper": 4, "note": 6}
_UNKNOWN, _STOPPED, _CHATTER, _ECHO = 1, 2, 5, 5


@dataclass
class Finding:
    """One signature on one rank."""

    id: str
    kind: str
    what: str
    cause: str
    advice: str
    rank: Optional[int]
    server: Optional[str] = None
    file: str = ""
    number: int = 0
    line: str = ""
    time: Optional[float] = None
    count: int = 1
    level: int = 0
    by_itself: bool = False
    """The rank ended by itself, with an error; it was not ended by the launcher."""

    def order(self) -> Tuple[Any, ...]:
        """Sort key: the first one is the cause."""
        late = self.time is None
        return (self.level, late, self.time or 0.0, not self.by_itself, self.rank is None, self.rank or 0, self.number)


@dataclass
class Diagnosis:
    """What :func:`diagnose` found. ``cause`` None: nothing was recognised."""

    run_dir: Path
    state: str
    """Of the launch (running, done, failed, stopped), or ``unknown`` without ``launch.json``."""
    cause: Optional[Finding] = None
    others: List[Finding] = field(default_factory=list)
    """Further causes of their own, on other ranks or of other kinds."""
    secondary: List[Finding] = field(default_factory=list)
    """What follows from the cause."""
    unknown: List[Finding] = field(default_factory=list)
    """Lines that look like errors, of ranks without a signature; earliest first."""
    hint: str = ""
    """What the many-rank view says: a slow rank, a rank without a log."""
    said: str = ""
    """What the launcher knows, when nothing was recognised."""
    ranks: int = 0
    logs: int = 0
    size: int = 0

    def text(self) -> str:
        """The report, for a terminal or a notebook."""
        return report.text(self)

    def paragraph(self) -> str:
        """The cause in one paragraph; empty when nothing was recognised."""
        return report.paragraph(self)

    def to_dict(self) -> Dict[str, Any]:
        """For ``--json``."""
        return report.to_dict(self)

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(self.text())


def diagnose(run_dir: Union[str, Path], signatures: Sequence[Union[str, Path]] = ()) -> Diagnosis:
    """Read all logs of a run (of this launch only) and say what happened.

    Args:
        run_dir: a stage's folder, or the run's (then the stage that failed last is looked at).
        signatures: more files like ``signatures.yaml``.

    Raises:
        Refused: there is no run, or a file of signatures is wrong.
    """
    table = load_signatures(signatures)
    folder = logs.find_run(run_dir)
    status = read_status(folder)
    if rundir.whole(status):
        status = rundir.current(folder)  # a supervisor that is gone could not write how it ended
    found = logs.find_logs(folder, status)
    result = Diagnosis(folder, str((status or {}).get("state", "unknown")), logs=len(found))
    ends = {entry["rank"]: entry for entry in logs.entries(status)}
    where = logs.servers(folder)
    findings: List[Finding] = []
    errors: Dict[Optional[int], Finding] = {}
    last_words: Dict[int, Optional[float]] = {}

    def take(rank: Optional[int], name: str, scan: Any, at: Optional[float] = None) -> None:
        for signature in table:
            hit = scan.hits.get(signature.id)
            if hit is not None:
                findings.append(_finding(signature, hit, rank, name, ends.get(rank), at))
        if scan.error is not None and not scan.error.chatter:
            error = _unknown(scan.error, rank, name, ends.get(rank), at)
            if rank not in errors or error.order() < errors[rank].order():
                errors[rank] = error

    total = sum(log.path.stat().st_size for log in found if log.path.is_file())
    with Progress("diagnose", total / 2**20, "MiB") if total > 50 * 2**20 else _Silent() as bar:
        for log in found:
            scan = scan_file(log.path, table)
            name = os.path.relpath(log.path, folder)
            take(log.rank, name if not name.startswith("..") else str(log.path), scan)
            if log.rank is not None:
                last_words.setdefault(log.rank, None)
            result.size += scan.size
            bar.advance(scan.size / 2**20)
    for rank, path, told in logs.rank_errors(folder):
        text = f"{told.get('stack') or ''}\n{told.get('type')}: {told.get('message')}\n"
        take(rank, os.path.relpath(path, folder), scan_bytes(text.encode("utf-8", "replace"), table), told["time"])
        last_words.setdefault(rank, None)
    findings = _once(findings)
    _stopped(findings, errors, ends, sorted(last_words))
    for finding in [*findings, *errors.values()]:
        finding.server = where.get(finding.rank) if finding.rank is not None else None
    world = (status or {}).get("world_size")
    result.ranks = world if isinstance(world, int) and world > 0 else len(last_words)
    _put_in_order(result, findings, errors, status)
    result.hint = _hint(result, findings, sorted(last_words), _connect_timeout(folder))
    return result


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, _amount: float) -> None:
        pass


def _by_itself(end: Optional[Dict[str, Any]]) -> bool:
    return end is not None and not end.get("ended_by_us") and bool(end.get("exit_code") or end.get("signal"))


def _finding(
    signature: Signature, hit: Hit, rank: Optional[int], name: str, end: Optional[Dict[str, Any]], at: Optional[float]
) -> Finding:
    level = _LEVEL[signature.kind]
    if signature.kind == "killed" and end and end.get("ended_by_us"):
        level = _ECHO
    elif hit.chatter and level < _CHATTER:
        level = _CHATTER
    said = {part: signature.say(part, hit.values) for part in ("what", "cause", "advice")}
    return Finding(
        id=signature.id,
        kind=signature.kind,
        **said,
        rank=rank,
        file=name,
        number=hit.number,
        line=hit.line,
        time=hit.time if hit.time is not None else at,
        count=hit.count,
        level=level,
        by_itself=_by_itself(end),
    )


def _unknown(hit: Hit, rank: Optional[int], name: str, end: Optional[Dict[str, Any]], at: Optional[float]) -> Finding:
    return Finding(
        id="unknown",
        kind="unknown",
        what="An error that the table of signatures does not know",
        cause="",
        advice="",
        rank=rank,
        file=name,
        number=hit.number,
        line=hit.line,
        time=hit.time if hit.time is not None else at,
        level=_ECHO if end and end.get("ended_by_us") else _UNKNOWN,
        by_itself=_by_itself(end),
    )


def _once(findings: List[Finding]) -> List[Finding]:
    """One finding per rank and signature (logs repeat each other), and no bare code where more is known of it."""
    best: Dict[Tuple[str, Optional[int]], Finding] = {}
    for finding in sorted(findings, key=Finding.order):
        kept = best.setdefault((finding.id, finding.rank), finding)
        kept.count = max(kept.count, finding.count)
        if kept.file.endswith(ERROR_FILE) and not finding.file.endswith(ERROR_FILE):
            kept.file, kept.number, kept.line = finding.file, finding.number, finding.line
    known = {finding.rank for finding in best.values() if finding.level <= 1 and finding.kind != "family"}
    return [finding for finding in best.values() if finding.kind != "family" or finding.rank not in known]


def _stopped(
    findings: List[Finding],
    errors: Dict[Optional[int], Finding],
    ends: Dict[Any, Dict[str, Any]],
    logged: List[int],
) -> None:
    """Add the ranks that were killed from outside, and those whose log just stops while others wait for them."""
    told = {finding.rank for finding in findings if finding.level <= _LEVEL["timeout"]}
    for rank, end in ends.items():
        name = end.get("signal") or ("SIGKILL" if end.get("exit_code") == 137 else None)
        if name and not end.get("ended_by_us") and rank not in {f.rank for f in findings if f.level <= 1}:
            killed = name == "SIGKILL"
            findings.append(
                Finding(
                    id="killed" if killed else "crashed",
                    kind="killed",
                    what=f"The process was killed ({name})" if killed else f"The process crashed ({name})",
                    cause="Not by the launcher: mostly the host ran out of memory."
                    if killed
                    else "A fault in native code, not an exception of Python's.",
                    advice="Look at dmesg and at oom_kill in /sys/fs/cgroup/memory.events."
                    if killed
                    else "The stack is at the end of the rank's log; look at the driver's plog as well.",
                    rank=rank,
                    file=os.path.join(str(end.get("name") or f"rank_{rank}"), "rank.log"),
                    time=end.get("finished"),
                    level=_LEVEL["killed"],
                    by_itself=True,
                )
            )
            told.add(rank)
    waiting = {finding.rank for finding in findings if finding.kind == "timeout"}
    if not waiting or len(logged) < 2:
        return
    for rank in logged:
        end = ends.get(rank) or {}
        if rank in told or rank in errors or end.get("exit_code") == 0:
            continue
        findings.append(
            Finding(
                id="log-stops",
                kind="stopped",
                what="The log of this rank just stops, while the others wait for it",
                cause="Its process was killed (mostly by a lack of host memory) or hangs.",
                advice="Look at dmesg on its server, and at what it did last.",
                rank=rank,
                file=f"rank_{rank}",
                level=_STOPPED,
            )
        )


def _put_in_order(
    result: Diagnosis,
    findings: List[Finding],
    errors: Dict[Optional[int], Finding],
    status: Optional[Dict[str, Any]],
) -> None:
    explained = {finding.rank for finding in findings if finding.level < _CHATTER}
    result.unknown = sorted((e for rank, e in errors.items() if rank not in explained), key=Finding.order)
    ordered = sorted(findings, key=Finding.order)
    cause = (status or {}).get("root_cause")
    result.said = _said(cause) if isinstance(cause, dict) else ""
    candidates = sorted([*ordered, *[e for e in result.unknown if e.level == _UNKNOWN]], key=Finding.order)
    if not candidates or candidates[0].kind == "unknown":
        first = None
    else:
        first = candidates[0]
        if first.level >= _CHATTER and (result.state == "done" or (result.unknown and first.kind != "note")):
            first = None
    result.cause = first
    rest = [finding for finding in ordered if finding is not first]
    result.others = [f for f in rest if f.level <= 1 and first is not None and f.id != first.id and first.level <= 1]
    result.secondary = [finding for finding in rest if finding not in result.others]
    if not result.unknown and first is None:
        result.unknown = sorted(errors.values(), key=Finding.order)


def _said(cause: Dict[str, Any]) -> str:
    """The launcher's words, with the rank that they are about."""
    before = f" Before that, {cause['before']}." if cause.get("before") else ""
    return " ".join(filter(None, [str(cause.get("rank") or ""), str(cause.get("message") or "")])) + before


def _hint(result: Diagnosis, findings: List[Finding], logged: List[int], threshold: float) -> str:
    hints = []
    missing = sorted(set(range(result.ranks)) - set(logged)) if result.ranks > 1 else []
    if missing and logged:
        names = ", ".join(map(str, missing[:16])) + (" …" if len(missing) > 16 else "")
        hints.append(f"There are no logs of rank{'s' if len(missing) > 1 else ''} {names} here: look there, too.")
    waits = [finding for finding in findings if finding.kind == "timeout" and finding.time is not None]
    if result.cause is not None and result.cause.kind == "timeout" and len({f.rank for f in waits}) > 1:
        first, last = min(waits, key=lambda f: f.time or 0), max(waits, key=lambda f: f.time or 0)
        apart = (last.time or 0) - (first.time or 0)
        if apart > threshold:
            hints.append(
                f"All ranks waited in vain; rank {last.rank} said so {apart:.0f} s after rank {first.rank}, more than "
                f"the {threshold:.0f} s that HCCL waits: rank {last.rank} was slow. See what it did before."
            )
        else:
            hints.append(
                f"All ranks waited in vain, within {apart:.0f} s: rather the network between them than one slow rank. "
                "Check links (`hccn_tool -i N -link -g`), addresses, and that TLS is set alike."
            )
    return " ".join(hints)


def _connect_timeout(folder: Path) -> float:
    """HCCL_CONNECT_TIMEOUT of the launch, by ``spec.json``."""
    try:
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        said = [process["env"].get("HCCL_CONNECT_TIMEOUT") for process in spec["processes"]]
        return float(next(value for value in said if value))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return CONNECT_TIMEOUT
