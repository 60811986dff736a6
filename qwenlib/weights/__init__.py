"""Checkpoints: read what Hugging Face ships, write what MindSpore loads, and prove that they agree."""

from qwenlib.weights.compare import check
from qwenlib.weights.convert import convert
from qwenlib.weights.export import export
from qwenlib.weights.hf import read_folder
from qwenlib.weights.lora import join_adapter, merge_lora, save_adapter
from qwenlib.weights.names import entries
from qwenlib.weights.place import locate
from qwenlib.weights.runs import list_checkpoints
from qwenlib.weights.slicing import merge, slice_checkpoint, slice_for_task
from qwenlib.weights.source import open_source
from qwenlib.weights.stats import figure, layer_statistics
from qwenlib.weights.tiny import make_tiny

__all__ = [
    "check",
    "convert",
    "entries",
    "export",
    "figure",
    "join_adapter",
    "layer_statistics",
    "list_checkpoints",
    "locate",
    "make_tiny",
    "merge",
    "merge_lora",
    "open_source",
    "read_folder",
    "save_adapter",
    "slice_checkpoint",
    "slice_for_task",
]
