"""Run all checks, whatever the earlier ones found."""

from __future__ import annotations

from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from qwenlib.doctor import hardware, host, software
from qwenlib.doctor.context import Context
from qwenlib.doctor.report import FAIL, Finding, Report, numbered
from qwenlib.progress import Progress

Check = Callable[[Context], Iterator[Finding]]

CHECKS: Tuple[Check, ...] = (
    host.place,
    host.mindformers_mode,
    software.python,
    software.packages,
    software.imports,
    software.pythonpath,
    software.work_folder,
    software.libgomp,
    hardware.chip_family,
    hardware.health,
    hardware.hbm,
    hardware.nodes,
    hardware.links,
    hardware.software,
    host.rank_table,
    host.disk,
    host.output_folder,
    host.memory,
    host.processors,
    host.open_files,
    host.lease,
    host.secrets,
)


def diagnose(context: Optional[Context] = None, checks: Sequence[Check] = CHECKS) -> Report:
    """Run every check and number the findings. A check that breaks is a FAIL of its own; the others still run."""
    context = context or Context()
    findings: List[Finding] = []
    with Progress("doctor", total=len(checks), unit="steps") as bar:
        for check in checks:
            try:
                findings += list(check(context))
            except Exception as error:  # a broken check must not hide the others
                name = check.__name__.replace("_", " ")
                findings.append(Finding(name, FAIL, f"the check itself broke: {type(error).__name__}: {error}"))
            bar.advance()
    place = context.place
    return Report(numbered(findings), place.kind, place.reason, context.profile.name, context.profile.device_target)
