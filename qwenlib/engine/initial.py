"""The weights that a training starts from: one whole checkpoint, or slices that were cut for its plan beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.profile import Profile, Task
from qwenlib.weights import fit, place


@dataclass(frozen=True)
class Initial:
    """What is handed to MindFormers."""

    path: Path
    """Absolute: MindFormers links it."""
    files: Tuple[Path, ...]
    """The whole checkpoint, or the slices of this host."""
    in_slices: bool
    """Each rank loads its own file; auto_trans_ckpt has nothing left to do."""

    @property
    def bytes(self) -> int:
        """Of all ``files``."""
        return sum(file.stat().st_size for file in self.files)


def find(profile: Profile, task: Task, load_checkpoint: Union[str, Path], ranks: Iterable[int]) -> Initial:
    """What ``load_checkpoint`` is to the ``ranks`` of this host.

    Raises:
        Refused: there is no checkpoint, or slices that are of another model or plan, or not of all ``ranks``.
    """
    path, plan = Path(load_checkpoint).expanduser().absolute(), task.parallel
    on_cpu = profile.device_target == "CPU"
    if plan.ranks > 1 and fit.is_sliced(path):
        needed = list(ranks)
        problems = fit.misfits(path, profile.model, plan, not on_cpu, needed, task.adapter)
        if not on_cpu and not task.sink_mode:
            problems.append("MindFormers loads slices in sink mode only: sink_mode must be true")
        if problems:
            raise Refused(f"{path} holds slices that this training cannot start from: {'; '.join(problems)}.")
        files = fit.rank_files(path)
        return Initial(path, tuple(files[rank][0] for rank in needed), True)
    fit.refuse_cut(path)
    file = place.locate(load_checkpoint).absolute()
    # Data-parallel ranks each load the whole file; only a folder can be sliced.
    whole = path if plan.model_parallel * plan.pipeline_stage > 1 else file
    return Initial(whole, (file,), False)
