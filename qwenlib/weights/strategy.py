"""How one parameter is cut over the devices of a stage, and MindSpore's strategy files that say so.

A strategy file is protobuf (MindSpore ``node_strategy.proto``, ``ParallelStrategyMap``); of it only the layouts of
parameters matter here. ``tensor_map[i]`` names the axis of ``dev_matrix``, counted from the right, that cuts
dimension i (-1: uncut); devices are numbered row by row over ``dev_matrix``. With optimizer parallelism the first
dimension is cut once more, over ``opt_size`` devices that are ``opt_step`` apart (0: not; -1: over all devices that
hold the same slice).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.weights.tensors import Window, matrix


@dataclass(frozen=True)
class Cut:
    """The layout of one parameter."""

    dev_matrix: Tuple[int, ...]
    tensor_map: Tuple[int, ...]
    opt_step: int = 0
    opt_size: int = 0

    @property
    def devices(self) -> int:
        """Devices of the stage."""
        total = 1
        for side in self.dev_matrix:
            total *= side
        return total

    def parts(self, dimension: int) -> int:
        """Into how many pieces the tensor strategy cuts a dimension."""
        axis = self.tensor_map[dimension] if dimension < len(self.tensor_map) else -1
        return 1 if axis < 0 else self.dev_matrix[-1 - axis]

    @property
    def shards(self) -> int:
        """Into how many more pieces optimizer parallelism cuts the first dimension."""
        if self.opt_size == -1:
            return self.devices // max(self.opt_step, 1)
        return max(self.opt_size, 1)

    def window(self, shape: Tuple[int, ...], device: int) -> Window:
        """What ``device`` (counted within its stage) holds of a parameter of ``shape``.

        Raises:
            ValueError: the shape cannot be cut so.
        """
        rows, columns = matrix(shape)
        if any(self.parts(dimension) > 1 for dimension in range(2, len(shape))):
            raise ValueError("only the first two dimensions can be cut")
        down, across = self.parts(0) * self.shards, self.parts(1) if len(shape) > 1 else 1
        if rows % down or columns % across:
            raise ValueError(f"{list(shape)} cannot be cut into {down} x {across} equal pieces")
        tall, wide = rows // self.parts(0), columns // across
        top, left = self._coordinate(0, device) * tall, self._coordinate(1, device) * wide
        if self.shards > 1:
            tall //= self.shards
            top += device // max(self.opt_step, 1) % self.shards * tall
        return Window(top, top + tall, left, left + wide)

    def _coordinate(self, dimension: int, device: int) -> int:
        axis = self.tensor_map[dimension] if dimension < len(self.tensor_map) else -1
        if axis < 0:
            return 0
        for side in self.dev_matrix[len(self.dev_matrix) - axis :][::-1]:
            device //= side
        return device % self.dev_matrix[-1 - axis]


def read_strategy(path: Union[str, Path]) -> Dict[str, Cut]:
    """The layouts in a strategy file; names of a merged file (several stages) keep their ``<stage>-`` in front.

    Raises:
        Refused: no such file, or no strategy file.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from None
    found: Dict[str, Cut] = {}
    try:
        for number, item in _fields(raw):
            if number != 3:
                continue
            name, cut = "", Cut((1,), ())
            for inner, value in _fields(_message(item)):
                if inner == 1:
                    name = _message(value).decode()
                elif inner == 2:
                    cut = _cut(_message(value))
            found[name] = cut
    except (ValueError, IndexError) as error:
        raise Refused(f"{path} is no MindSpore strategy file ({error}).") from None
    if not found:
        raise Refused(f"{path} is no MindSpore strategy file: it holds no layout of a parameter.")
    return found


def _cut(raw: bytes) -> Cut:
    lists: Dict[int, Tuple[int, ...]] = {1: (1,), 2: ()}
    step = size = 0
    for number, value in _fields(raw):
        if number in (1, 2):
            lists[number] = tuple(_dims(_message(value)))
        elif number == 6 and isinstance(value, int):
            step = value
        elif number == 7 and isinstance(value, int):
            size = value
    return Cut(lists[1], lists[2], step, size)


def _dims(raw: bytes) -> Iterator[int]:
    for number, value in _fields(raw):
        if number != 1:
            continue
        if isinstance(value, int):
            yield _signed(value)
            continue
        place = 0  # packed
        while place < len(value):
            one, place = _varint(value, place)
            yield _signed(one)


def _signed(value: int) -> int:
    """-1 is stored as 32 or 64 ones."""
    for bits in (64, 32):
        if value >= 1 << (bits - 1) and value >> bits == 0:
            return value - (1 << bits)
    return value


def _message(value: Union[int, bytes]) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _fields(raw: bytes) -> Iterator[Tuple[int, Union[int, bytes]]]:
    place = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        if tag & 7 == 0:
            value, place = _varint(raw, place)
            yield tag >> 3, _signed(value)
        elif tag & 7 == 2:
            length, place = _varint(raw, place)
            if place + length > len(raw):
                raise ValueError("it is cut off")
            yield tag >> 3, raw[place : place + length]
            place += length
        else:
            raise ValueError(f"wire type {tag & 7}")


def _varint(raw: bytes, place: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def stages_of(cuts: Dict[str, Cut]) -> List[Dict[str, Cut]]:
    """Layouts by stage: ``0-name`` and ``1-name`` of a merged file go to stages 0 and 1, plain names to stage 0."""
    found: Dict[int, Dict[str, Cut]] = {}
    for name, cut in cuts.items():
        head, dash, tail = name.partition("-")
        stage, plain = (int(head), tail) if dash and head.isdigit() else (0, name)
        found.setdefault(stage, {})[plain] = cut
    return [found.get(stage, {}) for stage in range(max(found) + 1)]
