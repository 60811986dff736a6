"""A loaded network that answers over a Unix socket: the background process behind widgets, notebooks and commands.

Each line in either direction is one JSON object. A request has the fields of :class:`~qwenlib.engine.answer.Request`;
``{"text": piece}`` lines come back, then ``{"done": {…}}`` or ``{"error": sentence}``. A line ``{"stop": true}`` (or a
closed connection) in the middle ends the answer. One question at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from pathlib import Path
from typing import Any, Dict, Optional

from qwenlib.engine import lockstep
from qwenlib.engine import network as networks
from qwenlib.engine.answer import Request, Stopped, answer
from qwenlib.engine.job import Job
from qwenlib.errors import WorkFailed
from qwenlib.files import write_json


def serve(config: Any, job: Job) -> None:
    """Load ``job.load_checkpoint``, listen on ``settings["socket"]``, write ``job.result`` when ready, answer for ever.

    Of several ranks that share the network, rank 0 does this and the others follow it. The launcher ends this process;
    nothing it holds needs a farewell.
    """
    network, tokenizer = networks.build(config, job.load_checkpoint)
    # The first answer compiles both graphs; do it before anybody waits.
    answer(network, tokenizer, Request("a", max_new_tokens=2, stop=()))
    path = Path(job.settings["socket"])
    meeting = path.with_name(path.name + ".ranks")
    if int(os.environ.get("RANK_ID") or 0):
        lockstep.follow(meeting, network, tokenizer)
        return
    lead = lockstep.Lead(meeting, int(os.environ.get("RANK_SIZE") or 1) - 1)
    lead.wait()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        write_json(job.result, {"socket": str(path), "seq_length": int(network.config.seq_length)})
        while True:
            connection, _ = listener.accept()
            with connection:
                _converse(connection, network, tokenizer, lead)


def _converse(connection: socket.socket, network: Any, tokenizer: Any, lead: lockstep.Lead) -> None:
    def send(message: Dict[str, Any]) -> None:
        try:
            connection.sendall(json.dumps(message, ensure_ascii=False).encode() + b"\n")
        except OSError:
            raise Stopped from None

    rest = b""  # what came behind the line that is obeyed; a buffered reader would hide a stop line in there
    unsent, sent_at, pause = "", 0.0, 0.0

    def next_line() -> Optional[bytes]:
        nonlocal rest
        while b"\n" not in rest:
            block = connection.recv(65536)
            if not block:
                return None
            rest += block
        line, _, rest = rest.partition(b"\n")
        return line

    def on_text(piece: str) -> None:
        nonlocal unsent, sent_at
        unsent += piece
        now = time.monotonic()
        if unsent and now - sent_at >= pause:  # each line wakes the asker's process
            send({"text": unsent})
            unsent, sent_at = "", now
        if rest or select.select([connection], [], [], 0)[0]:  # a stop line, or the end of the connection
            raise Stopped

    # A connection that breaks in whatever it is doing must not take the model along either.
    with contextlib.suppress(Stopped, OSError):
        for line in iter(next_line, None):
            try:
                message = json.loads(line)
                if "stop" in message and "prompt" not in message:
                    continue  # came too late for the answer it was meant for
                request = Request(**lockstep.read(message))
                lead.begin(message)
                unsent, sent_at, pause = "", 0.0, request.send_seconds
                done = answer(network, tokenizer, request, lead.watching(on_text))
                if unsent:
                    send({"text": unsent})
                send({"done": done})
            except (Stopped, WorkFailed):
                raise
            except Exception as error:  # one question that cannot be answered must not take the model along
                send({"error": " ".join(str(error).split()) or type(error).__name__})
