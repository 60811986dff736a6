"""MindSpore's .ckpt file, written tensor by tensor.

The file is a run of protobuf messages ``Checkpoint{repeated Value value = 1}`` (MindSpore ``checkpoint.proto``):
``Value{string tag = 1; TensorProto tensor = 2}``, ``TensorProto{repeated int64 dims = 1 (not packed);
string tensor_type = 2; bytes tensor_content = 3}``. There is no header and no trailer. A tensor above 512 MiB is
written as several values with the same tag and the full dims, as MindSpore's own writer does.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Optional, Tuple, Type, Union

from qwenlib.weights.kinds import KINDS

SLICE_BYTES = 512 * 2**20


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload_length: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(payload_length)


def value_head(tag: str, dims: Tuple[int, ...], kind: str, content_length: int) -> bytes:
    """Everything of one ``Checkpoint{Value}`` message that stands before the tensor's bytes."""
    dims_bytes = b"".join(b"\x08" + _varint(side) for side in dims)
    kind_bytes = kind.encode()
    tensor_head = dims_bytes + _field(2, len(kind_bytes)) + kind_bytes + _field(3, content_length)
    tag_bytes = tag.encode()
    tensor_length = len(tensor_head) + content_length
    value = _field(1, len(tag_bytes)) + tag_bytes + _field(2, tensor_length)
    return _field(1, len(value) + tensor_length) + value + tensor_head


class CheckpointWriter:
    """``with CheckpointWriter(path) as out: out.add("lm_head.weight", array)``; memory: one tensor at a time."""

    def __init__(self, path: Union[str, Path]):
        self._stream: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> CheckpointWriter:
        return self

    def add(self, name: str, array: object) -> int:
        """Append one numpy array under ``name``; returns the bytes of its content.

        Raises:
            ValueError: a dtype that MindSpore's format has no name for.
        """
        import numpy

        data = numpy.ascontiguousarray(array)
        kind = KINDS.get(str(data.dtype))
        if kind is None:
            raise ValueError(f"{name}: a MindSpore checkpoint has no type for {data.dtype}.")
        raw = memoryview(data.reshape(-1).view(numpy.uint8))
        for start in range(0, max(len(raw), 1), SLICE_BYTES):
            part = raw[start : start + SLICE_BYTES]
            self._stream.write(value_head(name, data.shape, kind.mindspore, len(part)))
            self._stream.write(part)
        return len(raw)

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._stream.close()
