"""What a training needs and how long it takes, before it is started: memory a card, steps, hours, disk, plans."""

from qwenlib.estimate.memory import Memory, limit_bytes, per_card
from qwenlib.estimate.plans import SIZES, suggest
from qwenlib.estimate.report import estimate, figure, frame, text, with_size
from qwenlib.estimate.speed import GUIDE, flops_per_token, guide_rows

__all__ = [
    "GUIDE",
    "SIZES",
    "Memory",
    "estimate",
    "figure",
    "flops_per_token",
    "frame",
    "guide_rows",
    "limit_bytes",
    "per_card",
    "suggest",
    "text",
    "with_size",
]
