"""Ascend chip names and what they mean.

The trap: first-generation Ascend 910 cards report 910PremiumA, 910ProA, 910A, 910ProB or plain 910B; the second
generation (Atlas A2) reports 910B with a digit behind it. Only the first generation is what this project is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

FIRST_GENERATION = ("910PremiumA", "910ProA", "910A", "910ProB", "910B")


@dataclass(frozen=True)
class Family:
    """A chip generation. ``key`` is 910A, A2, A3, other or unknown."""

    key: str
    text: str


def family(name: str, ddr_total: Optional[int] = None) -> Family:
    """The generation of a chip by its ``npu-smi info`` name; an unknown name is said to be unknown, never guessed.

    ``ddr_total`` (MB) breaks no tie, but when given it must agree: the first generation has DDR of its own, A2 none.
    """
    bare = re.sub(r"(?i)^ascend\s*", "", name.strip())
    if bare in FIRST_GENERATION or bare == "910":
        if bare == "910B" and ddr_total == 0:
            return Family(
                "unknown", f"{name} without DDR: neither a first-generation 910B (which has DDR) nor a named A2"
            )
        return Family("910A", f"{name} is a first-generation Ascend 910 (the 910A family, 32 GiB HBM)")
    if re.match(r"910B\d", bare):
        return Family("A2", f"{name} is second generation (Atlas A2), not a 910A")
    if re.match(r"(910_)?93\d\d|910C", bare):
        return Family("A3", f"{name} is third generation (Atlas A3), not a 910A")
    if re.match(r"(310|610|710)", bare):
        return Family("other", f"{name} is an inference chip, not a 910A")
    return Family("unknown", f"{name} is not a chip name this program knows")
