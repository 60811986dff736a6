"""What every check may look at. The file system root and the environment are injectable."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional, Union

from qwenlib import profile as profiles
from qwenlib.ascend.npu_smi import NpuInfo, npu_info
from qwenlib.ascend.tools import TIMEOUT
from qwenlib.modelarts import Place, where_am_i
from qwenlib.profile import Profile
from qwenlib.ranktable.layout import planned_ranks


@dataclass
class Context:
    """The machine, the profile and the folders in question."""

    profile: Profile = field(default_factory=lambda: profiles.load("smoke"))
    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    output: Path = field(default_factory=Path.cwd)
    """Where the run will write: its disk is measured."""
    work: Path = field(default_factory=Path.cwd)
    """The folder notebooks are started in."""
    rank_table: str = ""
    timeout: float = TIMEOUT
    probe_imports: bool = True
    run_seconds: Optional[float] = None
    """Estimated run time, for the lease."""
    _npu: Optional[NpuInfo] = None

    @property
    def ascend(self) -> bool:
        """Whether the profile wants Ascend cards."""
        return self.profile.device_target == "Ascend"

    @property
    def place(self) -> Place:
        """Where this is."""
        return where_am_i(self.environ, self.root)

    @property
    def npu(self) -> NpuInfo:
        """``npu-smi info``, asked once."""
        if self._npu is None:
            self._npu = npu_info(self.root, self.environ, self.timeout)
        return self._npu

    @property
    def ranks(self) -> int:
        """The most ranks that a task of the profile starts, on all servers."""
        return planned_ranks(self.profile)

    @property
    def local_ranks(self) -> int:
        """The most ranks on one server."""
        return min(self.ranks, 8)

    def read(self, path: Union[str, Path]) -> str:
        """The text of a file below the root, "" when there is none."""
        return _read(str(Path(self.root) / str(path).lstrip("/")))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
