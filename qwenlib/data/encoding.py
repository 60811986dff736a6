"""Conversations of files to tokens, batch by batch: in a thread, or for large files in a process of its own.

In a process the tokenizer shares neither Python's lock nor the import of MindSpore with the writer. What it makes comes
through a pipe: for each batch a line of JSON, then its ids and labels as they lie in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Dict, Generator, Iterator, List, Sequence

import numpy

from qwenlib.data.ahead import ahead
from qwenlib.data.chatml import Message, read_messages
from qwenlib.data.rows import Encoded, Encoder
from qwenlib.data.tokenizer import load_tokenizer
from qwenlib.errors import Refused, WorkFailed

BATCH, BATCH_CHARACTERS = 256, 2**20
"""Conversations, or characters, that are tokenized together."""

AHEAD, AHEAD_TOKENS = 48, 2**23
"""Such batches, and tokens in them (5 bytes each), that wait to be written."""

APART = 8 * 2**20
"""Bytes of input from which on a process of its own is worth its start, about half a second."""


def encoded_batches(encoder: Encoder, sources: Sequence[Path]) -> Generator[List[Encoded], None, None]:
    """Batches of encoded conversations, made in a thread while the caller works on others.

    Raises:
        Refused: while iterating: a line is no conversation.
    """
    made = (list(encoder.encode(batch)) for batch in _batches(sources))
    return ahead(made, AHEAD, lambda batch: sum(len(item.ids) for item in batch), AHEAD_TOKENS)


def encoded_apart(
    vocab_file: Path, merges_file: Path, labels: str, sources: Sequence[Path], nice: int = 0
) -> Generator[List[Encoded], None, None]:
    """What :func:`encoded_batches` gives, from a process of its own; close the generator to end it.

    ``nice``: how far that process stands back behind the caller's.

    Raises:
        Refused: while iterating: a line is no conversation.
        WorkFailed: while iterating: the process was ended.
    """
    files = [str(Path(path).absolute()) for path in (vocab_file, merges_file, *sources)]
    found = _received([str(nice), labels, *files])
    next(found)  # the process begins now, and closing the generator ends it
    return found


def large(sources: Sequence[Path]) -> bool:
    """Whether the files are worth a process of their own."""
    return sum(source.stat().st_size for source in sources) >= APART


def _received(arguments: List[str]) -> Generator[List[Encoded], None, None]:
    # -c looks in the working folder first: there qwenlib lies, and no file of the user's.
    program = "import sys; from qwenlib.data.encoding import main; main(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=str(Path(__file__).resolve().parents[2]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield []
        yield from _batches_of(process.stdout)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _batches_of(pipe: IO[bytes]) -> Iterator[List[Encoded]]:
    while True:
        line = pipe.readline()
        if not line.endswith(b"\n"):
            raise WorkFailed(
                "the process that tokenizes was ended before it was done (mostly: the host ran out of memory). "
                "Nothing was kept; build again."
            )
        head: Dict[str, Any] = json.loads(line)
        if "refused" in head:
            raise Refused(head["refused"])
        if "items" not in head:
            return
        total = sum(item[0] for item in head["items"])
        body = pipe.read(5 * total)
        if len(body) < 5 * total:
            continue  # cut off: there is no next line
        ids = numpy.frombuffer(body, dtype=numpy.int32, count=total)
        learned = numpy.frombuffer(body, dtype=numpy.bool_, offset=4 * total)
        batch, at = [], 0
        for length, answers, ends, special_tokens in head["items"]:
            part = slice(at, at + length)
            batch.append(Encoded(ids[part], learned[part], [(a, b) for a, b in answers], ends, special_tokens))
            at += length
        yield batch


def _send(pipe: IO[bytes], batches: Iterator[List[Encoded]]) -> None:
    try:
        for batch in batches:
            items = [(len(item.ids), list(item.answers), list(item.ends), item.special_tokens) for item in batch]
            pipe.write(json.dumps({"items": items}).encode() + b"\n")
            for item in batch:
                pipe.write(item.ids.tobytes())
            for item in batch:
                pipe.write(item.learned.tobytes())
        last: Dict[str, Any] = {"done": True}
    except Refused as refused:
        last = {"refused": str(refused)}
    pipe.write(json.dumps(last).encode() + b"\n")
    pipe.flush()


def _batches(sources: Sequence[Path]) -> Iterator[List[List[Message]]]:
    batch: List[List[Message]] = []
    characters = 0
    for messages in itertools.chain.from_iterable(map(read_messages, sources)):
        batch.append(messages)
        characters += sum(len(message["content"]) for message in messages)
        if len(batch) >= BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def main(nice: str, labels: str, vocab_file: str, merges_file: str, *sources: str) -> None:
    """The process of :func:`encoded_apart`: batches on stdout until all are sent, or nobody reads any more."""
    os.setpgid(0, 0)  # Ctrl-C is the caller's to handle, who ends this process; a session's niceness would not count
    os.nice(int(nice))
    encoder = Encoder(load_tokenizer(vocab_file, merges_file), labels)
    # Ahead here and not in the caller: there a thread would take Python's lock from the writer.
    batches = encoded_batches(encoder, [Path(path) for path in sources])
    with contextlib.closing(batches), contextlib.suppress(BrokenPipeError):
        _send(sys.stdout.buffer, batches)
