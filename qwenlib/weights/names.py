"""The name and shape of every tensor of a Qwen1.5 network, in Hugging Face's and in MindFormers' words.

Order and names: MindFormers ``LlamaForCausalLM`` (r1.0.a); upstream's ``research/qwen1_5/convert_weight.py`` renames
the same way. Nothing is transposed or permuted: both sides keep Linear weights as [out, in] and rotate halves.
"""

from __future__ import annotations

import math
import re
from typing import Dict, List, NamedTuple, Optional, Tuple

from qwenlib.profile import Adapter, Model

LORA_A, LORA_B = ".mindpet_delta_lora_a", ".mindpet_delta_lora_b"
"""How MindPet names the two matrices of a layer."""


class Entry(NamedTuple):
    """One tensor: its two names and its shape."""

    hf: str
    ms: str
    shape: Tuple[int, ...]


def entries(model: Model) -> List[Entry]:
    """Every tensor of the network in MindSpore's order: 12 a layer and 3 more (387 for the 7B)."""
    hidden, inner, vocab = model.hidden_size, model.intermediate_size, model.vocab_size
    key_value = hidden // model.num_heads * (model.n_kv_heads or model.num_heads)
    found = [Entry("model.embed_tokens.weight", "model.tok_embeddings.embedding_weight", (vocab, hidden))]
    for layer in range(model.num_layers):
        source, target = f"model.layers.{layer}.", f"model.layers.{layer}."
        found += [
            Entry(f"{source}input_layernorm.weight", f"{target}attention_norm.weight", (hidden,)),
            Entry(f"{source}post_attention_layernorm.weight", f"{target}ffn_norm.weight", (hidden,)),
        ]
        for part, rows in (("q", hidden), ("k", key_value), ("v", key_value)):
            attention = f"{source}self_attn.{part}_proj."
            found += [
                Entry(f"{attention}weight", f"{target}attention.w{part}.weight", (rows, hidden)),
                Entry(f"{attention}bias", f"{target}attention.w{part}.bias", (rows,)),
            ]
        found += [
            Entry(f"{source}self_attn.o_proj.weight", f"{target}attention.wo.weight", (hidden, hidden)),
            Entry(f"{source}mlp.gate_proj.weight", f"{target}feed_forward.w1.weight", (inner, hidden)),
            Entry(f"{source}mlp.down_proj.weight", f"{target}feed_forward.w2.weight", (hidden, inner)),
            Entry(f"{source}mlp.up_proj.weight", f"{target}feed_forward.w3.weight", (inner, hidden)),
        ]
    found += [
        Entry("model.norm.weight", "model.norm_out.weight", (hidden,)),
        Entry("lm_head.weight", "lm_head.weight", (vocab, hidden)),
    ]
    return found


def count(model: Model) -> Dict[str, int]:
    """``{"tensors": …, "parameters": …}`` of the network."""
    found = entries(model)
    return {"tensors": len(found), "parameters": sum(math.prod(entry.shape) for entry in found)}


def full_shapes(model: Model, adapter: Optional[Adapter] = None) -> Dict[str, Tuple[int, ...]]:
    """Full shapes of the network's parameters, and of those that LoRA adds to it."""
    found = {entry.ms: entry.shape for entry in entries(model)}
    if adapter is not None:
        for name, shape in list(found.items()):
            layer = name[: -len(".weight")]
            matrix = ".layers." in name and name.endswith(".weight") and len(shape) == 2
            if matrix and re.match(adapter.target_modules, layer):  # as MindPet matches a cell's name
                found[layer + LORA_A] = (adapter.lora_rank, shape[1])
                found[layer + LORA_B] = (shape[0], adapter.lora_rank)
    return found
