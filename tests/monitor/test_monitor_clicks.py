"""A click on a button while its own cell runs, in a real kernel of Python 3.9's ipykernel 6."""

from __future__ import annotations

import queue
import time
from types import SimpleNamespace
from typing import Any, List

import pytest

from qwenlib.monitor.clicks import ears, hears_beside

CELL = """
import time, ipywidgets
from qwenlib.monitor.clicks import ears
heard, late = [], []
button, other = ipywidgets.Button(), ipywidgets.Button()
button.on_click(lambda _: heard.append(1))
other.on_click(lambda _: late.append(1))
hear = ears(get_ipython().kernel)
print(button.comm.comm_id, other.comm.comm_id, flush=True)
end = time.monotonic() + 60
while not heard and time.monotonic() < end:
    hear(button.comm.comm_id)
    time.sleep(0.02)
print("heard", len(heard), "late", len(late))
"""


def said(client: Any, message_id: str) -> str:
    """The next text that a cell prints."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            message = client.get_iopub_msg(timeout=1)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") == message_id and message["msg_type"] in ("stream", "error"):
            return str(message["content"].get("text") or message["content"])
    raise AssertionError("the cell said nothing")


def test_a_running_cell_hears_its_button_and_leaves_the_rest_in_order() -> None:
    ipykernel = pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    if ipykernel.version_info >= (7,):
        pytest.skip("ipykernel 7 hears widgets beside the cell; tests/browser clicks there")
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    try:
        first = client.execute(CELL)
        ours, other = said(client, first).split()

        def click(comm: str) -> None:
            content = {"comm_id": comm, "data": {"method": "custom", "content": {"event": "click"}}}
            client.shell_channel.send(client.session.msg("comm_msg", content))

        click(other)
        second = client.execute("print('late', len(late))")
        click(ours)
        assert said(client, first) == "heard 1 late 0\n"
        assert said(client, second) == "late 1\n", "the other click came before that cell, and still does"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_kernel_that_keeps_its_messages_otherwise_gets_no_ears() -> None:
    kernel = SimpleNamespace(shell_stream=object(), session=object(), comm_manager=object())
    assert ears(kernel) is None and not hears_beside(kernel)
    kernel._supports_kernel_subshells = True
    assert hears_beside(kernel)


def test_what_is_no_message_stays_in_the_queue() -> None:
    waiting: List[Any] = [(1, None, ()), (2, None, ([b"x"],)), (3, None, (None,))]
    line: queue.Queue[Any] = queue.Queue()
    for item in waiting:
        line.put(item)

    class Session:
        def feed_identities(self, frames: List[bytes], copy: bool) -> Any:
            return [], frames

    kernel = SimpleNamespace(
        shell_stream=SimpleNamespace(flush=lambda: None), msg_queue=line, session=Session(), comm_manager=object()
    )
    hear = ears(kernel)
    assert hear is not None and hear("none") == 0
    assert [line.get_nowait() for _ in waiting] == waiting
