"""What a rank is told to do: one JSON file, read by every rank of the job."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json, write_json

TASKS = ("finetune", "score", "logits", "serve")


@dataclass(frozen=True)
class Job:
    """A piece of work for ``python -m qwenlib.engine.rank JOB.json``."""

    task: str
    """One of :data:`TASKS`."""
    device_target: str
    config: Dict[str, Any]
    """The MindFormers configuration (see :mod:`qwenlib.engine.render`)."""
    load_checkpoint: str
    """A .ckpt file, or a model_dir that MindFormers slices itself."""
    result: str
    """Where rank 0 writes its result, JSON (or .npz for ``logits``)."""
    settings: Dict[str, Any] = field(default_factory=dict)
    """What the task needs besides."""

    def save(self, path: Union[str, Path]) -> Path:
        """Write the job, atomically."""
        write_json(path, dataclasses.asdict(self))
        return Path(path)


def load(path: Union[str, Path]) -> Job:
    """Read a job file.

    Raises:
        Refused: it is no job, or its task is unknown.
    """
    tree = read_json(path)
    names: List[str] = [item.name for item in dataclasses.fields(Job)]
    if not isinstance(tree, dict) or set(tree) != set(names):
        raise Refused(f"{path} is no job file: it must hold {', '.join(names)}.")
    if tree["task"] not in TASKS:
        raise Refused(f"{path}: task {tree['task']!r} is none of {', '.join(TASKS)}.")
    return Job(**tree)
