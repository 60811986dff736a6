"""What a notebook says after a training: scores of the checkpoint, where it can be scored here, and the measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Union

from qwenlib.engine import single
from qwenlib.profile import Profile

Scores = Dict[str, Dict[str, float]]


def scores(
    profile: Profile,
    task_name: str,
    trained: Dict[str, Any],
    *,
    load_checkpoint: Union[str, Path],
    train_dataset: Union[str, Path],
    run_dir: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    **_job: Any,
) -> Scores:
    """Losses before and after, as :func:`qwenlib.engine.single.score` gives them; {} when the checkpoint is in slices.

    On several cards each rank saves its own slices, those of other nodes elsewhere; one process cannot read them.

    Args:
        trained: what :func:`qwenlib.engine.work.finetune` returned.
        run_dir: the training's; the scoring process works in ``run_dir/score``.
    """
    if profile.device_target != "CPU" and profile.task(task_name).parallel.ranks > 1:
        print("not scored here: each rank saved its slices; merge them first (qwenlib weights merge)")
        return {}
    return single.score(
        profile,
        load_checkpoint=load_checkpoint,
        checkpoints={task_name: trained["checkpoint"]},
        mindrecord=train_dataset,
        run_dir=Path(run_dir) / "score",
        adapter_task=task_name if profile.task(task_name).adapter is not None else "",
        vocab_file=vocab_file,
        merges_file=merges_file,
    )


def measures(trained: Dict[str, Any], found: Scores, task_name: str) -> Dict[str, Any]:
    """The numbers of a training for ``meta.json``; what was not measured here is left out."""
    told: Dict[str, Any] = {}
    if found:
        before, after = found["base"]["loss"], found[task_name]["loss"]
        told.update(loss_before=before, loss_after=after, loss_ratio=after / before)
        told["token_accuracy"] = found[task_name]["token_accuracy"]
    told.update({key: trained[key] for key in ("steps", "trainable_parameters") if key in trained})
    speed = trained["metrics"]["tokens_per_second"].iloc[1:].median()
    if speed == speed:  # one line only: no speed without the compilation in it
        told["tokens_per_second"] = float(speed)
    return told
