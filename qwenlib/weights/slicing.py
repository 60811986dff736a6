"""A full model -> rank slices, and back; offline, without ever holding the model."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json, require_space, write_json
from qwenlib.profile import Adapter, Model, Parallel, Profile
from qwenlib.weights import pump
from qwenlib.weights.convert import meta_path, refuse_overflow, require_dtype
from qwenlib.weights.fit import rank_files
from qwenlib.weights.layout import Planned, checkpoint_layout
from qwenlib.weights.names import full_shapes
from qwenlib.weights.output import written
from qwenlib.weights.place import describe, target
from qwenlib.weights.slice_plan import Plan, base_name, make_plan, plan_from_strategy, wanted_ranks
from qwenlib.weights.source import SLICE_META, Source, open_source, planned, rank_folders
from qwenlib.weights.steps import choose
from qwenlib.weights.tensors import Tensor, Window, whole


def slice_checkpoint(
    source: Union[str, Path, Source],
    output_dir: Union[str, Path],
    parallel: Parallel,
    *,
    optimizer_parallel: bool = True,
    ranks: str = "",
    dtype: str = "",
    clamp: bool = False,
    strategy: Optional[Union[str, Path]] = None,
    prefix: str = "checkpoint_",
    network_dtype: str = "",
) -> Dict[str, Any]:
    """Cut a Hugging Face folder or a full checkpoint into ``output_dir/rank_N/<prefix>N.ckpt``.

    The offline replacement of MindFormers' ``auto_trans_ckpt`` (``mindspore.transform_checkpoints``): a training whose
    ``load_checkpoint`` is ``output_dir`` finds slice.json in it, sees that it was cut by its own plan, and lets each
    rank load its slice. ``ranks``: only these ("0-7" on the first server); others of the same source and plan stay.
    ``dtype``: empty keeps the checkpoint's number types and makes float16 of a Hugging Face folder. ``strategy``: a
    strategy file that MindSpore wrote; it then rules instead of ``parallel``. ``network_dtype``: the network's own
    (param_init_type), which decides what is large enough for the optimizer's cut; empty: as what is written.

    Returns:
        ``{"output_dir", "ranks", "bytes", "plan", "tensors", "clamped", "nonfinite", "seconds"}``.

    Raises:
        Refused: sizes that cannot be cut so, ranks that the plan does not have, an older checkpoint in a rank
            folder, too little disk, values that do not fit.
    """
    begun = time.monotonic()
    if dtype:
        require_dtype(dtype)
    held = open_source(source)
    wanted = planned(held.tensors, dtype or ("float16" if held.form == "hf" else ""))
    if strategy:
        plan = plan_from_strategy(strategy)
    else:
        network = planned(held.tensors, network_dtype) if network_dtype else wanted
        plan = make_plan(network, parallel, optimizer_parallel)
    chosen = wanted_ranks(ranks, plan.ranks)
    windows = {rank: _windows(plan, wanted, rank) for rank in chosen}
    output_dir = Path(output_dir).expanduser()
    if output_dir.resolve() == held.path.resolve() or (output_dir / "rank_0").resolve() == held.path.parent.resolve():
        raise Refused(f"{output_dir} holds the checkpoint that is to be cut. Choose another folder.")
    if output_dir.exists() and not output_dir.is_dir():
        raise Refused(f"{output_dir} is a file; give the name of a folder for the ranks.")
    paths = {rank: target(output_dir / f"rank_{rank}" / f"{prefix}{rank}.ckpt") for rank in chosen}
    identity = _identity(held, plan, wanted, prefix, clamp)
    goes_on = _goes_on(output_dir, identity, chosen)
    layouts = {
        paths[rank]: checkpoint_layout(
            [
                Planned(item.name, item.kind, _shape(item.shape, windows[rank][item.name]))
                for item in wanted
                if item.name in windows[rank]
            ]
        )
        for rank in chosen
    }
    require_space(output_dir, sum(layout.size for layout in layouts.values()), f"slicing {held.path}")
    if not goes_on:
        (output_dir / SLICE_META).unlink(missing_ok=True)
    with written(layouts) as files:
        moves = []
        for item in wanted:
            targets = [
                pump.Target(file, file.layout.places[item.name], windows[rank][item.name])
                for rank, file in zip(chosen, files)
                if item.name in windows[rank]
            ]
            if targets:
                moves.append(pump.Move(held.tensors[item.name], item.kind, targets))
        found = pump.run(moves, "slice", clamp=clamp, digest=len(chosen) == plan.ranks and held.form != "ranks")
        refuse_overflow(found, held.path, dtype or "float16", clamp)
    if not goes_on:
        told = {
            "parallel": dataclasses.asdict(parallel),
            "optimizer_parallel": optimizer_parallel,
            "strategy": str(strategy) if strategy else None,
            "clamped": found.overflow,
            "nonfinite": found.nonfinite,
            "sources": describe(found.sha256),
        }
        write_json(output_dir / SLICE_META, {**told, **identity})
    return {
        "output_dir": output_dir,
        "ranks": chosen,
        "of": plan.ranks,
        "bytes": sum(layout.size for layout in layouts.values()),
        "tensors": len(wanted),
        "clamped": found.overflow,
        "nonfinite": found.nonfinite,
        "seconds": round(time.monotonic() - begun, 2),
    }


def slice_for_task(
    profile: Profile,
    task_name: str,
    source: Union[str, Path, Source],
    output_dir: Union[str, Path],
    *,
    optimizer_parallel: Optional[bool] = None,
    **options: Any,
) -> Dict[str, Any]:
    """:func:`slice_checkpoint` as the training of ``task_name`` will hold the model.

    ``optimizer_parallel``: None: as the profile trains, which is on, but for the CPU.
    """
    return slice_checkpoint(
        source,
        output_dir,
        profile.task(task_name).parallel,
        optimizer_parallel=profile.device_target != "CPU" if optimizer_parallel is None else optimizer_parallel,
        network_dtype=profile.model.param_init_type,
        **options,
    )


def _identity(held: Source, plan: Plan, wanted: List[Planned], prefix: str, clamp: bool) -> Dict[str, Any]:
    """What must agree between slices that lie in one folder: where they come from, and how they are cut."""
    files = sorted({part.path for tensor in held.tensors.values() for part in tensor.parts})
    return {
        "of": plan.ranks,
        "prefix": prefix,
        "clamp": clamp,
        "source": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "shapes": {item.name: list(item.shape) for item in wanted},
        "kinds": {item.name: item.kind for item in wanted},
        "stages": [
            {
                name: [list(cut.dev_matrix), list(cut.tensor_map), cut.opt_step, cut.opt_size]
                for name, cut in stage.items()
            }
            for stage in plan.stages
        ],
    }


def _goes_on(output_dir: Path, identity: Dict[str, Any], chosen: List[int]) -> bool:
    """True when the folder already holds other ranks of the same source, cut by the same plan.

    Raises:
        Refused: it holds ranks that are not.
    """
    others = [rank for rank, files in rank_files(output_dir).items() if files and rank not in chosen]
    if not others:
        return False
    meta = output_dir / SLICE_META
    held = read_json(meta) if meta.is_file() else None
    if isinstance(held, dict) and all(held.get(key) == value for key, value in identity.items()):
        return True
    names = ", ".join(f"rank_{rank}" for rank in others[:8])
    raise Refused(
        f"{output_dir} holds {names}{' and more' if len(others) > 8 else ''}, which were not cut from the same "
        "checkpoint by the same plan. Remove them, or choose another folder."
    )


def _windows(plan: Plan, wanted: List[Planned], rank: int) -> Dict[str, Window]:
    found = {}
    for item in wanted:
        window = plan.window(item.name, item.shape, rank)
        if window is not None:
            found[item.name] = window
    return found


def _shape(shape: Tuple[int, ...], window: Window) -> Tuple[int, ...]:
    if window == whole(shape):
        return shape
    return (window.rows,) if len(shape) == 1 else (window.rows, window.columns)


def merge(
    rank_dir: Union[str, Path],
    mindspore_ckpt_path: Union[str, Path],
    *,
    parallel: Optional[Parallel] = None,
    model: Optional[Model] = None,
    adapter: Optional[Adapter] = None,
    optimizer_parallel: bool = True,
    strategy: Optional[Union[str, Path]] = None,
    weights_only: bool = True,
    step: Optional[int] = None,
) -> Dict[str, Any]:
    """The way back: ``rank_dir/rank_N/*.ckpt`` of a finished run -> one full checkpoint.

    What was cut by :func:`slice_checkpoint` needs no more than the folder; for MindFormers' own files give ``parallel``
    (or ``strategy``) and ``model``. Of several files in a rank folder those of ``step`` are taken; left out, of the
    latest step that all ranks have. ``weights_only`` leaves out optimizer states and counters.

    Returns:
        ``{"checkpoint", "tensors", "bytes", "seconds"}``.

    Raises:
        Refused: ranks or slices are missing, or do not fit the plan; all of them told.
    """
    begun = time.monotonic()
    held = open_ranks(rank_dir, parallel, model, adapter, optimizer_parallel, strategy, step)
    tensors = held.tensors
    if weights_only:
        tensors = {name: item for name, item in tensors.items() if is_weight(name)}
    out = target(mindspore_ckpt_path)
    copy(tensors, out, "merge")
    return {
        "checkpoint": out,
        "tensors": len(tensors),
        "bytes": out.stat().st_size,
        "seconds": round(time.monotonic() - begun, 2),
    }


def is_weight(name: str) -> bool:
    """A parameter of the network, neither an optimizer state nor a counter of the training."""
    return base_name(name) == name and name.startswith(("model.", "lm_head."))


def copy(tensors: Dict[str, Tensor], out: Path, what: str, dtype: str = "") -> pump.Outcome:
    """Write ``tensors`` as one MindSpore checkpoint."""
    wanted = planned(tensors, dtype)
    layout = checkpoint_layout(wanted)
    require_space(out, layout.size, f"writing {out}")
    with written({out: layout}) as (file,):
        moves = [
            pump.Move(tensors[item.name], item.kind, [pump.Target(file, layout.places[item.name], whole(item.shape))])
            for item in wanted
        ]
        found = pump.run(moves, what)
        meta_path(out).unlink(missing_ok=True)
        return found


def open_ranks(
    rank_dir: Union[str, Path],
    parallel: Optional[Parallel] = None,
    model: Optional[Model] = None,
    adapter: Optional[Adapter] = None,
    optimizer_parallel: bool = True,
    strategy: Optional[Union[str, Path]] = None,
    step: Optional[int] = None,
) -> Source:
    """A folder of rank slices as a source; without ``parallel`` and ``strategy`` its slice.json rules.

    ``step``: which checkpoint of each rank; left out, the latest that all ranks have.
    """
    from qwenlib.weights.ckpt_read import read_table

    rank_dir = Path(rank_dir).expanduser()
    folders = rank_folders(rank_dir)
    if not folders:
        raise Refused(f"{rank_dir} holds no rank_N folders.")
    if parallel is None and strategy is None:
        return open_source(rank_dir, step=step)
    if model is None:
        raise Refused("the sizes of the model are needed to merge: give --profile or --torch_ckpt_dir.")
    names: Dict[str, Any] = {}
    for file in choose(folders, step).values():
        names.update(read_table(file))
    shapes = full_shapes(model, adapter)
    wanted = [Planned(name, item.kind, shapes.get(base_name(name), item.shape)) for name, item in names.items()]
    plan = plan_from_strategy(strategy) if strategy else make_plan(wanted, parallel or Parallel(), optimizer_parallel)
    return open_source(rank_dir, plan, {item.name: item.shape for item in wanted}, step)
