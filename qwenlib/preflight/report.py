"""What a preflight is given, and what it tells."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Union

from qwenlib.doctor.report import Findings
from qwenlib.errors import Refused


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
class Report(Findings):
    """What was found of a training, or of answering."""

    profile: str
    task: str

    def text(self) -> str:
        """One line a finding."""
        return "\n".join(item.text() for item in self.findings)

    def stop(self) -> None:
        """End here when something failed.

        Raises:
            Refused: naming every FAIL.
        """
        if self.fails:
            told = [f"{item.name}: {item.reason.rstrip('.')}" for item in self.fails]
            raise Refused.listing(f"profile {self.profile}, {self.task}: {len(self.fails)} problem(s)", told)
