"""The last steps before a training's ranks start: is the place free, is there enough to train on, what is kept."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Union

from qwenlib import launch
from qwenlib.engine import resume as resuming
from qwenlib.errors import Refused
from qwenlib.launch.plan import with_port
from qwenlib.profile import Profile, Task
from qwenlib.ranktable.parse import load

CHECKPOINTS = ("checkpoint", "checkpoint_network")


def start(
    plan: launch.Plan,
    task: Task,
    train_dataset: Union[str, Path],
    run_dir: Path,
    resume: Union[str, Path] = resuming.NEVER,
    detach: bool = False,
) -> launch.Run:
    """Start ``plan``; nothing of a run that is still going on in ``run_dir`` is touched.

    Raises:
        Refused: a run is going on, the data does not fill a step, or nothing is left to train.
        WorkFailed: the ranks could not be started.
    """
    launch.check_free(plan.folder)
    if plan.rank_table:
        load(plan.rank_table)  # refused, if it is broken, before HCCL waits half an hour for its ranks
    rows = _rows(train_dataset)
    if rows < per_step(task):
        raise Refused(
            f"{train_dataset} holds {rows} rows, fewer than the {per_step(task)} of one step (batch_size x "
            "data_parallel x micro_batch_num): nothing would be trained. Add records or lower the batch size."
        )
    saved, total = resuming.choose(resume, run_dir, plan.rank_ids), total_steps(task, train_dataset)
    if saved is not None and saved.step >= total:
        raise Refused(
            f"resume: the checkpoint is of step {saved.step} of {total}, so nothing is left to train. Raise epochs, or "
            "use resume never to train anew."
        )
    if str(resume) == resuming.AUTO:
        print(resuming.passed_over(run_dir, plan.rank_ids, saved), end="", file=sys.stderr, flush=True)
    plan = with_port(plan)  # refused, if it is, before the last checkpoints are moved
    if saved is None:
        set_aside(run_dir / "output", plan)
    metrics = plan.folder / "metrics.jsonl"
    told = resuming.steps_until(metrics, saved.step) if saved else ""
    run = launch.start(plan, detach=detach)
    if told:
        resuming.put_back(metrics, told)
    return run


def refuse_in_use(run_dir: Path, load_checkpoint: Path, resume: Union[str, Path] = resuming.NEVER) -> None:
    """Nothing of a training that is still going on, or that the new one starts from, may be moved away.

    Raises:
        Refused: a run is going on in ``run_dir``, or ``load_checkpoint`` lies in its output.
    """
    launch.check_free(run_dir)
    output = run_dir / "output"
    if str(resume) == resuming.NEVER and output in load_checkpoint.absolute().parents:
        raise Refused(
            f"load_checkpoint {load_checkpoint} lies in {output}, which the new training sets aside. Choose another "
            "run directory, or go on from there with resume auto."
        )


def check_data(profile: Profile, dataset: Path, vocab_file: Union[str, Path], merges_file: Union[str, Path]) -> None:
    """Compare how a MindRecord was built (the notes beside it; without notes, nothing) with what trains on it.

    Raises:
        Refused: rows of another length, another vocabulary, other columns, or a name that MindFormers skips.
    """
    from qwenlib.data import check_fit, read_meta
    from qwenlib.data.mindrecord import check_trainable

    check_trainable(dataset)
    if Path(f"{dataset}.meta.json").is_file():
        check_fit(
            read_meta(dataset),
            seq_length=profile.data.seq_length,
            vocab_file=vocab_file,
            merges_file=merges_file,
            what=f"profile {profile.name}",
        )


def per_step(task: Task) -> int:
    """Rows of one step over all ranks."""
    return int(task.batch_size * task.parallel.data_parallel * task.parallel.micro_batch_num)


def total_steps(task: Task, train_dataset: Union[str, Path]) -> int:
    """Steps of the whole training."""
    return _rows(train_dataset) // per_step(task) * int(task.epochs)


def set_aside(output: Path, plan: launch.Plan) -> None:
    """Keep the last training's checkpoints as ``output.previous``: MindFormers would mix new files with old ones.

    A further node, which may share the disk, moves the folders of its own ranks only.
    """
    previous = output.with_name("output.previous")
    if not plan.node:
        if output.exists():
            shutil.rmtree(previous, ignore_errors=True)
            output.rename(previous)
        return
    for folder in (output / kind / f"rank_{rank}" for kind in CHECKPOINTS for rank in plan.rank_ids):
        if folder.exists():
            target = previous.with_name(f"output.previous.node_{plan.node}") / folder.relative_to(output)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)


def _rows(dataset: Union[str, Path]) -> int:
    from qwenlib.data import count_rows

    return int(count_rows(dataset))
