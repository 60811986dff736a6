"""The trainings that notebooks and commands ask for: render, launch ranks, watch, read the result.

This side runs in the caller's process and imports neither MindSpore nor MindFormers; the work itself happens in
rank processes (:mod:`qwenlib.engine.rank`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from qwenlib import launch
from qwenlib.engine import again, initial, placement, render, starting
from qwenlib.engine import resume as resuming
from qwenlib.engine.job import Job
from qwenlib.errors import Refused
from qwenlib.files import make_folder, read_json, require_space, write_text
from qwenlib.launch.client import WORKBOOK_MARK
from qwenlib.profile import Profile
from qwenlib.weights import place, read_folder

READY_SECONDS = 1800.0
"""Until every rank must have met the others; as long as HCCL itself waits."""
HANG_FACTOR = 20.0
"""A rank without a step for this many usual steps (and two minutes at least, on the CPU 15 s) is reported."""
CPU_HANG_SECONDS = 15.0
"""MindSpore's collectives on the CPU give up after 30 s; what hangs is to be named before."""
RESULT = "result.json"


def with_sizes(profile: Profile, sizes: Dict[str, Any]) -> Profile:
    """``profile`` with the network sizes that 02_weights read from config.json.

    Raises:
        Refused: sizes that are no fields of the model.
    """
    try:
        return replace(profile, model=replace(profile.model, **sizes))
    except TypeError as error:
        raise Refused(f"the sizes handed over by 02_weights do not fit: {error}.") from None


def model_files(
    profile: Profile,
    torch_ckpt_dir: Optional[Union[str, Path]] = None,
    vocab_file: Optional[Union[str, Path]] = None,
    merges_file: Optional[Union[str, Path]] = None,
) -> Tuple[Profile, Dict[str, Path]]:
    """The profile with the sizes of a Hugging Face folder, and the vocabulary files (the folder's unless given).

    Raises:
        Refused: neither the folder nor both files are given, or one of them is not there.
    """
    files = {"vocab_file": vocab_file, "merges_file": merges_file}
    if torch_ckpt_dir is not None:
        profile = with_sizes(profile, read_folder(torch_ckpt_dir).sizes)
        files["vocab_file"] = vocab_file or Path(torch_ckpt_dir) / "vocab.json"
        files["merges_file"] = merges_file or Path(torch_ckpt_dir) / "merges.txt"
    for name, path in files.items():
        if path is None:
            raise Refused("give --torch_ckpt_dir (the Hugging Face folder), or both --vocab_file and --merges_file.")
        if not Path(path).is_file():
            raise Refused(f"--{name}: there is no file {path}.")
    return profile, {name: Path(str(path)) for name, path in files.items()}


def token_ids(vocab_size: int) -> render.Tokens:
    """Ids of the control tokens: they follow the base vocabulary, <|endoftext|> first (Qwen1.5: 151643)."""
    return render.Tokens(vocab_size, vocab_size, vocab_size)


def base_vocabulary(vocab_file: Union[str, Path]) -> int:
    """Entries of vocab.json: the number of base tokens, and so the id of ``<|endoftext|>``."""
    return len(read_json(vocab_file))


def command(job_file: Path) -> List[str]:
    """The command line of a rank."""
    return [sys.executable, "-m", "qwenlib.engine.rank", str(job_file)]


def finetune(
    profile: Profile,
    task_name: str,
    *,
    load_checkpoint: Union[str, Path],
    train_dataset: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    run_dir: Union[str, Path],
    rank_table: Optional[Union[str, Path]] = None,
    port: int = 0,
    real_share: float = 1.0,
    resume: Union[str, Path] = resuming.NEVER,
    detach: bool = False,
    tensorboard: bool = False,
    **launching: Any,
) -> Dict[str, Any]:
    """Train ``task_name`` ("lora" or "finetune") in background ranks and wait, watching their logs.

    ``real_share``: the part of the data's tokens that is not padding, for the throughput without it; ``detach``: the
    ranks outlive this process (see :func:`qwenlib.launch.start`), and the same job, called again from anywhere on the
    host, takes up the training that goes on, or the result of the one that is done, rather than beginning anew;
    ``tensorboard``: also write event files; ``resume`` and ``launching``: see :func:`training_plan`.

    Returns:
        ``{"checkpoint", "run_dir", "steps", "trainable_parameters", "metrics"}``; ``metrics`` is the DataFrame of
        :func:`qwenlib.monitor.watch`, one row a step.

    Raises:
        Refused: something that is needed is missing or does not fit.
        WorkFailed: a rank failed; the message is that rank's own error.
    """
    from qwenlib import monitor

    if tensorboard:
        monitor.tensorboard.writer_class()
    job: Dict[str, Any] = {
        "load_checkpoint": load_checkpoint,
        "train_dataset": train_dataset,
        "vocab_file": vocab_file,
        "merges_file": merges_file,
        "run_dir": run_dir,
        "rank_table": rank_table,
        "port": port,
    }
    job.update(resume=resume, **launching)
    task, run = profile.task(task_name), None
    if detach and not os.environ.get(WORKBOOK_MARK):
        plan = training_plan(profile, task_name, **job, detach=True)
        run = again.find(plan, Path(run_dir) / RESULT)
        print(again.told(run or plan.folder), end="", flush=True)
    if run is None:
        run, plan = begin(profile, task_name, **job, detach=detach)
    with run:
        metrics = monitor.watch(
            run,
            seq_length=profile.data.seq_length,
            total_steps=starting.total_steps(task, train_dataset),
            title=f"{task_name} · {profile.name}",
            real_share=real_share,
            lead=plan.first_rank + plan.ranks - 1 if task.parallel.pipeline_stage > 1 else plan.first_rank,
            flops_per_token=monitor.flops_per_token(profile.model, profile.data.seq_length, task.adapter),
            peak_flops=monitor.peak_here() if profile.device_target == "Ascend" else None,
            tensorboard=tensorboard,
        )
    if plan.node:  # node 0 tells the result
        steps = int(metrics["step"].iloc[-1]) if len(metrics) else 0
        return {"checkpoint": None, "run_dir": Path(run_dir), "steps": steps, "metrics": metrics}
    return {**outcome(run_dir), "metrics": metrics}


def begin(
    profile: Profile,
    task_name: str,
    *,
    train_dataset: Union[str, Path],
    run_dir: Union[str, Path],
    resume: Union[str, Path] = resuming.NEVER,
    detach: bool = False,
    **job: Any,
) -> Tuple[launch.Run, launch.Plan]:
    """Start the training that :func:`finetune` watches, and return at once; arguments as there.

    Raises:
        Refused: something that is needed is missing or does not fit, or nothing is left to train.
        WorkFailed: the ranks could not be started.
    """
    run_dir = Path(run_dir).absolute()
    starting.refuse_in_use(run_dir, Path(job["load_checkpoint"]), resume)
    plan = training_plan(profile, task_name, train_dataset=train_dataset, run_dir=run_dir, resume=resume, **job)
    task = profile.task(task_name)
    weights = initial.find(profile, task, job["load_checkpoint"], plan.rank_ids).files
    return starting.start(plan, task, train_dataset, run_dir, resume, detach, weights), plan


def outcome(run_dir: Union[str, Path]) -> Dict[str, Any]:
    """What a finished training left: ``{"checkpoint", "run_dir", "steps", "trainable_parameters"}``.

    Raises:
        Refused: there is no result yet, or no checkpoint.
    """
    run_dir = Path(run_dir)
    result = read_json(run_dir / RESULT)
    return {"checkpoint": place.locate(run_dir / "output" / "checkpoint_network"), "run_dir": run_dir, **result}


def training_plan(
    profile: Profile,
    task_name: str,
    *,
    load_checkpoint: Union[str, Path],
    train_dataset: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    run_dir: Union[str, Path],
    rank_table: Optional[Union[str, Path]] = None,
    port: int = 0,
    resume: Union[str, Path] = resuming.NEVER,
    nodes: Sequence[str] = (),
    node_rank: Optional[int] = None,
    detach: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> launch.Plan:
    """Write job.json and the rendered YAML into ``run_dir`` and return the launch plan (nothing is started).

    While a training goes on there, nothing is written; for a ``dry_run`` not where one was before, either.

    Args:
        resume: ``never``; ``auto``: go on from the newest whole checkpoint of ``run_dir/output``, if there is one;
            or the folder of such checkpoints. Optimizer, step and learning rate go on, too.
        nodes, node_rank: several hosts on the CPU, see :func:`qwenlib.engine.placement.place`.
        detach: as for :func:`finetune`; then the files of the same job, done before, are left alone, too.
        settings: other fields of :class:`qwenlib.launch.Plan`: ``node_port``, ``ready_timeout``, ``max_restarts`` …

    Raises:
        Refused: no such task, no checkpoint or data, no rank table for several Ascend ranks, too little disk.
    """
    import yaml

    task = profile.task(task_name)
    ranks = task.parallel.ranks
    run_dir = Path(run_dir).absolute()
    dataset = Path(train_dataset).absolute()
    if not dataset.is_file():
        raise Refused(f"there is no training data {dataset}. Run 03_data, or qwenlib data build, first.")
    starting.check_data(profile, dataset, vocab_file, merges_file)
    where = placement.place(profile, task_name, rank_table, nodes, node_rank)
    mine = range(where.get("first_rank", 0), where.get("first_rank", 0) + where.get("ranks", ranks))
    begins = initial.find(profile, task, load_checkpoint, mine)
    source = begins.path
    saved = resuming.choose(resume, run_dir, mine)
    config = render.train_config(
        profile,
        task_name,
        dataset_dir=dataset,
        vocab_file=Path(vocab_file).absolute(),
        merges_file=Path(merges_file).absolute(),
        output_dir=run_dir / "output",
        tokens=token_ids(base_vocabulary(vocab_file)),
    )
    if begins.in_slices:
        config["auto_trans_ckpt"] = False
    going_on: Dict[str, Any] = {}
    if saved is not None:
        source, going_on = run_dir / "resume" / f"from_{mine[0]}", {"resumed_step": saved.step}
    job_file = run_dir / (f"job_{where['node']}.json" if where.get("node") else "job.json")
    fields: Dict[str, Any] = {
        "ranks": ranks,
        "run_dir": run_dir,
        "rendezvous": _rendezvous(profile, ranks, rank_table),
        "rank_table": rank_table or None,
        "port": port,
        "device_target": profile.device_target,
        "ready_timeout": READY_SECONDS,
        "hang_factor": HANG_FACTOR,
        "hang_floor": CPU_HANG_SECONDS if profile.device_target == "CPU" else launch.Plan.hang_floor,
        "job": again.identity(config, profile.device_target, *begins.files, dataset),
        **where,
        **settings,
    }
    plan = launch.Plan(command(job_file), **fields)
    if dry_run and launch.read_status(plan.folder) is not None:
        return plan
    if again.goes_on(plan.folder) or (detach and again.find(plan, run_dir / RESULT)):
        return plan
    require_space(run_dir, 4 * begins.bytes, f"checkpoints of {task_name}")
    make_folder(run_dir)
    (run_dir / RESULT).unlink(missing_ok=True)
    write_text(run_dir / f"{task_name}.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    if saved is not None:
        resuming.lay_out(saved, source)
    Job("finetune", profile.device_target, config, str(source), str(run_dir / RESULT), going_on).save(job_file)
    return plan


def _rendezvous(profile: Profile, ranks: int, rank_table: Optional[Union[str, Path]]) -> str:
    if ranks == 1:
        return "single"
    if profile.device_target == "CPU":
        return "dynamic_cluster"
    if not rank_table:
        raise Refused(f"{ranks} Ascend ranks need a rank table: run 01_env, or give --rank_table.")
    return "rank_table"
