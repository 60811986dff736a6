"""Fine-tune Qwen1.5 on first-generation Ascend 910 machines, and the same way on a CPU.

``import qwenlib`` loads nothing heavy: every room imports mindspore, mindformers, torch, transformers and
matplotlib inside its functions.
"""

__version__ = "0.1.0"
