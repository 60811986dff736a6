"""What a preflight is given, and what it tells."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from qwenlib.doctor.report import FAIL, Finding
from qwenlib.errors import Refused

GIB = 2**30


@dataclass
class Inputs:
    """What a training is to be started with; what is not known yet is None or ""."""

    load_checkpoint: Optional[Union[str, Path]] = None
    train_dataset: Optional[Union[str, Path]] = None
    data_config: Optional[Dict[str, Any]] = None
    """``config`` of 03_data's meta.json; None: what lies beside ``train_dataset``."""
    sizes: Optional[Dict[str, Any]] = None
    """``sizes`` of 02_weights's meta.json."""
    rank_table: Optional[Union[str, Path]] = None
    run_dir: Optional[Union[str, Path]] = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    root: Union[str, Path] = "/"
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None
    available_memory: Optional[int] = None
    """Bytes; None: asked from the system."""


@dataclass(frozen=True)
class Report:
    """All findings, numbered from 1."""

    profile: str
    task: str
    findings: Tuple[Finding, ...]

    @property
    def fails(self) -> List[Finding]:
        """What stops the training."""
        return [item for item in self.findings if item.state == FAIL]

    def text(self) -> str:
        """One line a finding."""
        return "\n".join(item.text() for item in self.findings)

    def frame(self) -> Any:
        """A pandas table: number, state, check, reason."""
        import pandas

        rows = [(item.number, item.state, item.name, item.reason) for item in self.findings]
        return pandas.DataFrame(rows, columns=["number", "state", "check", "reason"]).set_index("number")

    def stop(self) -> None:
        """End here when something failed.

        Raises:
            Refused: naming every FAIL.
        """
        if self.fails:
            told = [f"{item.name}: {item.reason.rstrip('.')}" for item in self.fails]
            raise Refused.listing(f"profile {self.profile}, {self.task}: {len(self.fails)} problem(s)", told)


def numbered(profile: str, task: str, findings: Iterable[Finding]) -> Report:
    """The report of ``findings``, in their order."""
    found = tuple(Finding(item.name, item.state, item.reason, number) for number, item in enumerate(findings, 1))
    return Report(profile, task, found)
