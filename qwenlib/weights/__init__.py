"""Checkpoints: read what Hugging Face ships, write what MindSpore loads, and prove that they agree."""

from qwenlib.weights.convert import convert
from qwenlib.weights.hf import read_folder
from qwenlib.weights.names import entries
from qwenlib.weights.place import locate
from qwenlib.weights.tiny import make_tiny

__all__ = ["convert", "entries", "locate", "make_tiny", "read_folder"]
