"""Clicks on a widget while its own cell runs, in kernels that would keep them until the cell has ended.

ipykernel 7 hears them beside the cell, in a subshell. ipykernel 6 (Python 3.9) reads one message after the other, and
the running cell is one: there, the cell itself has to look what has come in.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, List, Optional

SHELL_FRAMES = 5
"""Signature, header, parent header, metadata, content: Jupyter's wire protocol."""


def hears_beside(kernel: Any) -> bool:
    """The kernel hears widgets while a cell runs."""
    return bool(getattr(kernel, "_supports_kernel_subshells", False))


def ears(kernel: Any) -> Optional[Callable[[str], int]]:
    """What a running cell may call from time to time, with a widget's ``comm_id``: it hands on the messages that have
    come in for that widget, and leaves all others where they are, in their order. It returns how many there were.

    None where the kernel keeps its messages otherwise than ipykernel 6 does.
    """
    parts = [getattr(kernel, name, None) for name in ("shell_stream", "msg_queue", "session", "comm_manager")]
    if any(part is None for part in parts):
        return None

    def hear(comm_id: str) -> int:
        kernel.shell_stream.flush()  # what has come in goes into the queue
        waiting: List[Any] = []
        with contextlib.suppress(Exception):  # the queue's own kind of Empty
            while True:
                waiting.append(kernel.msg_queue.get_nowait())
        ours: List[Any] = []
        for item in waiting:
            if _is_for(kernel, item, comm_id):
                ours.append(item)
            else:
                kernel.msg_queue.put_nowait(item)
        for item in ours:
            names, frames = kernel.session.feed_identities(item[-1][0], copy=False)
            message = kernel.session.deserialize(frames, content=True, copy=False)  # and its signature is right
            kernel.comm_manager.comm_msg(kernel.shell_stream, names, message)
        return len(ours)

    return hear


def _is_for(kernel: Any, item: Any, comm_id: str) -> bool:
    """Whether a waiting ``(number, dispatch, (frames,))`` is a message for this widget."""
    try:
        _, frames = kernel.session.feed_identities(item[-1][0], copy=False)
        if len(frames) < SHELL_FRAMES:
            return False
        header, content = (kernel.session.unpack(bytes(frames[place].buffer)) for place in (1, 4))
        return bool(header["msg_type"] == "comm_msg" and content["comm_id"] == comm_id)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False
