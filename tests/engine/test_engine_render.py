"""The rendered MindFormers YAML. That its values are upstream's, key by key, is held by tests/profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml

from qwenlib import profile as profiles
from qwenlib.engine import render
from qwenlib.errors import Refused

FILES = {"vocab_file": Path("/v/vocab.json"), "merges_file": Path("/v/merges.txt"), "output_dir": Path("/run/output")}


def rendered(kind: str) -> Dict[str, Any]:
    if kind == "infer":
        return render.predict_config(profiles.load("infer_7b_910a"), **FILES)
    return render.train_config(profiles.load(f"{kind}_7b_910a"), kind, dataset_dir=Path("/d/x.mindrecord"), **FILES)


@pytest.mark.parametrize("kind", ["lora", "finetune"])
def test_the_data_set_is_said_the_same_in_both_places(kind: str) -> None:
    tree = rendered(kind)
    assert tree["train_dataset_task"]["dataset_config"] == tree["train_dataset"]


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
    assert (tree["pad_token_id"], tree["eos_token_id"], tree["bos_token_id"], tree["n_kv_heads"]) == (7, 9, 9, 2)
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
