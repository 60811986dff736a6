"""The checkpoint that a training starts from, and the memory and disk that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator

from qwenlib.doctor.needs import GIB
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN, Finding
from qwenlib.files import existing, free_bytes
from qwenlib.preflight.report import Inputs
from qwenlib.profile import Profile, Task


def cut_before(task: Task, given: Inputs) -> bool:
    """The checkpoint is a folder of ``qwenlib weights slice``: nothing is sliced when the training starts."""
    from qwenlib.weights import fit

    return given.load_checkpoint is not None and task.parallel.ranks > 1 and fit.is_sliced(given.load_checkpoint)


def slices_at_start(task: Task, given: Inputs) -> bool:
    return task.parallel.model_parallel * task.parallel.pipeline_stage > 1 and not cut_before(task, given)


def checkpoint(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib.weights import fit

    for key, value in (given.sizes or {}).items():
        if hasattr(profile.model, key) and getattr(profile.model, key) != value:
            text = f"model.{key} is {getattr(profile.model, key)}, that of the weights is {value}"
            yield Finding("weights", FAIL, text)
    if given.load_checkpoint is None:
        yield Finding("checkpoint", SKIP, "no checkpoint is given yet (02_weights makes it)")
        return
    path, plan = Path(given.load_checkpoint), task.parallel
    if cut_before(task, given):
        yield _slices(profile, task, path)
        return
    fit.refuse_cut(path)
    ranks = _rank_folders(path)
    crowded = [name for name, count in ranks.items() if count != 1]
    if crowded:
        text = f"{path}: {', '.join(crowded)} must hold exactly one .ckpt each (MindFormers would mix or guess)"
        yield Finding("checkpoint", FAIL, text)
        return
    if len(ranks) > 1 and set(ranks) != {f"rank_{number}" for number in range(plan.ranks)}:
        text = (
            f"{path} is sliced for {len(ranks)} ranks, the plan has {plan.ranks}: merge it first, or give a whole one"
        )
        yield Finding("checkpoint", FAIL, text)
    elif len(ranks) > 1:
        text = f"{path} is sliced for {len(ranks)} ranks, as many as the plan has; the plan it was cut by is not in it"
        yield Finding("checkpoint", WARN, f"{text}, and auto_trans_ckpt would cut it again: give the whole one")
    elif plan.model_parallel * plan.pipeline_stage > 1 and path.is_file():
        text = f"{path} is a file; to be sliced it must lie as model_dir/rank_0/x.ckpt, and model_dir be given"
        yield Finding("checkpoint", FAIL, text)
    else:
        yield _whole(profile, path)


def _slices(profile: Profile, task: Task, path: Path) -> Finding:
    from qwenlib.weights import fit

    shards = profile.device_target != "CPU"
    problems = fit.misfits(path, profile.model, task.parallel, shards, adapter=task.adapter)
    files = fit.rank_files(path)
    if problems or not files:
        told = "; ".join(problems) or "it holds no rank_N"
        return Finding("checkpoint", FAIL, f"{path} holds slices: {told}. Cut anew: qwenlib weights slice")
    size = sum(held[0].stat().st_size for held in files.values())
    text = f"{path}: slices of this plan for {len(files)} of {task.parallel.ranks} ranks, {size / GIB:.2f} GiB"
    some = "; the other servers need theirs" if len(files) < task.parallel.ranks else ""
    return Finding("checkpoint", OK, f"{text}; auto_trans_ckpt is off{some}")


def _whole(profile: Profile, path: Path) -> Finding:
    from qwenlib.weights import place
    from qwenlib.weights.names import count

    file = place.locate(path)
    size, parameters = file.stat().st_size, count(profile.model)["parameters"]
    if not any(width * parameters <= size <= 1.05 * width * parameters + 2**20 for width in (2, 4)):
        text = f"{file} has {size:,} bytes; {parameters:,} parameters take {2 * parameters:,} or {4 * parameters:,}"
        return Finding("checkpoint", FAIL, f"{text}: it is of another model, or not whole")
    return Finding("checkpoint", OK, f"{file}: whole, {size / GIB:.2f} GiB")


def _rank_folders(path: Path) -> Dict[str, int]:
    """``{"rank_0": number of .ckpt files}``; {} for a file or a folder without rank folders."""
    found = sorted(path.glob("rank_*")) if path.is_dir() else []
    return {item.name: len(list(item.glob("*.ckpt"))) for item in found if item.is_dir()}


def memory(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib.estimate.memory import limit_bytes, per_card
    from qwenlib.weights import fit, place

    if profile.device_target == "Ascend":
        peak, limit = max(stage.total for stage in per_card(profile, _name(profile, task))), limit_bytes(profile)
        text = f"about {peak / GIB:.1f} of {limit / GIB:.0f} GiB a card (qwenlib config estimate tells the parts)"
        yield Finding("device memory", OK if peak <= limit else WARN, text)
    if given.load_checkpoint is None:
        return
    ranks = min(task.parallel.ranks, 8)
    sliced = slices_at_start(task, given)
    if cut_before(task, given):
        sizes = [path.stat().st_size for held in fit.rank_files(given.load_checkpoint).values() for path in held]
        size = max(sizes, default=0)
    else:
        size = place.locate(given.load_checkpoint).stat().st_size
    # Sliced: rank 0 reads the whole file and writes every slice, then each loads its own.
    need = 2 * size if sliced else ranks * size
    free = given.available_memory if given.available_memory is not None else _available()
    how = "rank 0 slices it" if sliced else f"{ranks} rank(s) each load it whole"
    what = f"the checkpoint of {size / GIB:.2f} GiB, {how}"
    if cut_before(task, given):
        what = f"slices of up to {size / GIB:.2f} GiB, one for each of {ranks} ranks"
    text = f"{what}: {need / GIB:.1f} of {free / GIB:.1f} GiB that are free"
    yield Finding("host memory", OK if need <= free else FAIL, text)


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _name(profile: Profile, task: Task) -> str:
    return next(name for name in profile.tasks() if profile.task(name) is task)


def disk(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib.estimate.slices import slices

    if given.run_dir is None:
        yield Finding("disk", SKIP, "no run directory is given")
        return
    every = slices(profile.model, task.parallel, task.adapter)
    width = 2 if profile.model.param_init_type == "float16" else 4
    whole, learned = width * sum(i.size for i in every), sum(i.size for i in every if i.trainable)
    # Data-parallel ranks without sharding each write all of it; keep_checkpoint_max to resume from, one of weights.
    copies = task.parallel.ranks if profile.device_target == "CPU" else 1
    need = copies * (task.keep_checkpoint_max * (whole + 8 * learned) + whole)
    free = free_bytes(given.run_dir)
    text = f"checkpoints take {need / GIB:.2f} GiB below {existing(given.run_dir)}, {free / GIB:.1f} GiB are free"
    yield Finding("disk", OK if need <= free else FAIL, text)
