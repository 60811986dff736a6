"""The networks that MindFormers builds for some plans: ``python network_probe.py CASES.json FOUND.json``.

A case holds ``model`` and ``parallel`` (keywords of LlamaConfig and TransformerOpParallelConfig) and ``pet_config``
(LoraConfig's keywords, or null). Found, case by case: every parameter, the cuts of the matrices, the stages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

from qwenlib.engine.compat import apply_cpu_patches


def built(case: Dict[str, Any]) -> Any:
    """The network of a case."""
    from mindformers.models.llama import LlamaConfig, LlamaForCausalLM
    from mindformers.modules.transformer.transformer import TransformerOpParallelConfig
    from mindformers.pet import get_pet_model
    from mindformers.pet.pet_config import LoraConfig

    network = LlamaForCausalLM(
        LlamaConfig(**case["model"], parallel_config=TransformerOpParallelConfig(**case["parallel"]))
    )
    return get_pet_model(network, LoraConfig(**case["pet_config"])) if case["pet_config"] else network


def cuts(network: Any) -> Dict[str, List[int]]:
    """Parameter name -> cuts per dimension, from the matmul's own strategy."""
    found: Dict[str, List[int]] = {}
    for _, cell in network.cells_and_names():
        for operator, attribute in (
            ("matmul", "weight"),
            ("lora_a_matmul", "mindpet_delta_lora_a"),
            ("lora_b_matmul", "mindpet_delta_lora_b"),
        ):
            primitive, parameter = getattr(cell, operator, None), getattr(cell, attribute, None)
            if hasattr(primitive, "get_attr_dict") and parameter is not None:
                strategy = primitive.get_attr_dict().get("in_strategy")
                if strategy:
                    found[plain(parameter.name)] = list(strategy[1])
    return found


def optimizer_bytes(network: Any) -> int:
    """Bytes of the states that MindFormers' optimizer makes for what learns."""
    from mindformers.core.optim import FP32StateAdamWeightDecay

    made = FP32StateAdamWeightDecay(params=network.trainable_params(), learning_rate=1e-3)
    states = [*made.moments1, *made.moments2]
    assert {parameter.name for parameter in made.get_parameters()} >= {state.name for state in states}
    return sum(int(state.itemsize) * int(state.size) for state in states)


def plain(name: str) -> str:
    """A parameter's name without what wraps the network."""
    return name.replace("pet_model.", "").replace("lora_model.", "")


def describe(case: Dict[str, Any]) -> Dict[str, Any]:
    """What a case asks for, as plain values."""
    network = built(case)
    found: Dict[str, Any] = {
        "parameters": {
            plain(parameter.name): {
                "shape": list(parameter.shape),
                "learns": parameter.requires_grad,
                "may_be_sharded": parameter.parallel_optimizer,
            }
            for parameter in network.get_parameters()
        },
        "cuts": cuts(network),
        "optimizer_bytes": optimizer_bytes(network),
    }
    if case["parallel"]["pipeline_stage"] > 1 and not case["pet_config"]:
        parts = {"lm_head": network.lm_head, "norm_out": network.model.norm_out, "emb": network.model.tok_embeddings}
        found["stages"] = {name: part.pipeline_stage for name, part in parts.items()}
        found["layers"] = [layer.pipeline_stage for layer in network.model.layers]
    return found


if __name__ == "__main__":
    apply_cpu_patches()
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps([describe(case) for case in cases]), encoding="utf-8")
