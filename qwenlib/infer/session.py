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
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Type, Union

from qwenlib import launch
from qwenlib.engine import serving
from qwenlib.errors import WorkFailed
from qwenlib.infer import prompt as prompts
from qwenlib.infer.prompt import SYSTEM, Message, Seen
from qwenlib.infer.settings import complete
from qwenlib.profile import Profile

END_SECONDS = 10.0
"""How long the supervisor may take to tell why a process broke off its answer."""


class Session:
    """``with Session(profile, …) as session: session.ask("…")``.

    The process starts with the object; :meth:`ask` waits until it is ready. A failure of the process is told as
    WorkFailed with its own error; closing gives the memory back. ``raw``: the model is a base model, which continues
    text and knows no ChatML; a question can say otherwise. ``use_past``: generate with MindFormers' key/value cache.
    ``rank_table``: of the cards that share the network when ``predict.model_parallel`` is above 1.
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
        raw: bool = False,
        use_past: bool = True,
        rank_table: Optional[Union[str, Path]] = None,
    ):
        self.profile, self.name, self.raw = profile, name, raw
        self._vocabulary = (vocab_file, merges_file)
        self._folder = Path(tempfile.mkdtemp(prefix="qwenlib-"))  # a socket's path must stay below 108 bytes
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # or when Python ends
        self._socket = self._folder / "engine"
        self._ready = Path(run_dir).absolute() / "ready.json"
        try:
            plan = serving.serve_plan(
                profile,
                load_checkpoint=load_checkpoint,
                vocab_file=vocab_file,
                merges_file=merges_file,
                run_dir=run_dir,
                socket=self._socket,
                adapter_task=adapter_task,
                use_past=use_past,
                rank_table=rank_table,
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
        chat: Optional[bool] = None,
        system: str = SYSTEM,
        on_text: Optional[Callable[[str], object]] = None,
        stopped: Optional[Callable[[], bool]] = None,
        **settings: Any,
    ) -> Dict[str, Any]:
        """Answer ``text``: as a ChatML user message, or (``chat=False``) continued as it stands.

        ``chat`` None: as the kind of model wants it. ``on_text(piece)`` gets the answer as it grows; ``stopped()``
        returning True ends it. ``settings``: the fields of :class:`qwenlib.engine.answer.Request`, such as
        ``max_new_tokens`` or ``do_sample``; what is not given, the profile says.

        Returns:
            The answer's figures (see :func:`qwenlib.engine.answer.answer`), ``"prompt"``: what the model saw, and
            ``"dropped_turns"``: 0.

        Raises:
            WorkFailed: the process of the model ended.
        """
        raw = self.raw if chat is None else not chat
        prompt = text if raw else prompts.chat_prompt(text, system)
        return {**self._answer(prompt, on_text, stopped, settings), "dropped_turns": 0}

    def chat(
        self,
        messages: Sequence[Message],
        *,
        on_text: Optional[Callable[[str], object]] = None,
        stopped: Optional[Callable[[], bool]] = None,
        raw: Optional[bool] = None,
        **settings: Any,
    ) -> Dict[str, Any]:
        """Answer the last of ``messages``, ``{"role": "system" | "user" | "assistant", "content": text}`` each.

        Oldest exchanges are dropped until the rest and ``max_new_tokens`` fit the model's context. Arguments as for
        :meth:`ask`; ``raw`` None: as the kind of model wants it.

        Returns:
            As :meth:`ask`; ``"dropped_turns"`` says how many exchanges were dropped.

        Raises:
            Refused: the messages are no conversation that ends with a question.
            WorkFailed: the process of the model ended.
        """
        seen = self.sees(messages, raw=raw, max_new_tokens=settings.get("max_new_tokens"))
        return {**self._answer(seen.prompt, on_text, stopped, settings), "dropped_turns": seen.dropped_turns}

    def sees(
        self, messages: Sequence[Message], *, raw: Optional[bool] = None, max_new_tokens: Optional[int] = None
    ) -> Seen:
        """The prompt that :meth:`chat` would give the model, with its token count; the model is not waited for."""
        return prompts.seen(self.profile, self._vocabulary, messages, self.raw if raw is None else raw, max_new_tokens)

    def settings(self, **given: Any) -> Dict[str, Any]:
        """The settings of an answer: what is given (and not None), for the rest what the profile says."""
        return complete(self.profile, **given)

    def _answer(
        self,
        prompt: str,
        on_text: Optional[Callable[[str], object]],
        stopped: Optional[Callable[[], bool]],
        settings: Dict[str, Any],
    ) -> Dict[str, Any]:
        if not self._open:
            raise WorkFailed(f"{self.name} is closed; open it again.")
        for message in self._converse({"prompt": prompt, **self.settings(**settings)}, stopped):
            if "error" in message:
                raise WorkFailed(f"{self.name} could not answer: {message['error']}")
            if "done" in message:
                return {**message["done"], "prompt": prompt}
            if on_text is not None:
                on_text(message["text"])
        deadline = time.monotonic() + END_SECONDS
        while True:  # its supervisor may need a moment to see that it ended
            late = time.monotonic() > deadline  # asked before looking: the look may be late, too
            if self._run.poll()["state"] != "running":
                self._run.wait()  # raises with the root cause
            if late:
                break
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
