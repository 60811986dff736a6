"""Several ranks that hold one network (model_parallel) and must take every token together.

Rank 0 talks to the asker. Each question goes on to the others as a line of JSON, and behind each token a byte says
whether to go on or to stop: so all of them leave MindFormers' generation at the same token, and none waits in a
collective for one that has left.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from qwenlib.engine.answer import Request, Stopped, answer
from qwenlib.errors import WorkFailed

GO, STOP = b"g", b"s"
MEET_SECONDS = 1800.0
"""Until all ranks have loaded their part; as long as HCCL itself waits."""

OnText = Callable[[str], None]


class Lead:
    """Rank 0's side: ``lead.wait()``, then for each question ``lead.begin(message)`` and ``lead.watching(on_text)``."""

    def __init__(self, path: Path, followers: int):
        self.followers = followers
        self._others: List[socket.socket] = []
        self._listener: Optional[socket.socket] = None
        if followers:
            path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(followers)
            self._listener.settimeout(MEET_SECONDS)

    def wait(self) -> None:
        """Until every other rank has loaded its part.

        Raises:
            WorkFailed: one did not come.
        """
        while self._listener is not None and len(self._others) < self.followers:
            try:
                self._others.append(self._listener.accept()[0])
            except socket.timeout:
                raise WorkFailed(
                    f"only {len(self._others)} of the {self.followers} other ranks had loaded the network after "
                    f"{MEET_SECONDS:.0f} s; see their rank.log."
                ) from None

    def begin(self, message: Dict[str, Any]) -> None:
        """Hand a question on."""
        self._send(json.dumps(message).encode() + b"\n")

    def watching(self, on_text: OnText) -> OnText:
        """``on_text`` that tells the others, behind each token, whether it went on or stopped."""

        def told(piece: str) -> None:
            try:
                on_text(piece)
            except BaseException:
                self._send(STOP)
                raise
            self._send(GO)

        return told if self.followers else on_text

    def _send(self, data: bytes) -> None:
        for other in self._others:
            try:
                other.sendall(data)
            except OSError as error:
                raise WorkFailed(f"another rank of this model is gone: {error.strerror}.") from error


def follow(path: Path, network: Any, tokenizer: Any) -> None:
    """The side of every other rank: answer what rank 0 answers, token by token, until it is gone.

    Raises:
        WorkFailed: rank 0 could not be reached.
    """
    with _reach(path) as connection:
        stream = connection.makefile("rb")

        def on_text(_piece: str) -> None:
            if stream.read(1) != GO:
                raise Stopped

        for line in stream:
            with contextlib.suppress(Exception):  # rank 0 tells the asker what is wrong with a question
                answer(network, tokenizer, Request(**read(json.loads(line))), on_text)


def read(message: Dict[str, Any]) -> Dict[str, Any]:
    """The fields of a :class:`Request` in a question that came as JSON."""
    return {**message, "stop": tuple(message.get("stop") or Request.stop)}


def _reach(path: Path) -> socket.socket:
    deadline = time.monotonic() + MEET_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise WorkFailed(f"rank 0 could not be reached at {path}: {error.strerror}.") from error
            time.sleep(0.2)
