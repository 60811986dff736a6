"""A file to be written, laid out before the first byte: where each tensor will lie, and the bytes between.

With the places known, tensors can be written in the order in which they are read, by several threads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Sequence, Tuple

from qwenlib.weights.checkpoint import SLICE_BYTES, value_head
from qwenlib.weights.kinds import KINDS
from qwenlib.weights.tensors import Extent, elements


class Planned(NamedTuple):
    """A tensor to be written."""

    name: str
    kind: str
    shape: Tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its content."""
        return elements(self.shape) * KINDS[self.kind].width


@dataclass(frozen=True)
class Layout:
    """The plan of one file."""

    heads: List[Tuple[int, bytes]]
    """What stands between the tensors, with its offset."""
    places: Dict[str, Tuple[Extent, ...]]
    """Where each tensor's bytes lie."""
    size: int
    """Bytes of the whole file."""


def checkpoint_layout(tensors: Sequence[Planned]) -> Layout:
    """A MindSpore .ckpt; a tensor above 512 MiB is cut into several values as MindSpore's writer does."""
    heads: List[Tuple[int, bytes]] = []
    places: Dict[str, Tuple[Extent, ...]] = {}
    offset = 0
    for tensor in tensors:
        extents = []
        for start in range(0, max(tensor.bytes, 1), SLICE_BYTES):
            length = min(SLICE_BYTES, tensor.bytes - start)
            head = value_head(tensor.name, tensor.shape, KINDS[tensor.kind].mindspore, length)
            heads.append((offset, head))
            extents.append((offset + len(head), length))
            offset += len(head) + length
        places[tensor.name] = tuple(extents)
    return Layout(heads, places, offset)


MADE_BY = "qwenlib"
"""In the header of what we export, so that it may be replaced, and a downloaded model may not."""


def safetensors_layout(tensors: Sequence[Planned]) -> Layout:
    """A .safetensors file: 8 bytes of length, a JSON table padded to 8 bytes, the tensors."""
    table: Dict[str, object] = {"__metadata__": {"format": "pt", "made_by": MADE_BY}}
    offset, begins = 0, {}
    for tensor in tensors:
        begins[tensor.name] = offset
        ends = offset + tensor.bytes
        table[tensor.name] = {
            "dtype": KINDS[tensor.kind].safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [offset, ends],
        }
        offset = ends
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    places: Dict[str, Tuple[Extent, ...]] = {
        tensor.name: ((len(head) + begins[tensor.name], tensor.bytes),) for tensor in tensors
    }
    return Layout([(0, head)], places, len(head) + offset)
