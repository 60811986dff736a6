"""Anything that holds a model: a Hugging Face folder, a .ckpt file, a model_dir, or a folder of rank slices.

All are seen as tensors under MindSpore's names; nothing is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json
from qwenlib.profile import Model
from qwenlib.weights.ckpt_read import read_table
from qwenlib.weights.convert import sources
from qwenlib.weights.gather import gather
from qwenlib.weights.hf import read_folder
from qwenlib.weights.kinds import FLOATS
from qwenlib.weights.layout import Planned
from qwenlib.weights.names import entries
from qwenlib.weights.place import locate
from qwenlib.weights.slice_plan import Plan
from qwenlib.weights.steps import choose
from qwenlib.weights.strategy import Cut
from qwenlib.weights.tensors import Tensor

SLICE_META = "slice.json"


@dataclass(frozen=True)
class Source:
    """A model in files."""

    path: Path
    form: str
    """``hf``, ``ckpt`` or ``ranks``."""
    tensors: Dict[str, Tensor] = field(repr=False)
    sizes: Optional[Dict[str, Any]] = None
    """Fields of :class:`qwenlib.profile.Model`, where a config.json settles them."""


def open_source(
    path: Union[str, Path, Source],
    plan: Optional[Plan] = None,
    shapes: Optional[Dict[str, Any]] = None,
    step: Optional[int] = None,
) -> Source:
    """Find out what ``path`` is and list its tensors.

    ``plan`` and ``shapes`` (full shapes by name) say how rank slices fit together; left out, ``slice.json`` of
    :func:`qwenlib.weights.slicing.slice_checkpoint` says so. ``step``: which checkpoint of a folder that holds several;
    left out, of ranks the latest that all have.

    Raises:
        Refused: nothing there, or nothing that is known; or several ranks and no plan.
    """
    if isinstance(path, Source):
        return path
    path = Path(path).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        folder = read_folder(path)
        wanted = entries(Model(**folder.sizes))
        return Source(path, "hf", {tensor.name: tensor for tensor in sources(folder, wanted)}, folder.sizes)
    ranks = rank_folders(path)
    meta = path / SLICE_META
    if len(ranks) > 1 or (ranks and plan is not None):
        if plan is None and meta.is_file():
            plan, shapes = read_slice_meta(meta)
        if plan is None or shapes is None:
            raise Refused(
                f"{path} holds {len(ranks)} ranks and no {SLICE_META}: say how they were cut (--profile, --task), "
                "or name one rank's .ckpt file."
            )
        return Source(path, "ranks", gather(path, choose(ranks, step), plan, shapes))
    file = choose({0: ranks.get(0, path)}, step)[0] if step is not None and path.is_dir() else locate(path)
    return Source(file, "ckpt", read_table(file))


def rank_folders(path: Path) -> Dict[int, Path]:
    """``{rank: folder}`` of the ``rank_N`` folders below ``path``."""
    found = {}
    if path.is_dir():
        for item in path.iterdir():
            match = re.fullmatch(r"rank_(\d+)", item.name)
            if match and item.is_dir():
                found[int(match.group(1))] = item
    return dict(sorted(found.items()))


def read_slice_meta(meta: Path) -> Any:
    """``(plan, full shapes)`` as :func:`slice_checkpoint` left them."""
    held = read_json(meta)
    try:
        stages = tuple(
            {name: Cut(tuple(dev), tuple(axes), step, size) for name, (dev, axes, step, size) in stage.items()}
            for stage in held["stages"]
        )
        devices = held["of"] // len(stages)
        return Plan(stages, devices), {name: tuple(shape) for name, shape in held["shapes"].items()}
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise Refused(f"{meta} was not written by qwenlib weights slice ({error}).") from None


def planned(tensors: Dict[str, Tensor], dtype: str = "") -> List[Planned]:
    """What is to be written of ``tensors``: floats as ``dtype`` (empty: as they are), the rest as it is."""
    return [
        Planned(name, dtype if dtype and tensor.kind in FLOATS else tensor.kind, tensor.shape)
        for name, tensor in tensors.items()
    ]
