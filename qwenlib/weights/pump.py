"""The engine under convert, slice, merge and export: read rows, cast, write them where they belong, all at once.

One thread reads in the order of the source files; two cast and write; one computes SHA-256. Memory: a fixed number of
chunks, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from qwenlib.errors import Refused
from qwenlib.progress import Progress
from qwenlib.weights.kinds import KINDS, Counts, as_float32, cast
from qwenlib.weights.output import OutFile
from qwenlib.weights.tensors import Extent, Files, Tensor, Window, matrix, whole

CHUNK = 8 * 2**20
"""Bytes of the source read at a time."""
CHUNKS = 8
"""Chunks in flight."""
WORKERS = 2

Change = Callable[[Any, int], Any]
"""(float32 rows [n, columns], number of the first) -> the rows that are written instead."""


class Target(NamedTuple):
    """The window of a tensor that goes to one file, row by row, into ``extents``."""

    file: OutFile
    extents: Tuple[Extent, ...]
    window: Window


class Move(NamedTuple):
    """One tensor on its way."""

    tensor: Tensor
    kind: str
    targets: Sequence[Target]
    change: Optional[Change] = None


class Outcome(NamedTuple):
    """What a run of the engine found."""

    bytes: int
    overflow: Dict[str, int]
    nonfinite: Dict[str, int]
    sha256: Dict[Path, str]


def run(moves: Sequence[Move], what: str, *, clamp: bool = False, digest: bool = False) -> Outcome:
    """Carry out ``moves``; ``digest`` also computes the SHA-256 of every source file, in the same pass.

    Raises:
        Refused: a source file ends too early, or would be replaced by what is made of it.
    """
    refuse_own_source({target.file.path for move in moves for target in move.targets}, (move.tensor for move in moves))
    ordered = sorted(moves, key=lambda move: (str(move.tensor.parts[0].path), move.tensor.parts[0].extents[:1]))
    total = sum(move.tensor.bytes for move in ordered)
    pump = _Pump(clamp)
    hasher = _Hasher(pump.files) if digest else None
    buffers: queue.Queue[Any] = queue.Queue()
    for _ in range(CHUNKS):
        buffers.put(None)
    pool = ThreadPoolExecutor(WORKERS, "cast")
    with pump.files, Progress(what, max(1, total // 10**6), "MB") as bar:
        pace = Pace(bar, total)
        pending: List[Future[None]] = []
        try:
            for move in ordered:
                tensor, targets = _plain(move)
                for top, bottom in _chunks(tensor):
                    buffer = buffers.get()
                    _raise_first(pending)
                    rows, read = pump.files.rows(tensor, top, bottom, _ready(buffer))
                    lease = _Lease(buffers, buffer if buffer is not None else _base(rows), 2 if hasher else 1)
                    if hasher:
                        hasher.feed(read, lease)
                    pending.append(pool.submit(pump.work, move, targets, rows, top, lease))
                    pace.advance(rows.nbytes, tensor.name)
            for future in pending:
                future.result()
        finally:
            pool.shutdown(wait=True)
            if hasher:
                hasher.close()
        digests = hasher.digests() if hasher else {}
        pace.end()
    return Outcome(total, pump.overflow, pump.nonfinite, digests)


def refuse_own_source(written: Iterable[Path], tensors: Iterable[Tensor]) -> None:
    """What is written gets its name at the end, so that reading would do no harm; but the source would be gone.

    Raises:
        Refused: a file of ``written`` holds one of ``tensors``.
    """
    read = {part.path.resolve() for tensor in tensors for part in tensor.parts}
    for path in written:
        if path.resolve() in read:
            raise Refused(f"{path} is what is read; it would be replaced. Choose another file or folder.")


def _ready(buffer: Any) -> Any:
    import numpy

    return numpy.empty(CHUNK, numpy.uint8) if buffer is None else buffer


def _base(rows: Any) -> Any:
    while rows.base is not None:
        rows = rows.base
    return rows


def _plain(move: Move) -> Tuple[Tensor, List[Tuple[OutFile, Tuple[Extent, ...], Window]]]:
    """Whole tensors are copied as vectors, so that a chunk is never larger than asked, whatever a row is."""
    full = whole(move.tensor.shape)
    if len(move.tensor.parts) == 1 and move.change is None and all(item.window == full for item in move.targets):
        flat = move.tensor.flat()
        return flat, [(item.file, item.extents, whole(flat.shape)) for item in move.targets]
    return move.tensor, [(item.file, item.extents, item.window) for item in move.targets]


def _chunks(tensor: Tensor) -> Iterator[Tuple[int, int]]:
    rows, columns = matrix(tensor.shape)
    step = max(1, CHUNK // max(1, columns * KINDS[tensor.kind].width))
    for top in range(0, rows, step):
        yield top, min(rows, top + step)


def _raise_first(pending: List[Future[None]]) -> None:
    while pending and pending[0].done():
        pending.pop(0).result()


class _Lease:
    """Gives a buffer back when all who work on it are done."""

    def __init__(self, buffers: queue.Queue[Any], buffer: Any, users: int):
        self.buffers, self.buffer, self.users = buffers, buffer, users
        self.lock = threading.Lock()

    def done(self) -> None:
        with self.lock:
            self.users -= 1
            last = self.users == 0
        if last:
            self.buffers.put(self.buffer if len(self.buffer) == CHUNK else None)


class _Pump:
    def __init__(self, clamp: bool):
        self.clamp, self.files = clamp, Files()
        self.overflow: Dict[str, int] = {}
        self.nonfinite: Dict[str, int] = {}
        self.lock = threading.Lock()

    def work(
        self, move: Move, targets: List[Tuple[OutFile, Tuple[Extent, ...], Window]], rows: Any, top: int, lease: _Lease
    ) -> None:
        import numpy

        try:
            kind = move.tensor.kind
            if move.change is not None:
                rows, kind = move.change(as_float32(rows, kind), top), "float32"
            out, counts = cast(rows, kind, move.kind, self.clamp)
            self.count(move.tensor.name, counts)
            width = KINDS[move.kind].width
            for file, extents, window in targets:
                first, last = max(top, window.top), min(top + len(out), window.bottom)
                if first >= last:
                    continue
                piece = numpy.ascontiguousarray(out[first - top : last - top, window.left : window.right])
                start = (first - window.top) * window.columns * width
                file.write(extents, start, memoryview(piece.reshape(-1).view(numpy.uint8)))
        finally:
            lease.done()

    def count(self, name: str, counts: Counts) -> None:
        if not (counts.overflow or counts.nonfinite):
            return
        with self.lock:
            for found, number in ((self.overflow, counts.overflow), (self.nonfinite, counts.nonfinite)):
                if number:
                    found[name] = found.get(name, 0) + number


class _Hasher:
    """SHA-256 of whole files from the chunks that pass by; what lies between them is read in addition."""

    def __init__(self, files: Files):
        self.files = files
        self.states: Dict[Path, Tuple[Any, int]] = {}
        self.pool = ThreadPoolExecutor(1, "sha256")
        self.jobs: List[Future[None]] = []

    def feed(self, read: List[Tuple[Path, int, Any]], lease: _Lease) -> None:
        self.jobs = [job for job in self.jobs if not job.done() or job.exception()]
        self.jobs.append(self.pool.submit(self._feed, read, lease))

    def _feed(self, read: List[Tuple[Path, int, Any]], lease: _Lease) -> None:
        try:
            for path, offset, data in read:
                self._upto(path, offset)
                state, place = self.states[path]
                if offset + len(data) > place:  # a tensor that shares its bytes with another comes by twice
                    state.update(data[place - offset :])
                    self.states[path] = (state, offset + len(data))
        finally:
            lease.done()

    def _upto(self, path: Path, offset: int) -> None:
        state, place = self.states.get(path, (hashlib.sha256(), 0))
        while place < offset:
            block = bytearray(min(CHUNK, offset - place))
            self.files.fill(path, place, memoryview(block))
            state.update(block)
            place += len(block)
        self.states[path] = (state, place)

    def close(self) -> None:
        self.pool.shutdown(wait=True)

    def digests(self) -> Dict[Path, str]:
        for job in self.jobs:
            job.result()
        for path in list(self.states):
            self._upto(path, path.stat().st_size)
        return {path: state.hexdigest() for path, (state, _) in self.states.items()}


class Pace:
    """GB/s so far, and the time that is left, behind the bar."""

    def __init__(self, bar: Progress, total: int):
        self.bar, self.total, self.done = bar, total, 0
        self.begun = time.monotonic()

    def advance(self, amount: int, name: str) -> None:
        """Count ``amount`` more bytes; ``name``: of what is at work."""
        before, self.done = self.done, self.done + amount
        speed = self.done / max(time.monotonic() - self.begun, 1e-3)
        left = (self.total - self.done) / max(speed, 1.0)
        self.bar.advance(self.done // 10**6 - before // 10**6, f"{speed / 1e9:.2f} GB/s, {left:.0f} s left, {name}")

    def end(self) -> None:
        """The bar is full."""
        self.bar.advance((self.bar.total or 0) - self.bar.done)
