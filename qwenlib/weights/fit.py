"""Whether a folder of rank slices is what a training needs: the same model, cut by the same plan, ranks that are whole.

MindSpore would load a slice of the right shape from the wrong place without a word.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Union

from qwenlib.errors import Refused
from qwenlib.profile import Adapter, Model, Parallel
from qwenlib.weights.layout import Planned
from qwenlib.weights.names import LORA_A, LORA_B, full_shapes
from qwenlib.weights.slice_plan import make_plan
from qwenlib.weights.source import SLICE_META, rank_folders, read_slice_meta


def is_sliced(path: Union[str, Path]) -> bool:
    """True for a folder that :func:`qwenlib.weights.slicing.slice_checkpoint` wrote."""
    return (Path(path).expanduser() / SLICE_META).is_file()


def rank_files(folder: Union[str, Path]) -> Dict[int, List[Path]]:
    """``{rank: its .ckpt files}`` of a folder of slices."""
    return {rank: sorted(item.glob("*.ckpt")) for rank, item in rank_folders(Path(folder).expanduser()).items()}


def misfits(
    folder: Union[str, Path],
    model: Model,
    parallel: Parallel,
    optimizer_parallel: bool = True,
    ranks: Optional[Iterable[int]] = None,
    adapter: Optional[Adapter] = None,
) -> List[str]:
    """Why a training of ``model`` by ``parallel`` cannot begin with the slices in ``folder``; []: it can.

    ``ranks``: those that are needed here; left out, those that are there. ``adapter``: the one that is trained;
    the slices may hold it already. What counts is which rows and columns each rank holds, whatever plan or strategy
    file they were cut by.

    Raises:
        Refused: slice.json is missing or damaged, or the sizes cannot be cut by ``parallel``.
    """
    folder = Path(folder).expanduser()
    plan, shapes = read_slice_meta(folder / SLICE_META)
    known = full_shapes(model, adapter if any(name.endswith((LORA_A, LORA_B)) for name in shapes) else None)
    wanted = [Planned(name, model.param_init_type, shape) for name, shape in known.items()]
    odd = [item.name for item in wanted if shapes.get(item.name) != item.shape]
    odd += sorted(set(shapes) - {item.name for item in wanted})
    if odd:
        return [f"it was cut from another model ({_some(odd)})"]
    asked = make_plan(wanted, parallel, optimizer_parallel)
    if asked.ranks != plan.ranks:
        return [f"it was cut for {plan.ranks} ranks, the plan has {asked.ranks}"]
    odd = [
        item.name
        for item in wanted
        if any(
            plan.window(item.name, item.shape, rank) != asked.window(item.name, item.shape, rank)
            for rank in range(plan.ranks)
        )
    ]
    if odd:
        return [f"it was cut by another plan ({_some(odd)} lie otherwise)"]
    files = rank_files(folder)
    found = []
    for rank in files if ranks is None else ranks:
        held = files.get(rank, [])
        if len(held) != 1:
            found.append(f"rank_{rank} holds {len(held)} .ckpt files where one is needed")
    return found


def refuse_cut(path: Union[str, Path]) -> None:
    """Refuse a folder of slices where a whole checkpoint is needed; replicas of the whole are none.

    Raises:
        Refused: a parameter is cut, or the layers are dealt to several stages.
    """
    if not is_sliced(path):
        return
    plan, shapes = read_slice_meta(Path(path).expanduser() / SLICE_META)
    if len(plan.stages) == 1 and all(
        cut.parts(0) * cut.parts(1) * cut.shards == 1 for name, cut in plan.stages[0].items() if name in shapes
    ):
        return
    raise Refused(
        f"{path} holds the slices of {plan.ranks} ranks, and a whole checkpoint is needed here. Merge them first: "
        f"qwenlib weights merge --rank_dir {shlex.quote(str(path))} --mindspore_ckpt_path whole.ckpt"
    )


def _some(names: List[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
