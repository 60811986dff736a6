"""Keeping conversations out of training, so that a trained model can be measured on what it has not seen."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, Dict, List, Set, Union

from qwenlib.data.chatml import Message, read_messages
from qwenlib.errors import Refused
from qwenlib.files import atomic_path, check_target


def hold_out(messages_file: Union[str, Path], held_out_file: Union[str, Path], count: int) -> Dict[str, Any]:
    """Move ``count`` conversations out of ``messages_file`` (JSON Lines) into ``held_out_file``.

    They lie evenly over the file. Conversations that ask the same first question go together, so that none is both
    trained and measured; there can be more than ``count`` for that reason. Same file, same choice. With ``count`` 0
    nothing is moved and an older ``held_out_file`` is taken away.

    Returns:
        ``{"train", "held_out"}``: conversations on either side.

    Raises:
        Refused: ``count`` is below 0 or would leave fewer to train on than to measure with; the file is malformed;
            both are the same file.
    """
    source, target = Path(messages_file), Path(held_out_file)
    if count < 0:
        raise Refused(f"hold_out must be at least 0, found {count}.")
    if source.exists() and target.exists() and os.path.samefile(source, target):
        raise Refused(f"{target} is the messages file itself; give another file for what is held out.")
    check_target(target)
    marks = [_question(messages) for messages in read_messages(source)]
    if count == 0:
        target.unlink(missing_ok=True)
        return {"train": len(marks), "held_out": 0}
    different = list(dict.fromkeys(marks))
    if 2 * count > len(different):
        raise Refused(
            f"hold_out {count} is too much: {source} has {len(different)} different questions, and at least half of "
            "them must be left to train on."
        )
    chosen: Set[bytes] = {different[(2 * place + 1) * len(different) // (2 * count)] for place in range(count)}
    counts = {"train": 0, "held_out": 0}
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(open(source, encoding="utf-8"))
        parts: List[Path] = [stack.enter_context(atomic_path(path)) for path in (target, source)]
        held, train = (stack.enter_context(open(part, "w", encoding="utf-8")) for part in parts)
        for line, mark in zip(filter(str.strip, lines), marks):
            kept_out = mark in chosen
            (held if kept_out else train).write(line)
            counts["held_out" if kept_out else "train"] += 1
    return counts


def _question(messages: List[Message]) -> bytes:
    asked = next((message["content"] for message in messages if message["role"] == "user"), "")
    return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=8).digest()
