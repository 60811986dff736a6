"""Losses and logits of loaded networks: the proof that weights arrived, and the measure of what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

from qwenlib.engine import network as networks
from qwenlib.engine.job import Job
from qwenlib.errors import WorkFailed
from qwenlib.files import atomic_path, write_json
from qwenlib.progress import Progress

IGNORE = -100
LOGITS = 2**27
"""Logits that are computed at a time, half a GiB in float32; of a 7B one row of 2048 tokens already is more."""


def score(config: Any, job: Job) -> None:
    """Mean negative log-likelihood (nats per learned token) of a whole MindRecord under one or more checkpoints.

    ``job.settings``: ``mindrecord``; ``checkpoints`` ``{name: path}`` scored after ``job.load_checkpoint``, which is
    called ``base``; ``plain``: names of those without an adapter, scored while the network's own still adds nothing;
    ``batch_size``. Result: ``{name: {"loss", "tokens", "token_accuracy"}}``.
    """
    from qwenlib.data import read_rows

    networks.require_plain(config)
    network, _ = networks.build(config, job.load_checkpoint, networks.adapter_names(config))
    rows = list(read_rows(job.settings["mindrecord"]))
    if not rows:
        raise WorkFailed(f"{job.settings['mindrecord']} holds no rows to score.")
    places = len(rows[0]["input_ids"]) * int(config.model.model_config.vocab_size)
    batch = int(job.settings.get("batch_size", max(1, min(8, LOGITS // places))))
    found: Dict[str, Any] = {"base": _score_rows(network, rows, batch, "score base")}
    plain = job.settings.get("plain", [])
    for name, checkpoint in sorted(job.settings.get("checkpoints", {}).items(), key=lambda item: item[0] not in plain):
        networks.reload(network, checkpoint, networks.adapter_names(config) if name in plain else ())
        found[name] = _score_rows(network, rows, batch, f"score {name}")
    write_json(job.result, found)


def _score_rows(network: Any, rows: Any, batch: int, what: str) -> Dict[str, Any]:
    import mindspore
    import numpy

    total, tokens, right = 0.0, 0, 0
    with Progress(what, len(rows), "rows") as bar:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            padded = part + [part[-1]] * (batch - len(part))  # one shape, one compilation
            ids = numpy.stack([row["input_ids"] for row in padded]).astype(numpy.int32)
            logits = network(mindspore.Tensor(ids[:, :-1]))[0].asnumpy()
            targets = numpy.stack([row["target_ids"] for row in part])[:, 1:]
            loss, learned, hits = _nll(logits[: len(part)], targets)
            total, tokens, right = total + loss, tokens + learned, right + hits
            bar.advance(len(part))
    return {"loss": total / max(tokens, 1), "tokens": tokens, "token_accuracy": right / max(tokens, 1)}


def _nll(logits: Any, targets: Any) -> Tuple[float, int, int]:
    """Sum of -log p over learned targets, their number, and how many were the most likely token.

    ``logits`` [rows, length, vocabulary], ``targets`` [rows, length] with -100 where nothing is learned.
    """
    import numpy

    mask = targets != IGNORE
    picked, wanted = logits[mask].astype(numpy.float64), targets[mask]
    peak = picked.max(axis=-1)
    log_sum = peak + numpy.log(numpy.exp(picked - peak[:, None]).sum(axis=-1))
    loss = log_sum - picked[numpy.arange(len(wanted)), wanted]
    return float(loss.sum()), int(mask.sum()), int((picked.argmax(axis=-1) == wanted).sum())


def logits(config: Any, job: Job) -> None:
    """Write the network's logits, float32 [rows, length, vocabulary], for ``settings["input_ids"]`` as .npz."""
    import mindspore
    import numpy

    networks.require_plain(config)
    network, _ = networks.build(config, job.load_checkpoint)
    ids = numpy.asarray(job.settings["input_ids"], dtype=numpy.int32)
    found = numpy.concatenate([network(mindspore.Tensor(row[None]))[0].asnumpy() for row in ids])
    with atomic_path(Path(job.result)) as part, open(part, "wb") as stream:
        numpy.savez(stream, logits=found)
