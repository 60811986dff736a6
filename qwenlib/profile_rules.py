"""Which values of a profile go together: every rule that needs neither data nor a machine."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, List

from qwenlib.profile import Profile


def problems(profile: Profile) -> List[str]:
    """Every way in which the values of a profile do not go together, as sentences (empty: none)."""
    found = _out_of_range(profile, "")
    if found:
        return found  # sizes of 0 cannot be divided
    model = profile.model
    if profile.device_target not in ("Ascend", "CPU"):
        found.append(f"device_target must be Ascend or CPU, found {profile.device_target!r}")
    if profile.data.labels not in ("all", "assistant"):
        found.append(f"data.labels must be all or assistant, found {profile.data.labels!r}")
    if profile.data.too_long not in ("truncate", "drop", "split"):
        found.append(f"data.too_long must be truncate, drop or split, found {profile.data.too_long!r}")
    if model.hidden_size % model.num_heads:
        found.append(f"model.hidden_size {model.hidden_size} is not a multiple of num_heads {model.num_heads}")
    for key in ("param_init_type", "compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype"):
        if getattr(model, key) not in ("float16", "float32"):
            found.append(f"model.{key} must be float16 or float32, found {getattr(model, key)!r}")
    if model.num_heads % (model.n_kv_heads or 1):
        found.append(f"model.num_heads {model.num_heads} is not a multiple of n_kv_heads {model.n_kv_heads}")
    found += _out_of_bounds(profile)
    for name in profile.tasks():
        task = profile.task(name)
        plan = task.parallel
        if (task.adapter is None) == (name == "lora"):
            found.append(
                "lora.adapter is missing: without it every parameter would be trained"
                if name == "lora"
                else "finetune.adapter must be left out: finetune trains every parameter"
            )
        for size in ("num_heads", "intermediate_size", "hidden_size"):
            if getattr(model, size) % plan.model_parallel:
                found.append(f"model.{size} {getattr(model, size)} is not a multiple of {name}.parallel.model_parallel")
        if plan.micro_batch_num < plan.pipeline_stage:
            found.append(f"{name}.parallel.micro_batch_num must be at least pipeline_stage {plan.pipeline_stage}")
        if profile.device_target == "CPU":
            if task.sink_mode:
                found.append(f"{name}.sink_mode must be false on the CPU (MindSpore runs the wrong number of steps)")
            if plan.model_parallel * plan.pipeline_stage != 1:
                found.append(f"{name}.parallel: a CPU knows data_parallel only (MindSpore: invalid backend: CPU)")
    found += _cards_of_predict(profile)
    if profile.device_target == "CPU" and model.use_flash_attention:
        found.append("model.use_flash_attention must be false on the CPU (there is no such kernel)")
    return found


def _cards_of_predict(profile: Profile) -> List[str]:
    """A network that answers is spread over cards by model_parallel only."""
    shared = profile.predict.model_parallel if profile.predict is not None else 1
    if shared == 1:
        return []
    found: List[str] = []
    if profile.device_target == "CPU":
        found.append("predict.model_parallel must be 1 on the CPU (MindSpore: invalid backend: CPU)")
    for size in ("num_heads", "n_kv_heads", "intermediate_size", "hidden_size", "vocab_size"):
        value = getattr(profile.model, size) or shared
        if value % shared:
            found.append(f"model.{size} {value} is not a multiple of predict.model_parallel {shared}")
    return found


def _out_of_bounds(profile: Profile) -> List[str]:
    """Values that MindFormers would take and go wrong with, or refuse in every rank."""
    found: List[str] = []

    def must(fits: bool, key: str, rule: str, value: Any) -> None:
        if not fits:
            found.append(f"{key} must {rule}, found {value!r}")

    size = profile.max_device_memory
    must(bool(re.fullmatch(r"\d+(\.\d+)?GB", size)), "max_device_memory", "read like 31GB", size)
    for key in ("rms_norm_eps", "theta"):
        value = getattr(profile.model, key)
        must(value > 0, f"model.{key}", "be above 0", value)
    if profile.predict is not None:
        for key in ("temperature", "repetition_penalty"):
            value = getattr(profile.predict, key)
            must(value > 0, f"predict.{key}", "be above 0", value)
        must(0 < profile.predict.top_p <= 1, "predict.top_p", "be above 0 and at most 1", profile.predict.top_p)
    for name in profile.tasks():
        task = profile.task(name)
        must(task.learning_rate > 0, f"{name}.learning_rate", "be above 0", task.learning_rate)
        must(task.lr_end >= 0, f"{name}.lr_end", "be 0 or more", task.lr_end)
        must(0 <= task.warmup_ratio <= 1, f"{name}.warmup_ratio", "be 0 to 1", task.warmup_ratio)
        must(task.weight_decay >= 0, f"{name}.weight_decay", "be 0 or more", task.weight_decay)
        if task.adapter is not None:
            dropout, pattern = task.adapter.lora_dropout, task.adapter.target_modules
            must(0 <= dropout < 1, f"{name}.adapter.lora_dropout", "be 0 or more and below 1", dropout)
            try:
                matches = any(re.match(pattern, f"model.layers.0.{part}") for part in _LINEARS)
            except re.error as error:
                found.append(f"{name}.adapter.target_modules {pattern!r} is no regular expression: {error}")
                continue
            rule = f"match a matrix of a layer ({', '.join(part.split('.')[1] for part in _LINEARS)})"
            must(matches, f"{name}.adapter.target_modules", rule, pattern)
    return found


_LINEARS = (
    *(f"attention.{name}" for name in ("wq", "wk", "wv", "wo")),
    *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
)
_MAY_BE_ZERO = ("seed", "top_k", "hold_out")


def _out_of_range(part: Any, where: str) -> List[str]:
    """Numbers below what they count from, and floats that are no numbers, in a dataclass and all below it."""
    found: List[str] = []
    for item in dataclasses.fields(part):
        value, name = getattr(part, item.name), f"{where}{item.name}"
        least = 0 if item.name in _MAY_BE_ZERO else 1
        if dataclasses.is_dataclass(value):
            found += _out_of_range(value, f"{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(f"{name} must be a finite number, found {value}")
        elif isinstance(value, int) and not isinstance(value, bool) and value < least:
            found.append(f"{name} must be at least {least}, found {value}")
    return found
