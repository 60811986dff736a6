"""A loaded network for scoring and answering, built and filled by ``mindformers.Trainer``."""

from __future__ import annotations

from typing import Any, Sequence, Tuple

from qwenlib.engine.guard import ADAPTER_MARK, LoadWatch
from qwenlib.errors import WorkFailed


def build(config: Any, checkpoint: str, may_lack: Sequence[str] = ()) -> Tuple[Any, Any]:
    """``(network, tokenizer)`` with every parameter filled from ``checkpoint``, in evaluation mode.

    Trainer.predict builds the network, loads the checkpoint (given on the call: the YAML's is ignored) and answers
    once; what it built is kept in its pipeline. ``may_lack`` as in :meth:`LoadWatch.judge`.

    Raises:
        WorkFailed: the weights did not load.
    """
    from mindformers import Trainer

    with LoadWatch() as watch:
        trainer = Trainer(args=config, task="text_generation")
        trainer.predict(
            predict_checkpoint=checkpoint,
            auto_trans_ckpt=bool(config.auto_trans_ckpt),
            input_data="a",
            max_new_tokens=1,
        )
    watch.judge(checkpoint, may_lack)
    pipeline = trainer.trainer.pipeline_task
    pipeline.network.set_train(False)
    return pipeline.network, pipeline.tokenizer


def reload(network: Any, checkpoint: str, may_lack: Sequence[str] = ()) -> None:
    """Fill an already built network from another checkpoint; ``may_lack`` as in :func:`build`.

    Raises:
        WorkFailed: parameters were missing or entries had no place.
    """
    import mindspore

    missing, unused = mindspore.load_param_into_net(network, mindspore.load_checkpoint(checkpoint))
    watch = LoadWatch()
    watch.outcome = (list(missing), list(unused))
    watch.judge(checkpoint, may_lack)


def adapter_names(config: Any) -> Sequence[str]:
    """What a base checkpoint may lack for this configuration: the adapter's names when it has one, else nothing."""
    return [ADAPTER_MARK] if config.model.model_config.pet_config else []


def require_plain(config: Any) -> None:
    """Scoring needs whole sequences.

    Raises:
        WorkFailed: the configuration asks for the key/value cache, whose first pass returns the last token only.
    """
    if config.model.model_config.use_past:
        raise WorkFailed(
            "scoring needs use_past False: with the key/value cache only the last token's logits come out."
        )
