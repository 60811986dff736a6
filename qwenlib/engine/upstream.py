"""Upstream's three configurations as values, and every difference of ours, each with its reason.

The values are those of ``research/qwen1_5/run_qwen1_5_7b_{lora,finetune,infer}.yaml`` in MindFormers r1.0.a. Keys are
dotted; a callback's keys carry its type (``callbacks.CheckpointMointor.prefix``). A test compares :func:`compare` with
nothing left over: no difference without a reason, no reason without a difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

from qwenlib import profile as profiles
from qwenlib.engine import render

PROFILE_OF = {"lora": "lora_7b_910a", "finetune": "finetune_7b_910a", "infer": "infer_7b_910a"}
"""Upstream's configuration -> the shipped profile that stands for it."""

ABSENT = "(absent)"
GIVEN = "(a path, given at run time)"

_SHARED: Dict[str, Any] = {
    "seed": 0,
    "output_dir": "./output",
    "trainer.type": "CausalLanguageModelingTrainer",
    "trainer.model_name": "qwen2_7b",
    "train_dataset.data_loader.type": "MindDataset",
    "train_dataset.data_loader.dataset_dir": GIVEN,
    "train_dataset.data_loader.shuffle": True,
    "train_dataset.num_parallel_workers": 8,
    "train_dataset.python_multiprocessing": False,
    "train_dataset.drop_remainder": True,
    "train_dataset.repeat": 1,
    "train_dataset.numa_enable": False,
    "train_dataset.prefetch_size": 1,
    "train_dataset_task.type": "CausalLanguageModelDataset",
    "runner_config.sink_mode": True,
    "runner_config.sink_size": 2,
    "runner_wrapper.type": "MFTrainOneStepCell",
    "runner_wrapper.use_clip_grad": True,
    "runner_wrapper.scale_sense.type": "DynamicLossScaleUpdateCell",
    "runner_wrapper.scale_sense.loss_scale_value": 65536,
    "runner_wrapper.scale_sense.scale_factor": 2,
    "runner_wrapper.scale_sense.scale_window": 1000,
    "optimizer.type": "FP32StateAdamWeightDecay",
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.95,
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.1,
    "lr_schedule.type": "CosineWithWarmUpLR",
    "lr_schedule.warmup_ratio": 0.01,
    "lr_schedule.total_steps": -1,
    "callbacks.MFLossMonitor.type": "MFLossMonitor",
    "callbacks.CheckpointMointor.type": "CheckpointMointor",
    "callbacks.CheckpointMointor.prefix": "qwen2",
    "callbacks.CheckpointMointor.save_checkpoint_steps": 10000,
    "callbacks.CheckpointMointor.keep_checkpoint_max": 3,
    "callbacks.CheckpointMointor.integrated_save": False,
    "callbacks.CheckpointMointor.async_save": False,
    "callbacks.ObsMonitor.type": "ObsMonitor",
    "parallel_config.gradient_aggregation_group": 4,
    "micro_batch_interleave_num": 1,
    "recompute_config.recompute": False,
    "recompute_config.select_recompute": False,
    "recompute_config.parallel_optimizer_comm_recompute": False,
    "recompute_config.mp_comm_recompute": False,
    "recompute_config.recompute_slice_activation": False,
    "model.arch.type": "LlamaForCausalLM",
    "model.model_config.type": "LlamaConfig",
    "model.model_config.hidden_size": 4096,
    "model.model_config.num_layers": 32,
    "model.model_config.num_heads": 32,
    "model.model_config.vocab_size": 151936,
    "model.model_config.intermediate_size": 11008,
    "model.model_config.qkv_has_bias": True,
    "model.model_config.rms_norm_eps": 1e-6,
    "model.model_config.theta": 1000000.0,
    "model.model_config.eos_token_id": 151643,
    "model.model_config.pad_token_id": 151643,
    "model.model_config.bos_token_id": 151643,
    "model.model_config.compute_dtype": "float16",
    "model.model_config.layernorm_compute_type": "float32",
    "model.model_config.softmax_compute_type": "float16",
    "model.model_config.rotary_dtype": "float16",
    "model.model_config.param_init_type": "float16",
    "model.model_config.use_past": True,
    "model.model_config.use_paged_attention": False,
    "model.model_config.use_past_shard": False,
    "model.model_config.offset": 0,
    "model.model_config.repetition_penalty": 1,
    "model.model_config.max_decode_length": 512,
    "model.model_config.top_k": 0,
    "model.model_config.top_p": 0.8,
    "model.model_config.do_sample": False,
    "model.model_config.rotary_pct": 1.0,
    "model.model_config.rotary_emb_base": 10000,
    "model.model_config.kv_channels": 128,
    "model.model_config.emb_dropout_prob": 0.0,
    "processor.type": "Qwen2Processor",
    "processor.tokenizer.type": "Qwen2Tokenizer",
    "processor.tokenizer.model_max_length": 32768,
    "processor.tokenizer.vocab_file": GIVEN,
    "processor.tokenizer.merges_file": GIVEN,
    "processor.tokenizer.unk_token": "<|endoftext|>",
    "processor.tokenizer.eos_token": "<|endoftext|>",
    "processor.tokenizer.pad_token": "<|endoftext|>",
    "context.mode": 0,
    "context.device_target": "Ascend",
    "context.enable_graph_kernel": False,
    "context.ascend_config.precision_mode": "must_keep_origin_dtype",
    "context.max_call_depth": 10000,
    "context.max_device_memory": "31GB",
    "context.save_graphs": False,
    "context.device_id": 0,
    "parallel.parallel_mode": 1,
    "parallel.gradients_mean": False,
    "parallel.enable_alltoall": False,
    "parallel.full_batch": True,
    "parallel.search_mode": "sharding_propagation",
    "parallel.enable_parallel_optimizer": True,
    "parallel.strategy_ckpt_config.save_file": "./ckpt_strategy.ckpt",
    "parallel.strategy_ckpt_config.only_trainable_params": False,
    "parallel.parallel_optimizer_config.gradient_accumulation_shard": False,
    "parallel.parallel_optimizer_config.parallel_optimizer_threshold": 64,
}

_TRAIN_COLUMNS = ["input_ids", "target_ids", "attention_mask"]


def _config(
    run_mode: str, parallel: bool, slices: bool, seq: int, flash: bool, batch: int, epochs: int, plan: Tuple[int, ...]
) -> Dict[str, Any]:
    dp, mp, pp, micro = plan
    batch_keys = ("train_dataset.batch_size", "runner_config.batch_size", "model.model_config.batch_size")
    return {
        **_SHARED,
        **dict.fromkeys(batch_keys, batch),
        "run_mode": run_mode,
        "use_parallel": parallel,
        "auto_trans_ckpt": slices,
        "runner_config.epochs": epochs,
        "train_dataset.input_columns": _TRAIN_COLUMNS,
        "model.model_config.seq_length": seq,
        "model.model_config.use_flash_attention": flash,
        "parallel_config.data_parallel": dp,
        "parallel_config.model_parallel": mp,
        "parallel_config.pipeline_stage": pp,
        "parallel_config.micro_batch_num": micro,
        "parallel_config.vocab_emb_dp": True,
        "lr_schedule.learning_rate": 8e-4,
        "lr_schedule.lr_end": 3e-5,
    }


def upstream(kind: str) -> Dict[str, Any]:
    """Upstream's values, dotted key -> value, of ``lora``, ``finetune`` or ``infer``."""
    if kind == "lora":
        pet = "model.model_config.pet_config."
        return {
            **_config("finetune", True, False, 2048, True, 1, 5, (4, 2, 1, 1)),
            pet + "pet_type": "lora",
            pet + "lora_rank": 64,
            pet + "lora_alpha": 16,
            pet + "lora_dropout": 0.05,
            pet + "target_modules": ".*wq|.*wk|.*wv|.*wo|.*w1|.*w2|.*w3",
            pet + "freeze_exclude": ["*wte*", "*lm_head*"],
        }
    if kind == "finetune":
        return _config("finetune", True, True, 4096, True, 2, 3, (2, 4, 2, 16))
    values = _config("predict", False, False, 2048, False, 1, 5, (1, 1, 1, 1))
    values.update({"parallel_config.vocab_emb_dp": False, "lr_schedule.learning_rate": 1e-5})
    values["train_dataset.input_columns"] = ["input_ids", "labels", "attention_mask"]
    del values["lr_schedule.lr_end"]
    return values


@dataclass(frozen=True)
class Row:
    """One key of one configuration. ``reason`` is empty when both are equal."""

    kind: str
    key: str
    upstream: Any
    ours: Any
    reason: str = ""

    @property
    def equal(self) -> bool:
        """Same value, same type of value (an int may stand for a float)."""
        return bool(self.upstream == self.ours) and isinstance(self.upstream, bool) == isinstance(self.ours, bool)


_ALL = ("lora", "finetune", "infer")
_TRAIN = ("lora", "finetune")
_LEFTOVER = "left out: a key of Qwen-v1 that nothing in LlamaConfig or the network reads"
_DEFAULT = "MindFormers' default, written out so that the file shows it"
_PATH = "a path of this run, always absolute: MindFormers links relative ones wrongly"
_UNUSED = "left out: predicting reads no data set, optimizer, schedule or callback"

REASONS: Dict[Tuple[str, ...], Dict[str, str]] = {
    _ALL: {
        "output_dir": "the run's own folder: two runs never share checkpoints or strategy files",
        "processor.tokenizer.vocab_file": _PATH,
        "processor.tokenizer.merges_file": _PATH,
        "model.model_config.rotary_pct": _LEFTOVER,
        "model.model_config.rotary_emb_base": _LEFTOVER + "; the rotary base is theta",
        "model.model_config.kv_channels": _LEFTOVER,
        "model.model_config.emb_dropout_prob": _LEFTOVER,
        "model.model_config.use_past_shard": "left out: deprecated (MindFormers warns), and False is the default",
        "processor.type": "left out: no class Qwen2Processor exists; only the tokenizer is built",
        "processor.return_tensors": _DEFAULT,
        "resume_training": _DEFAULT,
        "only_save_strategy": _DEFAULT,
        "load_checkpoint": "empty: MindFormers ignores the YAML's (and starts from random weights); given on the call",
        "model.model_config.checkpoint_name_or_path": "empty: nothing is fetched over the network",
    },
    _TRAIN: {
        "train_dataset.data_loader.dataset_dir": _PATH,
        "train_dataset.seed": "the profile's seed also orders the rows; upstream leaves it to the default",
        "model.model_config.use_past": "MindFormers forces False while training; the file says what is done",
    },
    ("lora",): {
        "auto_trans_ckpt": "the guide's own step 2 sets it: model_parallel 2 needs slices of the whole checkpoint",
        "model.model_config.pet_config.freeze_exclude": (
            "lm_head stays frozen: upstream's pattern trains its 622,329,856 parameters beside the adapter's "
            "159,907,840, at the adapter's learning rate, and an adapter shipped or merged alone would lose them; "
            "lora.adapter.train_lm_head=true is upstream's choice and costs (8 cards) 0.6 GB of Adam states a card, "
            "and its gradients"
        ),
        "model.model_config.pet_config.param_init_type": "the adapter has the model's own type (MindFormers' default)",
        "model.model_config.pet_config.compute_dtype": "the adapter has the model's own type (MindFormers' default)",
    },
    ("infer",): {
        "model.model_config.eos_token_id": (
            "151645, <|im_end|>: a ChatML-tuned model ends its answer with it and would otherwise run on to seq_length"
        ),
        "runner_config.epochs": "not read while predicting",
        "runner_config.sink_mode": "not read while predicting",
        "runner_config.sink_size": "not read while predicting",
    },
}


def reason(kind: str, key: str) -> str:
    """Why ``key`` differs in the configuration ``kind`` ("" when no reason is known)."""
    if kind == "infer" and key.split(".")[0] in _PREDICT_LEAVES_OUT:
        return _UNUSED
    for kinds, reasons in REASONS.items():
        if kind in kinds and key in reasons:
            return reasons[key]
    return ""


_PREDICT_LEAVES_OUT = (
    "train_dataset",
    "train_dataset_task",
    "runner_wrapper",
    "optimizer",
    "lr_schedule",
    "callbacks",
)


def flatten(config: Dict[str, Any], where: str = "") -> Dict[str, Any]:
    """A configuration as dotted key -> value; callbacks by their type, the data set's second mention left out."""
    found: Dict[str, Any] = {}
    for key, value in config.items():
        if where == "train_dataset_task." and key == "dataset_config":
            continue  # the same mapping as train_dataset (a YAML anchor)
        if key == "callbacks":
            value = {item["type"]: item for item in value}
        if isinstance(value, dict):
            found.update(flatten(value, f"{where}{key}."))
        else:
            found[f"{where}{key}"] = value
    return found


def rendered(kind: str) -> Dict[str, Any]:
    """What we render for the shipped profile of ``kind``, with stand-in paths."""
    profile = profiles.load(PROFILE_OF[kind])
    vocab, merges, output = Path("/path/vocab.json"), Path("/path/merges.txt"), Path("/path/output")
    if kind == "infer":
        return render.predict_config(profile, vocab_file=vocab, merges_file=merges, output_dir=output)
    return render.train_config(
        profile,
        kind,
        dataset_dir=Path("/path/alpaca.mindrecord"),
        vocab_file=vocab,
        merges_file=merges,
        output_dir=output,
    )


def compare(kind: str) -> List[Row]:
    """Every key of upstream's configuration and of ours, upstream's order first."""
    theirs, ours = upstream(kind), flatten(rendered(kind))
    keys = [*theirs, *(key for key in ours if key not in theirs)]
    rows = [Row(kind, key, theirs.get(key, ABSENT), ours.get(key, ABSENT)) for key in keys]
    return [row if row.equal else Row(kind, row.key, row.upstream, row.ours, reason(kind, row.key)) for row in rows]
