"""Which checkpoint of a run is meant: one step, the same of every rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from qwenlib.errors import Refused
from qwenlib.weights.ckpt_read import read_table, value
from qwenlib.weights.tensors import Tensor

STEPS = ("step_num", "global_step")
"""Counters in a training checkpoint: MindFormers' own, then the optimizer's."""


def step_in(table: Dict[str, Tensor]) -> Optional[int]:
    """The step that a checkpoint was saved after; None: a file of weights only does not say."""
    for name in STEPS:
        if name in table:
            return int(value(table[name]).reshape(-1)[0])
    return None


def choose(folders: Dict[int, Path], step: Optional[int] = None) -> Dict[int, Path]:
    """One .ckpt file of each rank's folder: those of ``step``, or of the latest step that every rank has.

    Without ``step`` the names tell (``…-EPOCH_STEP.ckpt``; other names are one step, of which the last written counts),
    so that ranks of a training that was killed while it saved are not mixed.

    Raises:
        Refused: a rank has no checkpoint, not that step, or none in common with the others.
    """
    files = {rank: _files(folder) for rank, folder in folders.items()}
    if step is not None:
        return {rank: _of_step(folders[rank], found, step) for rank, found in files.items()}
    by_name = {rank: {_named(path.name): path for path in found} for rank, found in files.items()}
    common = set.intersection(*(set(found) for found in by_name.values()))
    if not common:
        told = "; ".join(f"{folders[rank]}: {', '.join(path.name for path in found)}" for rank, found in files.items())
        raise Refused(f"the ranks have no step in common ({told}). Remove what is not whole, or name one rank's file.")
    latest = max(common)
    return {rank: found[latest] for rank, found in by_name.items()}


def _of_step(folder: Path, files: List[Path], step: int) -> Path:
    steps = {path: step_in(read_table(path)) for path in files}
    found = [path for path in files if steps[path] == step]
    if not found:
        known = ", ".join(str(number) for number in sorted({item for item in steps.values() if item is not None}))
        raise Refused(f"{folder} holds no checkpoint of step {step}; its files are of step {known or 'unknown'}.")
    return found[-1]


def _files(folder: Path) -> List[Path]:
    """The checkpoints of a rank folder, the last written last.

    Raises:
        Refused: it holds none.
    """
    found = [item for item in folder.glob("*.ckpt") if not item.name.startswith(".")]
    if not found:
        raise Refused(f"{folder} holds no .ckpt file.")
    return sorted(found, key=lambda item: (item.stat().st_mtime_ns, item.name))


def _named(name: str) -> Tuple[int, int]:
    match = re.search(r"-(\d+)_(\d+)\.ckpt$", name)
    return (int(match.group(1)), int(match.group(2))) if match else (-1, -1)
