"""Fine-tuning through ``mindformers.Trainer``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Tuple

from qwenlib.engine import resume
from qwenlib.engine.guard import ADAPTER_MARK, LoadWatch, first_step_guard
from qwenlib.engine.job import Job
from qwenlib.errors import Refused
from qwenlib.files import write_json
from qwenlib.launch import report_ready, report_step


def finetune(config: Any, job: Job) -> None:
    """Train this rank's share of the job; rank 0 writes ``{"steps", "rows", "trainable", …}`` to ``job.result``.

    The checkpoint is handed over on the call: MindFormers 1.0 ignores ``load_checkpoint`` of the YAML in finetune and
    would train from random weights (``Trainer.finetune``).

    Raises:
        Refused: the data set is missing, not a MindRecord by name, too small for one step, or of other rows or columns.
        WorkFailed: the weights did not load.
    """
    from mindformers import Trainer

    from qwenlib.data.layout import check_rows

    report_ready()
    dataset_dir = check_dataset(config)
    check_rows(dataset_dir, config.model.model_config.seq_length, config.train_dataset.input_columns)
    total = _total_steps(config, dataset_dir)
    checkpoint, resumed = where_from(config, job)
    if resumed:
        print(f"going on after step {resumed} of {total}", flush=True)
        resume.set_weights_aside(Path(config.output_dir), int(os.environ.get("RANK_ID", "0")))
    with_adapter = bool(config.model.model_config.pet_config)
    with LoadWatch() as watch:
        guard = first_step_guard(watch, checkpoint, [ADAPTER_MARK] if with_adapter else [], bool(resumed))
        account = _account(Path(job.result), resumed, total)
        trainer = Trainer(
            args=config, task="text_generation", train_dataset=str(dataset_dir), callbacks=[guard, account]
        )
        trainer.finetune(
            finetune_checkpoint=checkpoint,
            # A training is resumed in the layout that it was saved in, each rank from its own file.
            auto_trans_ckpt=bool(config.auto_trans_ckpt) and not resumed,
            resume_training=bool(resumed),
        )


def _total_steps(config: Any, dataset: Path) -> int:
    """Steps of the whole training, over all epochs; what does not fill a step is dropped."""
    from qwenlib.data import count_rows

    plan = config.parallel_config
    per_step = config.train_dataset.batch_size * plan.data_parallel * plan.micro_batch_num
    return int(count_rows(dataset)) // per_step * int(config.runner_config.epochs)


def where_from(config: Any, job: Job) -> Tuple[str, int]:
    """``(checkpoint, step)`` to go on from; step 0: a new training. What the job says; after a restart of the ranks,
    the newest point that all of them have saved.
    """
    if os.environ.get("QWENLIB_RESTART"):
        ranks = range(int(os.environ.get("RANK_SIZE", "1")))
        saved = resume.newest(Path(config.output_dir) / "checkpoint", ranks)
        if saved is not None:
            return str(resume.lay_out(saved, Path.cwd() / "resume")), saved.step
    return job.load_checkpoint, int(job.settings.get("resumed_step", 0))


def check_dataset(config: Any) -> Path:
    """The data set's path, after the checks that MindFormers leaves out.

    Raises:
        Refused: missing, a name MindFormers skips without a word, no rows, or fewer rows than one step takes.
    """
    from qwenlib.data import count_rows

    path = Path(config.train_dataset.data_loader.dataset_dir)
    if not path.is_file():
        raise Refused(f"there is no training data {path}. Run 03_data, or qwenlib data build, first.")
    if not re.search(r"mindrecord0*$", path.name):
        raise Refused(
            f"{path}: MindFormers only reads files whose name ends in .mindrecord; build it under such a name."
        )
    rows = count_rows(path)
    plan = config.parallel_config
    needed = config.train_dataset.batch_size * plan.data_parallel * plan.micro_batch_num
    if rows < needed:
        raise Refused(f"{path} holds {rows} rows, fewer than the {needed} of one step: nothing would be trained.")
    return path


def _account(result: Path, resumed: int, total: int) -> Any:
    """A callback that writes, on rank 0, what was trained."""
    from mindspore import Callback, nn
    from mindspore.communication import get_rank

    class Account(Callback):  # type: ignore[misc]
        def on_train_step_end(self, run_context: Any) -> None:
            report_step(resumed + int(run_context.original_args().cur_step_num), total)

        def on_train_end(self, run_context: Any) -> None:
            cell = run_context.original_args()
            network = cell.train_network
            while isinstance(getattr(network, "network", None), nn.Cell):
                network = network.network  # out of its wrappers: the optimizer's states are no weights
            trainable = sum(parameter.size for parameter in network.trainable_params())
            try:
                rank = get_rank()
            except (RuntimeError, ValueError):
                rank = 0
            if rank == 0:
                write_json(result, {"steps": resumed + int(cell.cur_step_num), "trainable_parameters": int(trainable)})

    return Account()
