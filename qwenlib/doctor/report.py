"""What the doctor found."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterable, List, Tuple

from qwenlib.errors import WorkFailed

OK, FAIL, WARN, SKIP = "OK", "FAIL", "WARN", "SKIP"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and why."""

    name: str
    state: str
    reason: str
    number: int = 0

    def text(self) -> str:
        """One line for people."""
        return f"{self.number:>3} {'[' + self.state + ']':<7}{self.name}: {self.reason}"


def numbered(findings: Iterable[Finding]) -> Tuple[Finding, ...]:
    """``findings`` in their order, numbered from 1."""
    return tuple(replace(item, number=number) for number, item in enumerate(findings, 1))


@dataclass(frozen=True)
class Findings:
    """What was found, numbered from 1."""

    findings: Tuple[Finding, ...]

    @property
    def fails(self) -> List[Finding]:
        """What stops the run."""
        return [item for item in self.findings if item.state == FAIL]

    def frame(self) -> Any:
        """A pandas table: number, state, check, reason."""
        import pandas

        rows = [(item.number, item.state, item.name, item.reason) for item in self.findings]
        return pandas.DataFrame(rows, columns=["number", "state", "check", "reason"]).set_index("number")


@dataclass(frozen=True)
class Report(Findings):
    """What the doctor found, and where."""

    place: str
    place_reason: str
    profile: str
    device_target: str

    @property
    def counts(self) -> Dict[str, int]:
        """``{"ok": …, "warn": …, "fail": …, "skip": …}``."""
        return {state.lower(): sum(item.state == state for item in self.findings) for state in (OK, WARN, FAIL, SKIP)}

    def text(self, width: int = 0) -> str:
        """The report for people; lines are folded at ``width`` columns (0: one line a finding)."""
        lines = [f"profile {self.profile} ({self.device_target}) on a {self.place} ({self.place_reason})"]
        lines += [item.text() for item in self.findings]
        lines.append(", ".join(f"{count} {state.upper()}" for state, count in self.counts.items()))
        if width > 40:
            fold = textwrap.TextWrapper(
                width, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False
            )
            lines = [part for line in lines for part in fold.wrap(line)]
        return "\n".join(lines)

    def to_dict(self) -> Dict[str, Any]:
        """For ``--json`` and doctor.json; holds no secret."""
        return {
            "profile": self.profile,
            "device_target": self.device_target,
            "place": self.place,
            "place_reason": self.place_reason,
            "counts": self.counts,
            "ok": not self.fails,
            "findings": [asdict(item) for item in self.findings],
        }

    def stop(self) -> None:
        """End here when something failed.

        Raises:
            WorkFailed: naming every FAIL.
        """
        if self.fails:
            told = [f"{item.number} {item.name}: {item.reason.rstrip('.')}" for item in self.fails]
            raise WorkFailed.listing(f"the doctor found {len(self.fails)} FAIL", told)
