"""Qwen1.5's forward pass in NumPy (float64): over whole weights, and over rank slices as tensor parallelism runs it."""

from __future__ import annotations

from typing import Dict, List

import numpy

from qwenlib.profile import Model, Parallel

Weights = Dict[str, numpy.ndarray]


def _norm(x: numpy.ndarray, weight: numpy.ndarray, model: Model) -> numpy.ndarray:
    return x / numpy.sqrt((x**2).mean(-1, keepdims=True) + model.rms_norm_eps) * weight


def _heads(x: numpy.ndarray, width: int, model: Model, rotate: bool) -> numpy.ndarray:
    """[length, heads * width] -> [heads, length, width], with rotary positions."""
    x = x.reshape(len(x), -1, width).transpose(1, 0, 2)
    if not rotate:
        return x
    angles = numpy.arange(x.shape[1])[:, None] / model.theta ** (numpy.arange(0, width, 2) / width)
    angles = numpy.concatenate([angles, angles], -1)
    turned = numpy.concatenate([-x[..., width // 2 :], x[..., : width // 2]], -1)
    return x * numpy.cos(angles) + turned * numpy.sin(angles)


def _attention(x: numpy.ndarray, w: Weights, at: str, model: Model) -> numpy.ndarray:
    """The heads whose weights are in ``w``; [length, local heads * width]."""
    width = model.hidden_size // model.num_heads
    q, k, v = (
        _heads(x @ w[f"{at}w{part}.weight"].T + w[f"{at}w{part}.bias"], width, model, part != "v") for part in "qkv"
    )
    k, v = (numpy.repeat(side, len(q) // len(side), axis=0) for side in (k, v))
    scores = q @ k.transpose(0, 2, 1) / numpy.sqrt(width)
    scores += numpy.triu(numpy.full(scores.shape[1:], -numpy.inf), 1)
    scores = numpy.exp(scores - scores.max(-1, keepdims=True))
    out = scores / scores.sum(-1, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(len(x), -1)


def _feed_forward(x: numpy.ndarray, w: Weights, at: str) -> numpy.ndarray:
    gate = x @ w[f"{at}w1.weight"].T
    return gate / (1 + numpy.exp(-gate)) * (x @ w[f"{at}w3.weight"].T)


def whole(weights: Weights, model: Model, ids: List[int]) -> numpy.ndarray:
    """Logits [length, vocabulary]."""
    w = {name: value.astype(numpy.float64) for name, value in weights.items()}
    x = w["model.tok_embeddings.embedding_weight"][ids]
    for layer in range(model.num_layers):
        at = f"model.layers.{layer}."
        inner = _norm(x, w[f"{at}attention_norm.weight"], model)
        x = x + _attention(inner, w, f"{at}attention.", model) @ w[f"{at}attention.wo.weight"].T
        inner = _norm(x, w[f"{at}ffn_norm.weight"], model)
        x = x + _feed_forward(inner, w, f"{at}feed_forward.") @ w[f"{at}feed_forward.w2.weight"].T
    return _norm(x, w["model.norm_out.weight"], model) @ w["lm_head.weight"].T


def sliced(ranks: List[Weights], model: Model, parallel: Parallel, ids: List[int], replica: int = 0) -> numpy.ndarray:
    """The same from what each rank holds: stage after stage, the model-parallel group of data-parallel ``replica``.

    Column-parallel parts are joined (each rank keeps its heads), row-parallel partial products are added, optimizer
    shards are gathered first, from the ranks that AllGather would ask.
    """
    dp, mp = parallel.data_parallel, parallel.model_parallel
    x = numpy.empty(0)
    for stage in range(parallel.pipeline_stage):
        stage_ranks = ranks[stage * dp * mp : (stage + 1) * dp * mp]
        group = [_gathered(stage_ranks, replica * mp + m, dp, mp, model, parallel) for m in range(mp)]
        first = group[0]
        if stage == 0:
            table = "model.tok_embeddings.embedding_weight"
            x = (first[table] if parallel.vocab_emb_dp else numpy.concatenate([w[table] for w in group]))[ids]
        layers = sorted({int(name.split(".")[2]) for name in first if name.startswith("model.layers.")})
        for layer in layers:
            at = f"model.layers.{layer}."
            inner = _norm(x, first[f"{at}attention_norm.weight"], model)
            x = x + sum(_attention(inner, w, f"{at}attention.", model) @ w[f"{at}attention.wo.weight"].T for w in group)
            inner = _norm(x, first[f"{at}ffn_norm.weight"], model)
            x = x + sum(
                _feed_forward(inner, w, f"{at}feed_forward.") @ w[f"{at}feed_forward.w2.weight"].T for w in group
            )
    x = _norm(x, group[0]["model.norm_out.weight"], model)
    heads = [w["lm_head.weight"] for w in group]
    return x @ (heads[0] if parallel.vocab_emb_dp else numpy.concatenate(heads)).T


def _gathered(stage: List[Weights], local: int, dp: int, mp: int, model: Model, parallel: Parallel) -> Weights:
    """What rank ``local`` computes with: its slices, with the optimizer's shards of its group put together."""
    found = {}
    key_value = model.hidden_size // model.num_heads * (model.n_kv_heads or model.num_heads)
    rows = {
        "wq.weight": model.hidden_size // mp,
        "wk.weight": key_value // mp,
        "wv.weight": key_value // mp,
        "w1.weight": model.intermediate_size // mp,
        "w3.weight": model.intermediate_size // mp,
        "wo.weight": model.hidden_size,
        "w2.weight": model.hidden_size,
    }
    for name, value in stage[local].items():
        tail = name.split("attention.")[-1].split("feed_forward.")[-1]
        group = [local]
        if tail in rows and len(value) != rows[tail]:
            group = list(range(local % mp, dp * mp, mp))
        elif name == "lm_head.weight" and parallel.vocab_emb_dp and len(value) != model.vocab_size:
            group = list(range(dp * mp))
        elif name == "lm_head.weight" and not parallel.vocab_emb_dp and len(value) != model.vocab_size // mp:
            group = list(range(local % mp, dp * mp, mp))
        found[name] = numpy.concatenate([stage[rank][name] for rank in group]).astype(numpy.float64)
    return found
