"""Fine-tuning through ``mindformers.Trainer``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qwenlib.engine.guard import ADAPTER_MARK, LoadWatch, first_step_guard
from qwenlib.engine.job import Job
from qwenlib.errors import Refused
from qwenlib.files import write_json


def finetune(config: Any, job: Job) -> None:
    """Train this rank's share of the job; rank 0 writes ``{"steps", "rows", "trainable", …}`` to ``job.result``.

    The checkpoint is handed over on the call: MindFormers 1.0 ignores ``load_checkpoint`` of the YAML in finetune and
    would train from random weights (``Trainer.finetune``).

    Raises:
        Refused: the data set is missing, not a MindRecord by name, or too small for one step.
        WorkFailed: the weights did not load.
    """
    from mindformers import Trainer

    dataset_dir = check_dataset(config)
    with_adapter = bool(config.model.model_config.pet_config)
    with LoadWatch() as watch:
        guard = first_step_guard(watch, job.load_checkpoint, [ADAPTER_MARK] if with_adapter else [])
        account = _account(Path(job.result))
        trainer = Trainer(
            args=config, task="text_generation", train_dataset=str(dataset_dir), callbacks=[guard, account]
        )
        trainer.finetune(
            finetune_checkpoint=job.load_checkpoint,
            auto_trans_ckpt=bool(config.auto_trans_ckpt),
            resume_training=False,
        )


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


def _account(result: Path) -> Any:
    """A callback that writes, on rank 0, what was trained."""
    from mindspore import Callback, nn
    from mindspore.communication import get_rank

    class Account(Callback):  # type: ignore[misc]
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
                write_json(result, {"steps": int(cell.cur_step_num), "trainable_parameters": int(trainable)})

    return Account()
