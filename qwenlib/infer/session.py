"""A loaded model in a background process, and the conversation with it."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
import tempfile
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, Optional, Type, Union

from qwenlib import launch
from qwenlib.engine import work
from qwenlib.errors import WorkFailed
from qwenlib.profile import Profile

SYSTEM = "You are a helpful assistant."


def chat_prompt(text: str, system: str = SYSTEM) -> str:
    """What a ChatML-tuned model sees for one user message: system, user, and the opened assistant turn."""
    from qwenlib.data.chatml import render

    messages = [{"role": "system", "content": system}] if system else []
    return render([*messages, {"role": "user", "content": text}], add_generation_prompt=True)


class Session:
    """``with Session(profile, …) as session: session.ask("…")``.

    The process starts with the object; :meth:`ask` waits until it is ready. A failure of the process is told as
    WorkFailed with its own error; closing gives the memory back.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        load_checkpoint: Union[str, Path],
        vocab_file: Union[str, Path],
        merges_file: Union[str, Path],
        run_dir: Union[str, Path],
        adapter_task: str = "",
        name: str = "model",
    ):
        self.profile, self.name = profile, name
        self._folder = Path(tempfile.mkdtemp(prefix="qwenlib-"))  # a socket's path must stay below 108 bytes
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # or when Python ends
        self._socket = self._folder / "engine"
        self._ready = Path(run_dir).absolute() / "ready.json"
        try:
            plan = work.serve_plan(
                profile,
                load_checkpoint=load_checkpoint,
                vocab_file=vocab_file,
                merges_file=merges_file,
                run_dir=run_dir,
                socket=self._socket,
                adapter_task=adapter_task,
            )
            self._run = launch.start(plan)
        except BaseException:
            self._remove()
            raise
        self._open = True

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Wait until the model is loaded and its graphs are compiled.

        Raises:
            WorkFailed: the process failed, or took longer than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self._ready.is_file():
            if self._run.poll()["state"] in ("failed", "done", "stopped"):
                self._run.wait()  # raises with the root cause
                raise WorkFailed(f"the process of {self.name} ended; ask again after opening it anew.")
            if time.monotonic() > deadline:
                raise WorkFailed(f"{self.name} was not loaded within {timeout:.0f} s; see {self._run.rank_log(0)}")
            time.sleep(0.1)

    def ask(
        self,
        text: str,
        *,
        chat: bool = True,
        system: str = SYSTEM,
        on_text: Optional[Callable[[str], object]] = None,
        stopped: Optional[Callable[[], bool]] = None,
        **settings: Any,
    ) -> Dict[str, Any]:
        """Answer ``text``: as a ChatML user message, or (``chat=False``) continued as it stands.

        ``on_text(piece)`` gets the answer as it grows; ``stopped()`` returning True ends it. ``settings``: the
        fields of :class:`qwenlib.engine.answer.Request`, such as ``max_new_tokens`` or ``do_sample``.

        Returns:
            The answer's figures (see :func:`qwenlib.engine.answer.answer`) and ``"prompt"``: what the model saw.

        Raises:
            WorkFailed: the process of the model ended.
        """
        if not self._open:
            raise WorkFailed(f"{self.name} is closed; open it again.")
        prompt = chat_prompt(text, system) if chat else text
        predict = self.profile.predict
        if predict is not None:
            settings.setdefault("max_new_tokens", predict.max_new_tokens)
            settings.setdefault("do_sample", predict.do_sample)
            settings.setdefault("repetition_penalty", predict.repetition_penalty)
            settings.setdefault("top_k", predict.top_k)
            settings.setdefault("top_p", predict.top_p)
        for message in self._converse({"prompt": prompt, **settings}, stopped):
            if "error" in message:
                raise WorkFailed(f"{self.name} could not answer: {message['error']}")
            if "done" in message:
                return {**message["done"], "prompt": prompt}
            if on_text is not None:
                on_text(message["text"])
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:  # its supervisor may need a moment to see that it ended
            if self._run.poll()["state"] != "running":
                self._run.wait()  # raises with the root cause
            time.sleep(0.05)
        raise WorkFailed(f"the process of {self.name} broke off its answer; see {self._run.rank_log(0)}")

    def _converse(self, request: Dict[str, Any], stopped: Optional[Callable[[], bool]]) -> Iterator[Dict[str, Any]]:
        """What the process says to ``request``, message by message; it ends early when the process does."""
        self.wait_ready()
        rest = b""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self._socket))
            connection.sendall(json.dumps(request).encode() + b"\n")
            while True:
                if stopped is not None and stopped():
                    connection.sendall(b'{"stop": true}\n')
                    stopped = None
                if not select.select([connection], [], [], 0.1)[0]:
                    continue
                block = connection.recv(65536)
                if not block:
                    return
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    yield message
                    if "text" not in message:
                        return

    @property
    def alive(self) -> bool:
        """True while the process can still answer."""
        return self._open and self._run.poll()["state"] in ("starting", "running")

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        if self._open:
            self._open = False
            self._run.stop()
            self._remove()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
