"""The YAML for a 910A is upstream's, key by key; each difference stands here with its reason.

Upstream: MindFormers r1.0.a, ``research/qwen1_5/run_qwen1_5_7b_{lora,finetune,infer}.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import yaml

from qwenlib import profile as profiles
from qwenlib.engine import render
from qwenlib.errors import Refused

FILES = {"vocab_file": Path("/v/vocab.json"), "merges_file": Path("/v/merges.txt"), "output_dir": Path("/run/output")}


def upstream(kind: str) -> Dict[str, Any]:
    """Upstream's values for ``lora``, ``finetune`` or ``infer``, as dotted keys."""

    def pick(lora: Any, finetune: Any, infer: Any) -> Any:
        return {"lora": lora, "finetune": finetune, "infer": infer}[kind]

    batch_size = pick(1, 2, 1)
    found = {
        "seed": 0,
        "output_dir": "./output",
        "auto_trans_ckpt": pick(False, True, False),
        "use_parallel": pick(True, True, False),
        "run_mode": pick("finetune", "finetune", "predict"),
        "trainer.type": "CausalLanguageModelingTrainer",
        "trainer.model_name": "qwen2_7b",
        "train_dataset.data_loader.type": "MindDataset",
        "train_dataset.data_loader.shuffle": True,
        "train_dataset.input_columns": ["input_ids", pick("target_ids", "target_ids", "labels"), "attention_mask"],
        "train_dataset.num_parallel_workers": 8,
        "train_dataset.python_multiprocessing": False,
        "train_dataset.drop_remainder": True,
        "train_dataset.repeat": 1,
        "train_dataset.numa_enable": False,
        "train_dataset.prefetch_size": 1,
        "train_dataset.batch_size": batch_size,
        "train_dataset_task.type": "CausalLanguageModelDataset",
        "runner_config.batch_size": batch_size,
        "runner_config.epochs": pick(5, 3, 5),
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
        "lr_schedule.learning_rate": pick(8e-4, 8e-4, 1e-5),
        "lr_schedule.warmup_ratio": 0.01,
        "lr_schedule.total_steps": -1,
        "callbacks.0.type": "MFLossMonitor",
        "callbacks.1.type": "CheckpointMointor",
        "callbacks.1.prefix": "qwen2",
        "callbacks.1.save_checkpoint_steps": 10000,
        "callbacks.1.keep_checkpoint_max": 3,
        "callbacks.1.integrated_save": False,
        "callbacks.1.async_save": False,
        "callbacks.2.type": "ObsMonitor",
        "parallel_config.data_parallel": pick(4, 2, 1),
        "parallel_config.model_parallel": pick(2, 4, 1),
        "parallel_config.pipeline_stage": pick(1, 2, 1),
        "parallel_config.micro_batch_num": pick(1, 16, 1),
        "parallel_config.vocab_emb_dp": pick(True, True, False),
        "parallel_config.gradient_aggregation_group": 4,
        "micro_batch_interleave_num": 1,
        "recompute_config.recompute": False,
        "recompute_config.select_recompute": False,
        "recompute_config.parallel_optimizer_comm_recompute": False,
        "recompute_config.mp_comm_recompute": False,
        "recompute_config.recompute_slice_activation": False,
        "model.arch.type": "LlamaForCausalLM",
        "model.model_config.type": "LlamaConfig",
        "model.model_config.batch_size": batch_size,
        "model.model_config.seq_length": pick(2048, 4096, 2048),
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
        "model.model_config.use_flash_attention": pick(True, True, False),
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
        "processor.tokenizer.type": "Qwen2Tokenizer",
        "processor.tokenizer.model_max_length": 32768,
        "processor.tokenizer.vocab_file": "/v/vocab.json",
        "processor.tokenizer.merges_file": "/v/merges.txt",
        "processor.tokenizer.unk_token": "<|endoftext|>",
        "processor.tokenizer.eos_token": "<|endoftext|>",
        "processor.tokenizer.pad_token": "<|endoftext|>",
        "processor.type": "Qwen2Processor",
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
    if kind != "infer":
        found["lr_schedule.lr_end"] = 3e-5
    if kind == "lora":
        adapter = {
            "pet_type": "lora",
            "lora_rank": 64,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "target_modules": ".*wq|.*wk|.*wv|.*wo|.*w1|.*w2|.*w3",
            "freeze_exclude": ["*wte*", "*lm_head*"],
        }
        found.update({f"model.model_config.pet_config.{key}": value for key, value in adapter.items()})
    return found


LEFTOVERS = "nobody in LlamaForCausalLM reads it (a leftover of Qwen-v1)"
SAID_TWICE = "upstream repeats the data set by a YAML anchor; the same values stand in train_dataset"
DROPPED = {  # upstream's keys that ours leaves out
    "model.model_config.rotary_pct": LEFTOVERS,
    "model.model_config.rotary_emb_base": LEFTOVERS,
    "model.model_config.kv_channels": LEFTOVERS,
    "model.model_config.emb_dropout_prob": LEFTOVERS,
    "model.model_config.use_past_shard": "False is LlamaConfig's own default",
    "processor.type": "no class Qwen2Processor exists; MindFormers only builds the tokenizer",
}
ADDED = {  # keys that upstream's table does not have
    "resume_training": "said openly; False is MindFormers' default",
    "load_checkpoint": "empty on purpose: the checkpoint is given on the call, where MindFormers reads it",
    "only_save_strategy": "said openly; False is MindFormers' default",
    "processor.return_tensors": "ms: MindFormers' default",
    "model.model_config.checkpoint_name_or_path": "empty on purpose: nothing may be looked up or downloaded",
}
PLACE = ("/run/output", "always absolute, in the run directory: MindFormers links relative paths wrongly")
TRAINING = {
    "output_dir": PLACE,
    "model.model_config.use_past": (False, "MindFormers forces False while training; so it is said"),
}
LORA = {
    "auto_trans_ckpt": (True, "model_parallel 2 needs sliced weights; upstream's guide says True on the command line"),
    "model.model_config.pet_config.freeze_exclude": (["*wte*"], "lm_head stays frozen: 622 M parameters, a choice"),
}
TRAINING_ADDED = {
    "train_dataset.data_loader.dataset_dir": "upstream gives it on the command line",
    "train_dataset.seed": "the profile's seed orders the rows",
}
LORA_ADDED = {
    "model.model_config.pet_config.param_init_type": "the adapter has the network's number type",
    "model.model_config.pet_config.compute_dtype": "the adapter has the network's number type",
}
PREDICT = {
    "output_dir": PLACE,
    "parallel_config.vocab_emb_dp": (True, "MindFormers' default; no effect on one card"),
    "runner_config.epochs": (1, "nothing is trained"),
    "runner_config.sink_mode": (False, "nothing is trained"),
    "runner_config.sink_size": (1, "nothing is trained"),
}
PREDICT_DROPPED = ("train_dataset", "runner_wrapper", "optimizer", "lr_schedule", "callbacks")
"""Sections that predict never builds."""


def flat(tree: Any, where: str = "") -> Iterator[Tuple[str, Any]]:
    """Dotted keys; the members of a list of mappings count from 0."""
    if isinstance(tree, dict) or (isinstance(tree, list) and tree and isinstance(tree[0], dict)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from flat(value, f"{where}{key}.")
    else:
        yield where[:-1], tree


def rendered(kind: str) -> Dict[str, Any]:
    if kind == "infer":
        return render.predict_config(profiles.load("infer_7b_910a"), **FILES)
    return render.train_config(profiles.load(f"{kind}_7b_910a"), kind, dataset_dir=Path("/d/x.mindrecord"), **FILES)


def differences(kind: str) -> Tuple[List[str], List[str], Dict[str, Any]]:
    """Keys that ours lacks, keys that ours adds, and ``{key: ours}`` where the values differ."""
    ours = dict(flat(rendered(kind)))
    ours = {key: value for key, value in ours.items() if not key.startswith("train_dataset_task.dataset_config.")}
    theirs = upstream(kind)
    differing = {
        key: ours[key]
        for key in sorted(set(ours) & set(theirs))
        if ours[key] != theirs[key] or isinstance(ours[key], bool) != isinstance(theirs[key], bool)
    }
    return sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs)), differing


@pytest.mark.parametrize("kind", ["lora", "finetune"])
def test_training_differs_from_upstream_only_where_there_is_a_reason(kind: str) -> None:
    lacking, added, differing = differences(kind)
    assert lacking == sorted(DROPPED)
    assert added == sorted([*ADDED, *TRAINING_ADDED, *(LORA_ADDED if kind == "lora" else [])])
    wanted = {**TRAINING, **(LORA if kind == "lora" else {})}
    assert differing == {key: value for key, (value, _) in wanted.items()}


def test_generation_differs_from_upstream_only_where_there_is_a_reason() -> None:
    lacking, added, differing = differences("infer")
    dropped = [key for key in upstream("infer") if key.split(".")[0] in (*PREDICT_DROPPED, "train_dataset_task")]
    assert lacking == sorted([*DROPPED, *dropped])
    assert added == sorted(ADDED)
    assert differing == {key: value for key, (value, _) in PREDICT.items()}


@pytest.mark.parametrize("kind", ["lora", "finetune"])
def test_the_data_set_is_said_the_same_in_both_places(kind: str) -> None:
    tree = rendered(kind)
    assert tree["train_dataset_task"]["dataset_config"] == tree["train_dataset"], SAID_TWICE


def test_every_difference_has_a_reason() -> None:
    reasons = [*DROPPED.values(), *ADDED.values(), *TRAINING_ADDED.values(), *LORA_ADDED.values()]
    reasons += [reason for _, reason in (*TRAINING.values(), *LORA.values(), *PREDICT.values())]
    assert all(len(reason) > 15 for reason in reasons)


def test_a_change_of_any_value_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = profiles.load("lora_7b_910a", ["lora.weight_decay=0.2"])
    monkeypatch.setattr(profiles, "load", lambda name: changed)
    assert set(differences("lora")[2]) - {*TRAINING, *LORA} == {"optimizer.weight_decay"}


@pytest.mark.parametrize("kind", ["lora", "finetune", "infer"])
def test_the_yaml_is_plain_and_comes_back_as_it_was(kind: str) -> None:
    tree = rendered(kind)
    assert yaml.safe_load(yaml.safe_dump(tree, sort_keys=False)) == tree


def test_a_cpu_gets_what_a_cpu_can_do() -> None:
    tree = render.train_config(profiles.load("smoke"), "lora", dataset_dir=Path("/d/x.mindrecord"), **FILES)
    assert tree["context"]["device_target"] == "CPU" and "ascend_config" not in tree["context"]
    assert tree["parallel"] == {
        "parallel_mode": 0,
        "gradients_mean": True,
        "full_batch": False,
        "enable_parallel_optimizer": False,
    }
    assert tree["runner_config"]["sink_mode"] is False
    assert tree["model"]["model_config"]["use_rope_slice"] is True
    assert "ObsMonitor" not in [callback["type"] for callback in tree["callbacks"]]


def test_nothing_of_the_cpu_gets_into_a_910a_yaml() -> None:
    for kind in ("lora", "finetune", "infer"):
        assert "use_rope_slice" not in rendered(kind)["model"]["model_config"]


def test_one_rank_is_not_parallel_and_a_sliced_plan_lets_mindformers_slice() -> None:
    one = profiles.load("smoke", ["lora.parallel.data_parallel=1"])
    assert render.train_config(one, "lora", dataset_dir=Path("/d"), **FILES)["use_parallel"] is False
    data_parallel = profiles.load("lora_7b_910a", ["lora.parallel.model_parallel=1"])
    assert render.train_config(data_parallel, "lora", dataset_dir=Path("/d"), **FILES)["auto_trans_ckpt"] is False
    assert rendered("lora")["auto_trans_ckpt"] is True


def test_the_token_ids_and_key_value_heads_are_those_of_the_model() -> None:
    prof = profiles.load("smoke", ["model.n_kv_heads=2"])
    tree = render.predict_config(prof, tokens=render.Tokens(7, 8, 9), **FILES)["model"]["model_config"]
    assert (tree["pad_token_id"], tree["eos_token_id"], tree["bos_token_id"], tree["n_kv_heads"]) == (7, 8, 9, 2)
    assert "n_kv_heads" not in rendered("lora")["model"]["model_config"], "None would be given on as a number"


def test_the_lm_head_is_trained_by_lora_only_when_the_profile_says_so() -> None:
    def excluded(override: str) -> List[str]:
        prof = profiles.load("lora_7b_910a", [f"lora.adapter.train_lm_head={override}"])
        tree = render.train_config(prof, "lora", dataset_dir=Path("/d"), **FILES)
        return list(tree["model"]["model_config"]["pet_config"]["freeze_exclude"])

    assert excluded("true") == ["*wte*", "*lm_head*"] and excluded("false") == ["*wte*"]


def test_generation_takes_its_settings_and_the_adapter_s_shape_from_the_profile() -> None:
    prof = profiles.load("smoke", ["predict.top_p=0.5", "predict.do_sample=true", "predict.max_new_tokens=7"])
    plain = render.predict_config(prof, **FILES)["model"]["model_config"]
    assert (plain["top_p"], plain["do_sample"], plain["max_decode_length"]) == (0.5, True, 7)
    assert plain["use_past"] is True and "pet_config" not in plain
    adapted = render.predict_config(prof, adapter_task=prof.task("lora"), use_past=False, **FILES)
    assert adapted["model"]["model_config"]["pet_config"]["lora_rank"] == 16
    assert adapted["model"]["model_config"]["use_past"] is False and adapted["use_parallel"] is False


def test_a_task_that_the_profile_lacks_is_refused() -> None:
    with pytest.raises(Refused, match="no training task"):
        render.train_config(profiles.load("infer_7b_910a"), "lora", dataset_dir=Path("/d"), **FILES)
