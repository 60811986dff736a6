"""Memory of one card while training, part by part.

Weights, gradients and optimizer state are counted exactly, from the slices. Activations are counted tensor by tensor in
the manner of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", section 4,
arXiv:2205.05198), whose GPT layer keeps s·b·h·(10 + 24/t) + 5·a·s²·b/t bytes; a Llama layer has other parts, so its own
are written out below (a test adds and takes away what differs, and finds their formula). FlashAttention keeps no s²
term but two float32 statistics a row (Dao et al. 2022, section 3.1, arXiv:2205.14135). Stage i of p keeps p - i
micro-batches (one forward, one backward: Narayanan et al. 2021, section 2.2, arXiv:2104.04473). Nothing of this has
been measured on an Ascend; what is known is that the guide's two layouts ran within 31 GB, and tests hold the estimate
to that. It is a calibration, not a proof: with float32 norm inputs kept, the full fine-tuning came out at 34.9 GiB, so
they are counted as temporary, at the 2 bytes that Korthikanti et al. count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Dict, List

from qwenlib.errors import Refused
from qwenlib.estimate.slices import Held, held, slices
from qwenlib.profile import Model, Parallel, Profile, Task

GIB = 2**30
HCCL_BUFFER = 400 * 2**20
"""Bytes a communication group holds on a card: HCCL_BUFFSIZE's default of 200 MB, for input and for output."""
_BYTES = {"float16": 2, "float32": 4}

SOURCES = (
    "weights, gradients and Adam's two float32 states: counted from the plan's slices; activations: Korthikanti et al. "
    "2022, arXiv:2205.05198 section 4; FlashAttention: Dao et al. 2022, arXiv:2205.14135; micro-batches alive in a "
    "pipeline: Narayanan et al. 2021, arXiv:2104.04473; not measured on a card"
)
"""Where the terms of the memory estimate come from."""


@dataclass(frozen=True)
class Memory:
    """Bytes a card of one pipeline stage, by part."""

    stage: int
    parts: Dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def limit_bytes(profile: Profile) -> int:
    """``max_device_memory`` ("31GB") in bytes; MindSpore's GB are GiB.

    Raises:
        Refused: it is not a number followed by GB.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*GB", profile.max_device_memory)
    if not match:
        raise Refused(f"max_device_memory must read like 31GB, found {profile.max_device_memory!r}.")
    return int(float(match[1]) * GIB)


def per_card(profile: Profile, task_name: str) -> List[Memory]:
    """Memory of a card of each pipeline stage, in bytes.

    Raises:
        Refused: the profile has no such task.
    """
    task = profile.task(task_name)
    stages = held(profile.model, replace(task.parallel, micro_batch_num=1), task.adapter)
    return [_stage(profile, task, number, mine) for number, mine in enumerate(stages)]


def _stage(profile: Profile, task: Task, stage: int, mine: Held) -> Memory:
    plan, model = task.parallel, profile.model
    width = _BYTES[model.param_init_type]
    tokens = profile.data.seq_length * task.batch_size
    alive = min(plan.pipeline_stage - stage, plan.micro_batch_num)
    layer = layer_bytes(model, task, profile.data.seq_length)
    block = _BYTES[model.compute_dtype] * tokens * model.hidden_size
    # Recomputing: each layer's input, and one layer while it is computed again.
    activations = alive * mine.layers * block + layer if task.recompute else alive * mine.layers * layer
    last = stage == plan.pipeline_stage - 1
    shards = profile.device_target != "CPU"  # data parallel on the CPU shards nothing
    groups = 1 + sum(size > 1 for size in (plan.data_parallel, plan.model_parallel, plan.pipeline_stage))
    return Memory(
        stage,
        {
            "weights": width * (mine.kept if shards else mine.in_use),
            "gathered weights": width * (mine.in_use - mine.kept) if shards else 0,
            "gradients": width * mine.learned_in_use,
            "optimizer state": 8 * (mine.learned_kept if shards else mine.learned_in_use),
            "activations": activations,
            "logits": logits_bytes(model, task, profile.data.seq_length) if last else 0,
            "HCCL buffers": HCCL_BUFFER * groups if plan.ranks > 1 and shards else 0,
        },
    )


def answering(profile: Profile, batch_size: int = 1) -> Memory:
    """Memory of the one card that answers, in bytes: weights, keys and values of seq_length tokens, the first pass.

    The first pass goes over the whole prompt: one layer's scores (answers use no FlashAttention) and half a dozen
    arrays of its hidden states at a time, then the logits of every place, once more in float32. An upper bound from
    the shapes, not measured.
    """
    model, tokens = profile.model, profile.data.seq_length * batch_size
    width = _BYTES[model.compute_dtype]
    key_value = model.hidden_size // model.num_heads * (model.n_kv_heads or model.num_heads)
    layer = width * (6 * model.hidden_size + 2 * model.intermediate_size)
    scores = _BYTES[model.softmax_compute_type] * model.num_heads * profile.data.seq_length
    return Memory(
        0,
        {
            "weights": _BYTES[model.param_init_type] * sum(item.size for item in slices(model, Parallel())),
            "keys and values": 2 * model.num_layers * key_value * width * tokens,
            "activations": (layer + scores) * tokens,
            "logits": (width + 4) * model.vocab_size * tokens,
        },
    )


def layer_bytes(model: Model, task: Task, seq_length: int) -> int:
    """Bytes that one decoder layer keeps for the backward pass of one micro-batch, without recomputing.

    Numbers per token, of the size of compute_dtype, with h = hidden_size, f = intermediate_size, t = model_parallel:
    two norms, each its input and output (float32 copies are temporary): 4 h; q, k, v: (h + 2 kv)/t; rotated q and k:
    (h + kv)/t; attention output: h/t; w1, silu, w3 and their product: 4 f/t. Scores without FlashAttention: a·s/t
    (softmax output, of the size of softmax_compute_type); with it: 8 a/t bytes. A LoRA adapter adds its dropped-out
    input (and a mask of 1 byte) and the rank's output, for each of the seven matrices.
    """
    hidden, inner, t = model.hidden_size, model.intermediate_size, task.parallel.model_parallel
    key_value = hidden // model.num_heads * (model.n_kv_heads or model.num_heads)
    numbers = 4 * hidden + (hidden + 2 * key_value + hidden + key_value + hidden + 4 * inner) / t
    masks = 0.0
    if task.adapter is not None:
        inputs = 5 * hidden + (hidden + inner) / t
        masks = inputs if task.adapter.lora_dropout else 0.0
        numbers += masks + 7 * task.adapter.lora_rank
    scores = 8 * model.num_heads / t
    if not model.use_flash_attention:
        scores = _BYTES[model.softmax_compute_type] * model.num_heads * seq_length / t
    return round((_BYTES[model.compute_dtype] * numbers + masks + scores) * seq_length * task.batch_size)


def logits_bytes(model: Model, task: Task, seq_length: int) -> int:
    """Bytes of the last stage's logits of one micro-batch.

    With ``vocab_emb_dp`` lm_head is not split: float16 logits and their gradient, and the float32 copy (8 bytes a
    number); the loss itself is split by model_parallel where the vocabulary divides (two float32 arrays, 8 bytes).
    """
    mp = task.parallel.model_parallel
    divides = model.vocab_size % mp == 0
    logits = 8 / (1 if task.parallel.vocab_emb_dp or not divides else mp)
    loss = 8 / (mp if divides else 1)
    return round((logits + loss) * seq_length * task.batch_size * model.vocab_size)
