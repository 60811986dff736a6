"""Is a converted checkpoint the same network? MindFormers' logits against transformers' on the same tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Dict, List, Union

from qwenlib.engine import single
from qwenlib.errors import WorkFailed
from qwenlib.profile import Profile

TOLERANCE = 1e-4
"""Largest absolute difference of float32 logits that counts as equal (4e-6 is usual for a tiny network)."""


def sample_tokens(vocab_size: int, rows: int, length: int, seed: int = 0) -> List[List[int]]:
    """``rows`` x ``length`` random ids below ``vocab_size`` (base tokens only: padding would be masked)."""
    draw = random.Random(seed)
    return [[draw.randrange(vocab_size) for _ in range(length)] for _ in range(rows)]


def reference_logits(torch_ckpt_dir: Union[str, Path], input_ids: List[List[int]]) -> Any:
    """transformers' logits, float32 [rows, length, vocabulary], of the Hugging Face folder; nothing is downloaded."""
    import torch
    from transformers import Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading some files: headless it stays at 0 %
    network = Qwen2ForCausalLM.from_pretrained(str(torch_ckpt_dir), torch_dtype=torch.float32, local_files_only=True)
    network.eval()
    with torch.no_grad():
        return network(input_ids=torch.tensor(input_ids)).logits.numpy()


def same_logits(
    profile: Profile,
    *,
    torch_ckpt_dir: Union[str, Path],
    load_checkpoint: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    run_dir: Union[str, Path],
    rows: int = 4,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Dict[str, Any]:
    """Compare both sides on ``rows`` random sequences of ``seq_length`` tokens, in float32.

    Returns:
        ``{"max_abs_diff", "argmax_equal", "tokens", "tolerance", "per_position"}``; ``per_position`` is the largest
        difference at each position of a row, for a plot.

    Raises:
        WorkFailed: the difference exceeds ``tolerance`` or a most likely token differs: the conversion is wrong.
    """
    import numpy

    vocabulary = len(json.loads(Path(vocab_file).read_text(encoding="utf-8")))
    ids = sample_tokens(vocabulary, rows, profile.data.seq_length, seed)
    ours = single.logits(
        profile,
        ids,
        load_checkpoint=load_checkpoint,
        vocab_file=vocab_file,
        merges_file=merges_file,
        run_dir=run_dir,
    )
    theirs = reference_logits(torch_ckpt_dir, ids)
    difference = numpy.abs(ours - theirs)
    found = {
        "max_abs_diff": float(difference.max()),
        "argmax_equal": bool((ours.argmax(-1) == theirs.argmax(-1)).all()),
        "tokens": int(difference.shape[0] * difference.shape[1]),
        "tolerance": tolerance,
        "per_position": difference.max(axis=(0, 2)).tolist(),
    }
    if found["max_abs_diff"] > tolerance or not found["argmax_equal"]:
        raise WorkFailed(
            f"{load_checkpoint} is not the network of {torch_ckpt_dir}: the logits differ by "
            f"{found['max_abs_diff']:.2e} (allowed: {tolerance:.0e}), same most likely tokens: {found['argmax_equal']}."
        )
    return found


def figure(found: Dict[str, Any]) -> Any:
    """The largest difference at each position of a row, against the tolerance (logarithmic)."""
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
    values = [max(value, 1e-9) for value in found["per_position"]]
    axes.semilogy(values, drawstyle="steps-mid", label="largest |MindFormers - transformers|")
    axes.axhline(found["tolerance"], color="tab:red", linestyle="--", label=f"allowed: {found['tolerance']:.0e}")
    axes.set(xlabel="position in the row", ylabel="logits", title=f"{found['tokens']} tokens, float32")
    axes.legend(loc="best", fontsize="small")
    return picture
