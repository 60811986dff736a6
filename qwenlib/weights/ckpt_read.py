"""MindSpore's .ckpt file, read as a table of contents: only the heads, never the tensors (see checkpoint.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Optional, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.weights.kinds import BY_MINDSPORE, KINDS
from qwenlib.weights.tensors import Extent, Files, Part, Tensor, elements, whole

_CRC = b"crc_num"
_CRC_LENGTH = len(_CRC) + 10


class _Damaged(Exception):
    """What is wrong with the bytes at hand."""


def read_table(path: Union[str, Path]) -> Dict[str, Tensor]:
    """Every tensor of a .ckpt file by name, in the file's order. Needs memory for the names only.

    Raises:
        Refused: no such file, or it is cut off, encrypted or no MindSpore checkpoint (with the byte).
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            reader = _Reader(stream, os.fstat(stream.fileno()).st_size)
            return _table(path, reader)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from None
    except _Damaged as error:
        raise Refused(
            f"{path}, byte {reader.place} of {reader.end}: not a whole MindSpore checkpoint ({error}). "
            "It was cut off while being written or copied, is encrypted, or is another kind of file."
        ) from None


class _Reader:
    """Reads protobuf's small parts and skips the large ones."""

    def __init__(self, stream: BinaryIO, end: int):
        self.stream, self.end, self.place = stream, end, 0

    def byte(self) -> int:
        found = self.stream.read(1)
        if not found:
            raise _Damaged("the file ends here")
        self.place += 1
        return found[0]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise _Damaged("a number of more than ten bytes")

    def key(self, limit: int) -> Tuple[int, int]:
        """(field number, length or value) of the next field, which must end before ``limit``."""
        tag = self.varint()
        if tag & 7 == 0:
            return tag >> 3, self.varint()
        if tag & 7 != 2:
            raise _Damaged(f"field {tag >> 3} has wire type {tag & 7}")
        length = self.varint()
        if self.place + length > limit:
            raise _Damaged(f"{length} bytes announced, {max(limit - self.place, 0)} left")
        return tag >> 3, length

    def text(self, length: int) -> str:
        if length > 65536:
            raise _Damaged(f"a name of {length} bytes")
        raw = self.stream.read(length)
        self.place += len(raw)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise _Damaged("a name that is not UTF-8") from None

    def skip(self, length: int) -> None:
        self.stream.seek(length, os.SEEK_CUR)
        self.place += length


def _table(path: Path, reader: _Reader) -> Dict[str, Tensor]:
    values: Dict[str, Tuple[str, Tuple[int, ...], List[Extent]]] = {}
    last: Optional[str] = None
    while reader.place < reader.end:
        if reader.end - reader.place == _CRC_LENGTH and reader.stream.read(len(_CRC)) == _CRC:
            break  # the trailer of save_checkpoint(crc_check=True)
        reader.stream.seek(reader.place)
        number, length = reader.key(reader.end)
        if number != 1:
            raise _Damaged(f"field {number} where field 1 begins a tensor")
        name, kind, dims, extent = _value(reader, reader.place + length)
        if name == last and name in values:
            values[name][2].append(extent)  # a tensor above 512 MiB lies in several values
        elif name in values:
            raise _Damaged(f"{name} occurs twice")
        else:
            values[name] = (kind, dims, [extent])
        last = name
    if not values:
        raise _Damaged("it holds no tensor")
    return {name: _tensor(path, name, *value) for name, value in values.items()}


def _value(reader: _Reader, end: int) -> Tuple[str, str, Tuple[int, ...], Extent]:
    name, kind, dims, extent = "", "", [], (-1, 0)  # type: str, str, List[int], Extent
    while reader.place < end:
        number, length = reader.key(end)
        if number == 1:
            name = reader.text(length)
        elif number == 2:
            inner = reader.place + length
            while reader.place < inner:
                field, size = reader.key(inner)
                if field == 1:
                    dims.append(size)
                elif field == 2:
                    kind = reader.text(size)
                elif field == 3:
                    extent = (reader.place, size)
                    reader.skip(size)
                else:
                    raise _Damaged(f"unknown field {field} in a tensor")
        else:
            raise _Damaged(f"field {number} in a value (map parameters are not read)")
    if not name or not kind or extent[0] < 0:
        raise _Damaged("a tensor without name, type or content")
    return name, kind, tuple(dims), extent


def _tensor(path: Path, name: str, spelled: str, dims: Tuple[int, ...], extents: List[Extent]) -> Tensor:
    kind = BY_MINDSPORE.get(spelled)
    if kind is None:
        raise _Damaged(f"{name} has the unknown type {spelled!r}")
    content = sum(size for _, size in extents)
    if kind == "str":
        shape: Tuple[int, ...] = (content,)
    else:
        shape = () if dims == (0,) and content else dims  # MindSpore 2.2 writes a scalar's shape as [0]
        if kind == "bfloat16" and content == 4 * elements(shape):
            kind = "float32"  # MindSpore 2.2 stores bfloat16 as float32
        if content != elements(shape) * KINDS[kind].width:
            raise _Damaged(f"{name} has {content} bytes, its shape {list(shape)} asks for another number")
    return Tensor(name, kind, shape, (Part(path, tuple(extents), whole(shape)),))


def value(tensor: Tensor) -> Any:
    """The whole of a small tensor as a numpy array of its shape, or a text."""
    with Files() as files:
        array, _ = files.rows(tensor, 0, whole(tensor.shape).rows)
    if tensor.kind == "str":
        return array.tobytes().decode("utf-32-le", "replace")
    return array.reshape(tensor.shape)
