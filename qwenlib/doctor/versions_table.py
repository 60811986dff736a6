"""Which versions belong together: MindFormers r1.0.a on Ascend 910A, and the stack that was tried on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Package:
    """One row: ``good`` are versions known to work; ``required`` False: the flow runs without it."""

    name: str
    good: Tuple[str, ...]
    required: bool = True
    note: str = ""


PYTHON = {"Ascend": ((3, 9),), "CPU": ((3, 9), (3, 10), (3, 11))}
PYTHON_TOLERATED = {"Ascend": ((3, 7), (3, 8)), "CPU": ()}

CANN = ("7.0",)
"""CANN releases for MindSpore 2.2.13 (prefixes)."""

PACKAGES = {
    "Ascend": (
        Package("mindspore", ("2.2.13",), note="MindSpore 2.2.10 to 2.2.14 are of the same series"),
        Package(
            "mindformers",
            ("1.0", "1.0.0", "1.0.1", "1.0.2", "1.0.a"),
            note="branch r1.0.a as source tree on PYTHONPATH",
        ),
        Package("mindpet", ("1.0.3",), note="LoRA needs it"),
        Package("acctransformer", ("1.0.0",), note="FlashAttention on the 910A; branch fa1_for_ms2.2.11"),
    ),
    "CPU": (
        Package("mindspore", ("2.7.0",), note="the CPU patches were written for it"),
        Package("mindformers", ("1.0.2",)),
        Package("mindpet", ("1.0.3",)),
        Package("numpy", ("1.26.4", "1."), note="pyarrow 12 was built for numpy 1"),
        Package("tokenizers", ("0.15.0", "0.15.")),
        Package("transformers", ("4.37.2",), False, "only compared with"),
        Package("torch", ("2.13.0",), False, "only compared with, and read from"),
        Package("safetensors", ("0.8.0", "0."), note="weights are read with it"),
    ),
}

IMPORT_NAMES = {"mindpet": "tk"}
"""Where the module is called otherwise than the package."""
