"""Names, shapes, splits, shards, stages and what learns: as in the network that MindFormers itself builds."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Tuple

import pytest

from qwenlib import profile as profiles
from qwenlib.estimate.slices import slices
from qwenlib.profile import Model, Parallel

SMALL = Model(hidden_size=256, num_layers=6, num_heads=8, vocab_size=1024, intermediate_size=384)


def built(plan: Parallel, lora: bool, train_lm_head: bool = False) -> Tuple[Any, Any]:
    from qwenlib.engine.compat import apply_cpu_patches

    apply_cpu_patches()
    from mindformers.models.llama import LlamaConfig, LlamaForCausalLM
    from mindformers.modules.transformer.transformer import TransformerOpParallelConfig
    from mindformers.pet import get_pet_model
    from mindformers.pet.pet_config import LoraConfig

    from qwenlib.engine import render

    parallel = TransformerOpParallelConfig(
        data_parallel=plan.data_parallel,
        model_parallel=plan.model_parallel,
        pipeline_stage=plan.pipeline_stage,
        micro_batch_num=plan.micro_batch_num,
        vocab_emb_dp=plan.vocab_emb_dp,
    )
    config = LlamaConfig(
        batch_size=1,
        seq_length=64,
        hidden_size=SMALL.hidden_size,
        num_layers=SMALL.num_layers,
        num_heads=SMALL.num_heads,
        vocab_size=SMALL.vocab_size,
        intermediate_size=SMALL.intermediate_size,
        qkv_has_bias=True,
        parallel_config=parallel,
        use_rope_slice=True,
    )
    network: Any = LlamaForCausalLM(config)
    profile = profiles.load("lora_7b_910a", [f"lora.adapter.train_lm_head={str(train_lm_head).lower()}"])
    if lora:
        pet = render._pet_config(profile.model, profile.task("lora"))
        pet.pop("pet_type")
        network = get_pet_model(network, LoraConfig(**pet))
    return network, profile.task("lora").adapter if lora else None


def strategies(network: Any) -> Dict[str, Tuple[int, ...]]:
    """Parameter name -> cuts per dimension, from the matmul's own strategy."""
    found: Dict[str, Tuple[int, ...]] = {}
    for _, cell in network.cells_and_names():
        for operator, attribute in (
            ("matmul", "weight"),
            ("lora_a_matmul", "mindpet_delta_lora_a"),
            ("lora_b_matmul", "mindpet_delta_lora_b"),
        ):
            primitive, parameter = getattr(cell, operator, None), getattr(cell, attribute, None)
            if hasattr(primitive, "get_attr_dict") and parameter is not None:
                cuts = primitive.get_attr_dict().get("in_strategy")
                if cuts:
                    found[parameter.name] = tuple(cuts[1])
    return found


PLANS = [
    Parallel(4, 2),
    Parallel(2, 4, 2, 16),
    Parallel(1, 8),
    Parallel(8, 1),
    Parallel(2, 2, 1, 1, vocab_emb_dp=False),
]


@pytest.mark.stack
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("tuned", ["all", "lora", "lora and lm_head"])
def test_slices_are_mindformers_own(plan: Parallel, tuned: str) -> None:
    network, adapter = built(plan, tuned != "all", tuned == "lora and lm_head")
    ours = {item.name: item for item in slices(SMALL, plan, adapter)}
    theirs = {parameter.name.replace("pet_model.", ""): parameter for parameter in network.get_parameters()}
    plain = {name.replace("lora_model.", ""): parameter for name, parameter in theirs.items()}
    assert set(ours) == set(plain)
    assert {name: item.shape for name, item in ours.items()} == {name: p.shape for name, p in plain.items()}
    learned = {name for name, parameter in plain.items() if parameter.requires_grad}
    assert {name for name, item in ours.items() if item.trainable} == learned
    split = strategies(network)
    wrong: List[Any] = []
    for name, cuts in split.items():
        if ours[name].split != cuts:
            wrong.append((name, ours[name].split, cuts))
    assert wrong == []
    assert len(split) == 7 * SMALL.num_layers * (1 if tuned == "all" else 3) + 1
    for name, item in ours.items():
        if not plain[name].parallel_optimizer:
            assert item.shard == 1, name


@pytest.mark.stack
@pytest.mark.parametrize("plan", [Parallel(1, 1, 2, 4), Parallel(1, 1, 3, 4), Parallel(1, 1, 4, 4)])
def test_stages_are_mindformers_own(plan: Parallel) -> None:
    network, _ = built(plan, False)
    layers = [cell.pipeline_stage for cell in network.model.layers]
    ours = {item.name: item.stage for item in slices(SMALL, plan)}
    assert [ours[f"model.layers.{number}.attention.wq.weight"] for number in range(SMALL.num_layers)] == layers
    assert ours["lm_head.weight"] == network.lm_head.pipeline_stage
    assert ours["model.norm_out.weight"] == network.model.norm_out.pipeline_stage
    assert ours["model.tok_embeddings.embedding_weight"] == network.model.tok_embeddings.pipeline_stage


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
