"""Profile -> the YAML that MindFormers reads.

Keys and their nesting are upstream's (``research/qwen1_5/run_qwen1_5_7b_{lora,finetune,infer}.yaml``, r1.0.a); keys
that nobody there reads (``rotary_emb_base``, ``kv_channels``, …) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional

from qwenlib.profile import Model, Parallel, Predict, Profile, Task

COLUMNS = ["input_ids", "target_ids", "attention_mask"]


@dataclass(frozen=True)
class Tokens:
    """The ids that the network must know; Qwen1.5's own by default."""

    pad_token_id: int = 151643
    eos_token_id: int = 151643
    bos_token_id: int = 151643

    @property
    def im_end_token_id(self) -> int:
        """``<|im_end|>``, which ends a ChatML answer: <|endoftext|>, <|im_start|> and it stand side by side."""
        return self.pad_token_id + 2


def train_config(
    profile: Profile,
    task_name: str,
    *,
    dataset_dir: Path,
    vocab_file: Path,
    merges_file: Path,
    output_dir: Path,
    tokens: Optional[Tokens] = None,
) -> Dict[str, Any]:
    """The MindFormers configuration of a training task.

    Raises:
        Refused: the profile has no such task.
    """
    task = profile.task(task_name)
    config = _common(profile, task.parallel, "finetune", output_dir, vocab_file, merges_file, tokens or Tokens())
    model_config = config["model"]["model_config"]
    model_config.update(batch_size=task.batch_size, use_past=False)
    config["recompute_config"]["recompute"] = task.recompute
    if task.adapter is not None:
        model_config["pet_config"] = _pet_config(profile.model, task)
    config["runner_config"] = {
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "sink_mode": task.sink_mode,
        "sink_size": task.sink_size,
    }
    dataset = {
        "data_loader": {"type": "MindDataset", "dataset_dir": str(dataset_dir), "shuffle": True},
        "input_columns": COLUMNS,
        "num_parallel_workers": profile.num_parallel_workers,
        "python_multiprocessing": False,
        "drop_remainder": True,
        "batch_size": task.batch_size,
        "repeat": 1,
        "numa_enable": False,
        "prefetch_size": 1,
        "seed": profile.seed,
    }
    config["train_dataset"] = dataset
    config["train_dataset_task"] = {"type": "CausalLanguageModelDataset", "dataset_config": dataset}
    config["runner_wrapper"] = {
        "type": "MFTrainOneStepCell",
        "scale_sense": {
            "type": "DynamicLossScaleUpdateCell",
            "loss_scale_value": task.loss_scale_value,
            "scale_factor": 2,
            "scale_window": task.scale_window,
        },
        "use_clip_grad": True,
    }
    config["optimizer"] = {
        "type": "FP32StateAdamWeightDecay",
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1.0e-6,
        "weight_decay": task.weight_decay,
    }
    config["lr_schedule"] = {
        "type": "CosineWithWarmUpLR",
        "learning_rate": task.learning_rate,
        "lr_end": task.lr_end,
        "warmup_ratio": task.warmup_ratio,
        "total_steps": -1,
    }
    config["callbacks"] = [
        {"type": "MFLossMonitor"},
        {
            "type": "CheckpointMointor",  # spelled so in r1.0
            "prefix": "qwen2",
            "save_checkpoint_steps": task.save_checkpoint_steps,
            "keep_checkpoint_max": task.keep_checkpoint_max,
            "integrated_save": False,
            "async_save": False,
        },
    ]
    if profile.device_target == "Ascend":
        config["callbacks"].append({"type": "ObsMonitor"})
    return config


def predict_config(
    profile: Profile,
    *,
    vocab_file: Path,
    merges_file: Path,
    output_dir: Path,
    tokens: Optional[Tokens] = None,
    adapter_task: Optional[Task] = None,
    batch_size: int = 1,
    use_past: bool = True,
    model_parallel: int = 1,
) -> Dict[str, Any]:
    """The MindFormers configuration for generation; ``adapter_task`` gives the LoRA shape of a LoRA checkpoint.

    With ``model_parallel`` above 1 the checkpoint must be a model_dir, which MindFormers slices for the ranks itself.
    """
    tokens = tokens or Tokens()
    plan = Parallel(vocab_emb_dp=False, model_parallel=model_parallel)
    config = _common(profile, plan, "predict", output_dir, vocab_file, merges_file, tokens)
    config["runner_config"] = {"epochs": 1, "batch_size": batch_size, "sink_mode": False, "sink_size": 1}
    settings = profile.predict or Predict()
    model_config = config["model"]["model_config"]
    model_config.update(
        batch_size=batch_size,
        eos_token_id=tokens.im_end_token_id,
        use_past=use_past,
        use_flash_attention=False,
        repetition_penalty=settings.repetition_penalty,
        do_sample=settings.do_sample,
        top_k=settings.top_k,
        top_p=settings.top_p,
        max_decode_length=settings.max_new_tokens,
    )
    if adapter_task is not None and adapter_task.adapter is not None:
        model_config["pet_config"] = _pet_config(profile.model, adapter_task)
    return config


def _common(
    profile: Profile,
    plan: Parallel,
    run_mode: str,
    output_dir: Path,
    vocab_file: Path,
    merges_file: Path,
    tokens: Tokens,
) -> Dict[str, Any]:
    on_cpu = profile.device_target == "CPU"
    context: Dict[str, Any] = {
        "mode": 0,  # graph
        "device_target": profile.device_target,
        "enable_graph_kernel": False,
        "max_call_depth": 10000,
        "max_device_memory": profile.max_device_memory,
        "save_graphs": False,
        "device_id": 0,
    }
    if not on_cpu:
        context["ascend_config"] = {"precision_mode": "must_keep_origin_dtype"}
    config: Dict[str, Any] = {
        "seed": profile.seed,
        "output_dir": str(output_dir),
        "run_mode": run_mode,
        "resume_training": False,
        "load_checkpoint": "",
        "auto_trans_ckpt": plan.model_parallel * plan.pipeline_stage > 1,
        "only_save_strategy": False,
        "use_parallel": plan.ranks > 1,
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "qwen2_7b"},
        "context": context,
        "parallel": _parallel(on_cpu),
        "parallel_config": {
            "data_parallel": plan.data_parallel,
            "model_parallel": plan.model_parallel,
            "pipeline_stage": plan.pipeline_stage,
            "micro_batch_num": plan.micro_batch_num,
            "vocab_emb_dp": plan.vocab_emb_dp,
            "gradient_aggregation_group": plan.gradient_aggregation_group,
        },
        "micro_batch_interleave_num": 1,
        "recompute_config": {
            "recompute": False,
            "select_recompute": False,
            "parallel_optimizer_comm_recompute": False,
            "mp_comm_recompute": False,
            "recompute_slice_activation": False,
        },
        "model": {
            "arch": {"type": "LlamaForCausalLM"},
            "model_config": _model_config(profile, tokens, on_cpu),
        },
        "processor": {
            "return_tensors": "ms",
            "tokenizer": {
                "type": "Qwen2Tokenizer",
                "model_max_length": profile.model.max_position_embedding,
                "vocab_file": str(vocab_file),
                "merges_file": str(merges_file),
                "unk_token": "<|endoftext|>",
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
            },
        },
    }
    if profile.remote_save_url:
        config["remote_save_url"] = profile.remote_save_url
    return config


def _parallel(on_cpu: bool) -> Dict[str, Any]:
    if on_cpu:  # MindSpore's CPU collectives know data_parallel only
        return {
            "parallel_mode": 0,
            "gradients_mean": True,
            "full_batch": False,
            "enable_parallel_optimizer": False,
        }
    return {
        "parallel_mode": 1,  # semi-auto
        "gradients_mean": False,
        "enable_alltoall": False,
        "full_batch": True,
        "search_mode": "sharding_propagation",
        "enable_parallel_optimizer": True,
        "strategy_ckpt_config": {"save_file": "./ckpt_strategy.ckpt", "only_trainable_params": False},
        "parallel_optimizer_config": {"gradient_accumulation_shard": False, "parallel_optimizer_threshold": 64},
    }


def _model_config(profile: Profile, tokens: Tokens, on_cpu: bool) -> Dict[str, Any]:
    model: Model = profile.model
    config: Dict[str, Any] = {
        "type": "LlamaConfig",
        "batch_size": 1,
        "seq_length": profile.data.seq_length,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "vocab_size": model.vocab_size,
        "intermediate_size": model.intermediate_size,
        "qkv_has_bias": True,
        "rms_norm_eps": model.rms_norm_eps,
        "theta": model.theta,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "compute_dtype": model.compute_dtype,
        "layernorm_compute_type": model.layernorm_compute_type,
        "softmax_compute_type": model.softmax_compute_type,
        "rotary_dtype": model.rotary_dtype,
        "param_init_type": model.param_init_type,
        "use_past": False,
        "use_flash_attention": model.use_flash_attention,
        "use_paged_attention": False,
        "offset": 0,
        "checkpoint_name_or_path": "",
        "repetition_penalty": 1,
        "max_decode_length": 512,
        "top_k": 0,
        "top_p": 0.8,
        "do_sample": False,
    }
    if model.n_kv_heads is not None:
        config["n_kv_heads"] = model.n_kv_heads
    if on_cpu:
        config["use_rope_slice"] = True  # the other rotary path uses an operator without a CPU kernel
    return config


def _pet_config(model: Model, task: Task) -> Dict[str, Any]:
    adapter = task.adapter
    assert adapter is not None
    return {
        "pet_type": "lora",
        "lora_rank": adapter.lora_rank,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "target_modules": adapter.target_modules,
        "freeze_exclude": ["*wte*", "*lm_head*"] if adapter.train_lm_head else ["*wte*"],
        "param_init_type": model.param_init_type,
        "compute_dtype": model.compute_dtype,
    }
