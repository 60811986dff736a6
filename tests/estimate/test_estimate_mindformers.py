"""Names, shapes, splits, shards, stages and what learns: as in the network that MindFormers itself builds."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from qwenlib import profile as profiles
from qwenlib.estimate.slices import slices
from qwenlib.profile import Adapter, Model, Parallel

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = Model(hidden_size=256, num_layers=6, num_heads=8, vocab_size=1024, intermediate_size=384)

PLANS = [
    Parallel(4, 2),
    Parallel(2, 4, 2, 16),
    Parallel(1, 8),
    Parallel(8, 1),
    Parallel(2, 2, 1, 1, vocab_emb_dp=False),
]


TUNED: Dict[str, Any] = {"all": None, "lora": Adapter(), "lora and lm_head": Adapter(train_lm_head=True)}
STAGED = [Parallel(1, 1, 2, 4), Parallel(1, 1, 3, 4), Parallel(1, 1, 4, 4)]
CASES: List[Tuple[Parallel, str]] = [
    *((plan, tuned) for plan in PLANS for tuned in TUNED),
    *((p, "all") for p in STAGED),
]


def asked(plan: Parallel, adapter: Any) -> Dict[str, Any]:
    """The case as the probe reads it; LoRA's part is what is rendered for the 910A."""
    from qwenlib.engine import render

    sizes = ("hidden_size", "num_layers", "num_heads", "vocab_size", "intermediate_size")
    model = {**{name: getattr(SMALL, name) for name in sizes}, "batch_size": 1, "seq_length": 64}
    parallel = {key: value for key, value in asdict(plan).items() if key != "gradient_aggregation_group"}
    pet = None
    if adapter is not None:
        settings = [f"lora.adapter.train_lm_head={str(adapter.train_lm_head).lower()}"]
        profile = profiles.load("lora_7b_910a", settings)
        pet = render._pet_config(profile.model, profile.task("lora"))
        pet.pop("pet_type")
    return {"model": {**model, "qkv_has_bias": True, "use_rope_slice": True}, "parallel": parallel, "pet_config": pet}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Dict[Tuple[Parallel, str], Any]:
    """What MindFormers built for each case, in a process of its own."""
    folder = tmp_path_factory.mktemp("networks")
    cases = [asked(plan, TUNED[tuned]) for plan, tuned in CASES]
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    probe = Path(__file__).with_name("network_probe.py")
    done = subprocess.run(
        [sys.executable, str(probe), str(folder / "cases.json"), str(folder / "found.json")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads((folder / "found.json").read_text(encoding="utf-8"))))


@pytest.mark.stack
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("tuned", sorted(TUNED))
def test_slices_are_mindformers_own(plan: Parallel, tuned: str, networks: Dict[Tuple[Parallel, str], Any]) -> None:
    found = networks[plan, tuned]
    theirs = found["parameters"]
    ours = {item.name: item for item in slices(SMALL, plan, TUNED[tuned])}
    assert {name: list(item.shape) for name, item in ours.items()} == {
        name: item["shape"] for name, item in theirs.items()
    }
    learned = {name for name, item in theirs.items() if item["learns"]}
    assert {name for name, item in ours.items() if item.trainable} == learned
    assert {name: list(ours[name].split) for name in found["cuts"]} == found["cuts"]
    assert len(found["cuts"]) == 7 * SMALL.num_layers * (1 if tuned == "all" else 3) + 1
    assert sum(8 * item.size for item in ours.values() if item.trainable) == found["optimizer_bytes"]
    assert [name for name, item in ours.items() if item.shard > 1 and not theirs[name]["may_be_sharded"]] == []


@pytest.mark.stack
@pytest.mark.parametrize("plan", STAGED)
def test_stages_are_mindformers_own(plan: Parallel, networks: Dict[Tuple[Parallel, str], Any]) -> None:
    found = networks[plan, "all"]
    ours = {item.name: item.stage for item in slices(SMALL, plan)}
    layers = [ours[f"model.layers.{number}.attention.wq.weight"] for number in range(SMALL.num_layers)]
    assert layers == found["layers"]
    assert {
        "lm_head": ours["lm_head.weight"],
        "norm_out": ours["model.norm_out.weight"],
        "emb": ours["model.tok_embeddings.embedding_weight"],
    } == found["stages"]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("tuned", sorted(TUNED))
def test_a_card_holds_what_the_slicer_writes_for_it(plan: Parallel, tuned: str) -> None:
    """What is reckoned with is what `qwenlib weights slice` writes, rank by rank."""
    from qwenlib.weights.layout import Planned
    from qwenlib.weights.slice_plan import make_plan

    ours = slices(SMALL, plan, TUNED[tuned])
    written = make_plan([Planned(item.name, "float16", item.shape) for item in ours], plan)
    for rank in range(plan.ranks):
        for item in ours:
            window = written.window(item.name, item.shape, rank)
            here = rank // (plan.data_parallel * plan.model_parallel) == item.stage
            assert (window is not None) == here, item.name
            if window is not None:
                area = (window.bottom - window.top) * (window.right - window.left)
                assert area == item.kept, (item.name, window)


def test_slices_of_the_seven_b_are_those_of_the_facts() -> None:
    def kept(plan: Parallel, name: str) -> int:
        return next(item.kept for item in slices(Model(), plan) if item.name.endswith(name))

    lora, full = Parallel(4, 2), Parallel(2, 4, 2, 16)
    expected = [
        ("0.attention.wq.weight", 512 * 4096, 512 * 4096),
        ("0.attention.wo.weight", 1024 * 2048, 2048 * 1024),
        ("0.feed_forward.w1.weight", 1376 * 4096, 1376 * 4096),
        ("0.feed_forward.w2.weight", 1024 * 5504, 2048 * 2752),
        ("lm_head.weight", 18992 * 4096, 18992 * 4096),
        ("embedding_weight", 151936 * 4096, 151936 * 4096),
    ]
    assert [(name, kept(lora, name), kept(full, name)) for name, _, _ in expected] == expected
    assert sum(math.prod(item.shape) for item in slices(Model(), full)) == 7_721_324_544
