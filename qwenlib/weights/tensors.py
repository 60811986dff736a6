"""A tensor that lies in files: where its bytes are, and how to read some of its rows without the rest.

A tensor is seen as a matrix: its first dimension are the rows, all others together the columns (a vector has one
column). It may lie in one piece, or cut into windows that lie in several files, as tensor parallelism leaves it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from qwenlib.errors import Refused, WorkFailed
from qwenlib.weights.kinds import KINDS

Extent = Tuple[int, int]
"""(offset, length) of bytes in a file."""


class Window(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` (both exclusive) of a tensor's matrix."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.right - self.left


def matrix(shape: Tuple[int, ...]) -> Tuple[int, int]:
    """(rows, columns) of the matrix that a tensor of ``shape`` is seen as."""
    columns = 1
    for side in shape[1:]:
        columns *= side
    return (shape[0] if shape else 1), columns


def elements(shape: Tuple[int, ...]) -> int:
    """Number of elements of a tensor of ``shape`` (a scalar has one)."""
    rows, columns = matrix(shape)
    return rows * columns


def whole(shape: Tuple[int, ...]) -> Window:
    """The window that is the whole tensor."""
    rows, columns = matrix(shape)
    return Window(0, rows, 0, columns)


@dataclass(frozen=True)
class Part:
    """A window of a tensor and the bytes of ``path`` that hold it, row by row."""

    path: Path
    extents: Tuple[Extent, ...]
    window: Window


@dataclass(frozen=True)
class Tensor:
    """A tensor in files; ``kind`` is a name in :data:`qwenlib.weights.kinds.KINDS`."""

    name: str
    kind: str
    shape: Tuple[int, ...]
    parts: Tuple[Part, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return elements(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.size * KINDS[self.kind].width

    def flat(self) -> Tensor:
        """The same bytes as a vector; for a tensor in one piece."""
        assert len(self.parts) == 1
        part = self.parts[0]
        return Tensor(self.name, self.kind, (self.size,), (Part(part.path, part.extents, whole((self.size,))),))


def spans(extents: Tuple[Extent, ...], start: int, length: int) -> Iterator[Extent]:
    """The stretches of the file that hold bytes ``start`` to ``start + length`` of the data in ``extents``."""
    for offset, size in extents:
        if start < size and length > 0:
            taken = min(size - start, length)
            yield offset + start, taken
            start, length = 0, length - taken
        else:
            start -= size


class Files:
    """Open files by path, read at an offset (``pread``: no shared position, no mapped memory)."""

    def __init__(self) -> None:
        self._open: Dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()

    def handle(self, path: Path) -> int:
        """The file descriptor of ``path``."""
        with self._lock:
            if path not in self._open:
                try:
                    self._open[path] = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise Refused(f"{path} cannot be read: {error.strerror}.") from None
            return self._open[path]

    def fill(self, path: Path, offset: int, into: memoryview) -> None:
        """Read ``len(into)`` bytes at ``offset``.

        Raises:
            Refused: the file ends before (it was cut off, or is still being written).
            WorkFailed: the disk does not give the bytes.
        """
        handle, done = self.handle(path), 0
        while done < len(into):
            try:
                got = os.preadv(handle, [into[done:]], offset + done)
            except OSError as error:
                raise WorkFailed(f"{path}, byte {offset + done}: reading failed: {error.strerror}.") from error
            if not got:
                raise Refused(f"{path} is cut off: byte {offset + done} is not there. Get the file again.")
            done += got

    def rows(
        self, tensor: Tensor, top: int, bottom: int, buffer: Any = None
    ) -> Tuple[Any, List[Tuple[Path, int, Any]]]:
        """Rows ``top`` to ``bottom`` of ``tensor``: (array [rows, columns], what was read).

        ``buffer``: a uint8 array to read into when it is large enough. What was read is ``(path, offset, bytes)``,
        for a tensor in one piece, in the order of the file.
        """
        import numpy

        kind, columns = KINDS[tensor.kind], matrix(tensor.shape)[1]
        needed = (bottom - top) * columns * kind.width
        raw = buffer[:needed] if buffer is not None and buffer.size >= needed else numpy.empty(needed, numpy.uint8)
        read: List[Tuple[Path, int, Any]] = []
        if len(tensor.parts) == 1:
            part = tensor.parts[0]
            place = 0
            for offset, length in spans(part.extents, top * columns * kind.width, needed):
                self.fill(part.path, offset, memoryview(raw)[place : place + length])
                read.append((part.path, offset, raw[place : place + length]))
                place += length
            return raw.view(kind.numpy).reshape(bottom - top, columns), read
        array = raw.view(kind.numpy).reshape(bottom - top, columns)
        for part in tensor.parts:
            first, last = max(top, part.window.top), min(bottom, part.window.bottom)
            if first >= last:
                continue
            wide = part.window.columns
            piece = numpy.empty((last - first) * wide * kind.width, numpy.uint8)
            place = 0
            for offset, length in spans(part.extents, (first - part.window.top) * wide * kind.width, len(piece)):
                self.fill(part.path, offset, memoryview(piece)[place : place + length])
                place += length
            target = array[first - top : last - top, part.window.left : part.window.right]
            target[...] = piece.view(kind.numpy).reshape(last - first, wide)
        return array, read
