"""How much of the chip's peak a training uses: FLOPs of a token over FLOPs that the chip could do (MFU).

Counted is what the model needs, not what the chip does (recomputed activations do not count):

* 2 FLOPs per token and weight that multiplies, forward; as many backward for the gradient of the activations; as many
  again for the gradient of the weight, which LoRA's frozen weights do not have. So 6 FLOPs for a trained weight and 4
  for a frozen one. The embedding table only looks up: it is not counted; lm_head is.
* attention: 2 x 2 FLOPs forward for scores and values, per layer, token and position, of ``hidden_size`` numbers; three
  times that with backward: ``12 x num_layers x hidden_size x seq_length`` (PaLM, appendix B; masked positions count).

Padding counts as tokens, for the chip computes it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Dict, Optional, Tuple

if TYPE_CHECKING:
    from qwenlib.profile import Adapter, Model

PEAK_FLOPS: Dict[str, float] = {"910A": 256e12, "910": 256e12}
"""Dense float16 peak by the chip's name in npu-smi, FLOP/s.

Huawei's figure for the Ascend 910 (product launch 2019, Hot Chips 31): 32 cores x 4096 multiply-adds a cycle x 1 GHz.
The other bins (910B with 30 cores at 0.9 GHz, 910ProA at 1.1 GHz, 910ProB, 910PremiumA) have other peaks that Huawei
did not publish by name: for them, as for every other chip, there is no MFU rather than a guess."""


def matmul_parameters(model: Model, adapter: Optional[Adapter] = None) -> Tuple[int, int]:
    """``(trained, frozen)`` weights that multiply, of a Qwen1.5 network; biases and norms are left out."""
    hidden, wide = model.hidden_size, model.intermediate_size
    narrow = hidden * (model.n_kv_heads or model.num_heads) // model.num_heads
    shapes = {
        "wq": (hidden, hidden),
        "wk": (hidden, narrow),
        "wv": (hidden, narrow),
        "wo": (hidden, hidden),
        "w1": (hidden, wide),
        "w2": (wide, hidden),
        "w3": (hidden, wide),
    }
    layers = model.num_layers * sum(rows * columns for rows, columns in shapes.values())
    head = hidden * model.vocab_size
    if adapter is None:
        return layers + head, 0
    aimed = [shape for name, shape in shapes.items() if re.match(adapter.target_modules, f"layer.{name}")]
    added = model.num_layers * adapter.lora_rank * sum(rows + columns for rows, columns in aimed)
    return (added + head, layers) if adapter.train_lm_head else (added, layers + head)


def flops_per_token(model: Model, seq_length: int, adapter: Optional[Adapter] = None) -> float:
    """FLOPs of a training step per token (of all ranks together); ``adapter``: LoRA's settings, None: full training."""
    trained, frozen = matmul_parameters(model, adapter)
    return 6.0 * trained + 4.0 * frozen + 12.0 * model.num_layers * model.hidden_size * seq_length


def peak_flops(chip: str) -> Optional[float]:
    """Dense float16 peak of a chip by its npu-smi name, FLOP/s; None when it is not known for sure."""
    return PEAK_FLOPS.get(re.sub(r"(?i)^ascend\s*", "", chip.strip()))


def peak_here() -> Optional[float]:
    """The peak of this host's cards; None without npu-smi, and when the cards differ or are not known."""
    from qwenlib.ascend import npu_info

    peaks = {peak_flops(card.name) for card in npu_info().cards}
    return peaks.pop() if len(peaks) == 1 else None
