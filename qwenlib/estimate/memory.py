"""Memory of one card while training, part by part.

Weights, gradients and optimizer state are counted exactly, from the slices. Activations are counted tensor by tensor in
the manner of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", section 4),
whose GPT layer keeps s·b·h·(10 + 24/t) + 5·a·s²·b/t bytes; a Llama layer has other parts, so its own are written
out below. FlashAttention keeps no s² term but two float32 statistics a row (Dao et al. 2022, section 3.1). Stage i of
p keeps p - i micro-batches (one forward, one backward: Narayanan et al. 2021, section 2.2). Nothing of this has been
measured on an Ascend; what is known is that the guide's two layouts ran within 31 GB, and tests hold the estimate to
that. It is a calibration, not a proof: with float32 norm inputs kept, the full fine-tuning came out at 34.9 GiB, so
they are counted as temporary, at the 2 bytes that Korthikanti et al. count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Sequence

from qwenlib.errors import Refused
from qwenlib.estimate.slices import Slice, slices
from qwenlib.profile import Model, Profile, Task

GIB = 2**30
HCCL_BUFFER = 400 * 2**20
"""Bytes a communication group holds on a card: HCCL_BUFFSIZE's default of 200 MB, for input and for output."""
_BYTES = {"float16": 2, "float32": 4}


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
    task, model = profile.task(task_name), profile.model
    found = slices(model, task.parallel, task.adapter)
    return [_stage(profile, task, number, found) for number in range(task.parallel.pipeline_stage)]


def _stage(profile: Profile, task: Task, stage: int, every: Sequence[Slice]) -> Memory:
    plan, model = task.parallel, profile.model
    mine = [item for item in every if item.stage == stage]
    learned = [item for item in mine if item.trainable]
    width = _BYTES[model.param_init_type]
    layers = len([item for item in mine if item.name.endswith("attention_norm.weight")])
    tokens = profile.data.seq_length * task.batch_size
    alive = min(plan.pipeline_stage - stage, plan.micro_batch_num)
    layer = layer_bytes(model, task, profile.data.seq_length)
    block = 2 * tokens * model.hidden_size
    # Recomputing: each layer's input, and one layer while it is computed again.
    activations = alive * layers * block + layer if task.recompute else alive * layers * layer
    last = stage == plan.pipeline_stage - 1
    shards = profile.device_target != "CPU"  # data parallel on the CPU shards nothing
    groups = 1 + sum(size > 1 for size in (plan.data_parallel, plan.model_parallel, plan.pipeline_stage))
    return Memory(
        stage,
        {
            "weights": width * sum(item.kept if shards else item.in_use for item in mine),
            "gathered weights": width * sum(item.in_use - item.kept for item in mine) if shards else 0,
            "gradients": width * sum(item.in_use for item in learned),
            "optimizer state": 8 * sum(item.kept if shards else item.in_use for item in learned),
            "activations": activations,
            "logits": logits_bytes(model, task, profile.data.seq_length) if last else 0,
            "HCCL buffers": HCCL_BUFFER * groups if plan.ranks > 1 and shards else 0,
        },
    )


def layer_bytes(model: Model, task: Task, seq_length: int) -> int:
    """Bytes that one decoder layer keeps for the backward pass of one micro-batch, without recomputing.

    Per token, with h = hidden_size, f = intermediate_size, t = model_parallel, 2 bytes a float16 number:
    two norms, each its input and output (float32 copies are temporary): 8 h; q, k, v: (2 h + 4 kv)/t; rotated q and
    k: (2 h + 2 kv)/t; attention output: 2 h/t; w1, silu, w3 and their product: 8 f/t. Scores without FlashAttention:
    2 a·s/t (softmax output); with it: 8 a/t. A LoRA adapter adds its dropped-out input (2 bytes and a mask of 1) and
    the rank's output, for each of the seven matrices.
    """
    hidden, inner, t = model.hidden_size, model.intermediate_size, task.parallel.model_parallel
    key_value = hidden // model.num_heads * (model.n_kv_heads or model.num_heads)
    numbers = 8 * hidden + (2 * hidden + 4 * key_value + 2 * hidden + 2 * key_value + 2 * hidden + 8 * inner) / t
    numbers += 8 * model.num_heads / t if model.use_flash_attention else 2 * model.num_heads * seq_length / t
    if task.adapter is not None:
        inputs = 5 * hidden + (hidden + inner) / t
        numbers += (3 * inputs if task.adapter.lora_dropout else 0) + 2 * 7 * task.adapter.lora_rank
    return round(numbers * seq_length * task.batch_size)


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
