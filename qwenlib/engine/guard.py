"""Nothing trains or answers from random weights: what MindFormers says of loading is read and judged.

MindFormers 1.0 only logs which parameters a checkpoint did not fill (``load_ckpt`` in ``trainer/utils.py``) and goes
on. The watch reads that record; the callback stops the training before its first step.
"""

from __future__ import annotations

import ast
import logging
from typing import Any, List, Optional, Sequence, Tuple

from qwenlib.errors import WorkFailed

_RECORD = "Network parameters are not loaded:"
_OPTIMIZER = "Optimizer parameters are not loaded:"
ADAPTER_MARK = "mindpet_delta_lora_"
CACHE_MARK = "kvcache_mgr"
"""The key/value cache is kept in parameters; no checkpoint holds it."""


class LoadWatch(logging.Handler):
    """Listens to MindFormers' logger for the outcome of loading a checkpoint."""

    def __init__(self) -> None:
        super().__init__(level=logging.INFO)
        self.outcome: Optional[Tuple[List[str], List[str]]] = None
        """``(network parameters missing in the checkpoint, checkpoint entries without a place)``."""
        self.optimizer: Optional[Tuple[List[str], List[str]]] = None
        """The same of the optimizer's state, when a training is resumed."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the two lists of the last such record."""
        message = record.getMessage()
        for mark, name in ((_RECORD, "outcome"), (_OPTIMIZER, "optimizer")):
            if mark in message:
                missing, unused = ast.literal_eval(message.split(mark, 1)[1].strip())
                setattr(self, name, (list(missing), list(unused)))

    def __enter__(self) -> LoadWatch:
        from mindformers.tools.logger import get_logger

        get_logger().addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        from mindformers.tools.logger import get_logger

        get_logger().removeHandler(self)

    def judge(self, checkpoint: str, may_lack: Sequence[str] = ()) -> None:
        """Raise unless every network parameter was filled from ``checkpoint``.

        ``may_lack``: parts of names that may be missing (a fresh adapter has no weights in a base checkpoint).

        Raises:
            WorkFailed: nothing was loaded, parameters stayed random, or entries of the checkpoint found no place.
        """
        if self.outcome is None:
            raise WorkFailed(f"MindFormers never loaded {checkpoint}: the network would start from random weights.")
        missing, unused = self.outcome
        random = [name for name in missing if not any(part in name for part in (*may_lack, CACHE_MARK))]
        if random:
            raise WorkFailed(
                f"{len(random)} network parameters are not in {checkpoint} and would stay random: {_some(random)}. "
                "The checkpoint is of another model or layout."
            )
        if unused:
            raise WorkFailed(
                f"{len(unused)} entries of {checkpoint} have no place in the network: {_some(unused)}. "
                "The checkpoint is of another model (or a LoRA checkpoint given as a full one)."
            )

    def judge_resumed(self, checkpoint: str) -> None:
        """Raise unless the network and its optimizer's state were filled from a training checkpoint.

        Raises:
            WorkFailed: nothing was loaded, or a parameter of either is not in the checkpoint.
        """
        for what, outcome in (("network", self.outcome), ("optimizer", self.optimizer)):
            if outcome is None:
                raise WorkFailed(f"MindFormers never loaded the {what} from {checkpoint}: nothing would be resumed.")
            missing = [name for name in outcome[0] if CACHE_MARK not in name]
            if missing:
                raise WorkFailed(
                    f"{len(missing)} parameters of the {what} are not in {checkpoint}: {_some(missing)}. "
                    "It is of another model, layout or task."
                )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def first_step_guard(watch: LoadWatch, checkpoint: str, may_lack: Sequence[str], resumed: bool = False) -> Any:
    """A MindSpore callback that judges ``watch`` when the training is about to begin, before its first step."""
    from mindspore import Callback

    class FirstStepGuard(Callback):  # type: ignore[misc]
        def on_train_begin(self, run_context: Any) -> None:
            if resumed:
                watch.judge_resumed(checkpoint)
            else:
                watch.judge(checkpoint, may_lack)

    return FirstStepGuard()
