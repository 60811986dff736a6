"""What a training needs and how long it takes, before it is started: memory a card, steps, hours, disk, plans."""

from qwenlib.estimate.memory import Memory, answering, limit_bytes, per_card
from qwenlib.estimate.plans import ALPACA_ROWS, SIZES, fewest_cards, servers, settings, suggest
from qwenlib.estimate.report import data_at_hand, estimate, figure, frame, picture, text, with_size
from qwenlib.estimate.speed import GUIDE, guide_rows

__all__ = [
    "ALPACA_ROWS",
    "GUIDE",
    "SIZES",
    "Memory",
    "answering",
    "data_at_hand",
    "estimate",
    "fewest_cards",
    "figure",
    "frame",
    "guide_rows",
    "limit_bytes",
    "per_card",
    "picture",
    "servers",
    "settings",
    "suggest",
    "text",
    "with_size",
]
