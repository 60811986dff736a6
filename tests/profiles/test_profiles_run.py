"""The 910A profiles, made small and moved to the CPU, are built and run by the real MindFormers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from qwenlib import data, weights
from qwenlib import profile as profiles

SMALL = ["device_target=CPU", "num_parallel_workers=1", "data.seq_length=96"] + [
    f"model.{size}"
    for size in (
        "hidden_size=64",
        "num_layers=2",
        "num_heads=2",
        "vocab_size=512",
        "intermediate_size=96",
        "param_init_type=float32",
        "compute_dtype=float32",
        "softmax_compute_type=float32",
        "rotary_dtype=float32",
        "use_flash_attention=false",
    )
]
"""What the CPU needs: facts of its kernels (engine/render.py, profile.check), not of the profile."""


def on_cpu(task: str) -> List[str]:
    plan = [f"{task}.parallel.{key}=1" for key in ("data_parallel", "model_parallel", "pipeline_stage")]
    return [*SMALL, *plan, f"{task}.parallel.micro_batch_num=1", f"{task}.sink_mode=false", f"{task}.epochs=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    folder = tmp_path_factory.mktemp("small")
    model = profiles.load("lora_7b_910a", on_cpu("lora")).model
    weights.make_tiny(folder / "hf", data.plain_texts(data.sample_path()), model, steps=1)
    weights.convert(folder / "hf", folder / "model_dir", dtype="float32")
    records = json.loads(data.sample_path().read_text(encoding="utf-8"))[:4]
    (folder / "alpaca.json").write_text(json.dumps(records), encoding="utf-8")
    data.convert(folder / "alpaca.json", folder / "messages.jsonl")
    vocabulary = {"vocab_file": folder / "hf" / "vocab.json", "merges_file": folder / "hf" / "merges.txt"}
    data.build(folder / "messages.jsonl", folder / "t.mindrecord", *vocabulary.values(), 96)
    return {"load_checkpoint": folder / "model_dir", "train_dataset": folder / "t.mindrecord", **vocabulary}


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task", "settings", "trainable"),
    [
        # Per layer: rank 64 x (4 x (64 + 64) + 3 x (64 + 96)); upstream's choice adds lm_head, 512 x 64.
        ("lora_7b_910a", "lora", [], 2 * 64 * (4 * 128 + 3 * 160)),
        ("lora_7b_910a", "lora", ["lora.adapter.train_lm_head=true"], 2 * 64 * (4 * 128 + 3 * 160) + 512 * 64),
        ("finetune_7b_910a", "finetune", [], 2 * (4 * 64 * 64 + 3 * 64 + 3 * 64 * 96 + 2 * 64) + 64 + 2 * 512 * 64),
    ],
)
def test_small_profile_trains(
    name: str, task: str, settings: List[str], trainable: int, made: Dict[str, Any], tmp_path: Path
) -> None:
    from qwenlib.engine import work

    profile = profiles.load(name, [*on_cpu(task), f"{task}.batch_size=2", *settings])
    found = work.finetune(profile, task, run_dir=tmp_path, **made)
    assert found["steps"] == 2
    assert found["trainable_parameters"] == trainable
    assert found["checkpoint"].is_file()


@pytest.mark.stack
@pytest.mark.slow
def test_small_infer_profile_answers(made: Dict[str, Any], tmp_path: Path) -> None:
    from qwenlib.infer import Session

    profile = profiles.load("infer_7b_910a", SMALL)
    files = {key: value for key, value in made.items() if key != "train_dataset"}
    with Session(profile, run_dir=tmp_path, **files) as session:
        found = session.ask("Give three tips", chat=False, max_new_tokens=3)
    assert found["prompt"] == "Give three tips"
    assert 1 <= found["answer_tokens"] <= 3
