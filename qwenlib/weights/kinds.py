"""Number types in the three spellings (ours, MindSpore's, safetensors'), and casts that say what did not fit.

bfloat16 has no numpy type: its bits travel as uint16. To float16 it goes by integer arithmetic, three times as fast as
numpy through float32: both share the sign; the exponent moves by 112; 7 fraction bits become 10. What is not a normal
number in float16 (below 2**-14, or from 65536 up) is looked up in a table of all 65,536 values.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Tuple

BLOCK = 1 << 16
"""Elements handled at a time, so that the temporaries stay in the processor's cache."""


class Kind(NamedTuple):
    """A number type: numpy's name of the array that carries it, its width in bytes, and its other spellings."""

    numpy: str
    width: int
    mindspore: str
    safetensors: str


KINDS = {
    "float16": Kind("float16", 2, "Float16", "F16"),
    "float32": Kind("float32", 4, "Float32", "F32"),
    "float64": Kind("float64", 8, "Float64", "F64"),
    "bfloat16": Kind("uint16", 2, "BFloat16", "BF16"),
    "int8": Kind("int8", 1, "Int8", "I8"),
    "int16": Kind("int16", 2, "Int16", "I16"),
    "int32": Kind("int32", 4, "Int32", "I32"),
    "int64": Kind("int64", 8, "Int64", "I64"),
    "uint8": Kind("uint8", 1, "UInt8", "U8"),
    "uint16": Kind("uint16", 2, "UInt16", "U16"),
    "uint32": Kind("uint32", 4, "UInt32", "U32"),
    "uint64": Kind("uint64", 8, "UInt64", "U64"),
    "bool": Kind("bool", 1, "Bool", "BOOL"),
    "str": Kind("uint8", 1, "str", ""),
}
FLOATS = ("float16", "float32", "float64", "bfloat16")
BY_MINDSPORE = {kind.mindspore: name for name, kind in KINDS.items()}
BY_SAFETENSORS = {kind.safetensors: name for name, kind in KINDS.items() if kind.safetensors}
_INFINITE = {"float16": ("int16", "uint16", 0x7C00), "float32": ("int32", "uint32", 0x7F800000)}
_INFINITE["bfloat16"] = ("int16", "uint16", 0x7F80)
_LARGEST = 65504.0


class Counts(NamedTuple):
    """What a cast found: values that the new type cannot hold, and NaN or Inf that were there before."""

    overflow: int = 0
    nonfinite: int = 0


def as_float32(array: Any, kind: str) -> Any:
    """``array`` (bits of ``kind``) as float32 or wider."""
    import numpy

    if kind == "bfloat16":
        return numpy.left_shift(array, 16, dtype=numpy.uint32).view(numpy.float32)
    if kind == "float64":
        return array
    return array.astype(numpy.float32, copy=False)


def nonfinite(array: Any, kind: str) -> int:
    """How many values are NaN or Inf; looks twice only when there is one."""
    import numpy

    if kind not in _INFINITE:
        return int((~numpy.isfinite(array)).sum()) if kind == "float64" else 0
    signed, unsigned, limit = _INFINITE[kind]
    if not array.size:
        return 0
    bits, sign = array.view(unsigned), 1 << (8 * array.itemsize - 1)
    if int(array.view(signed).max()) < limit and int(bits.max()) < (limit | sign):
        return 0
    return int(((bits & (sign - 1)) >= limit).sum())


def cast(array: Any, kind: str, wanted: str, clamp: bool = False) -> Tuple[Any, Counts]:
    """``array`` (contiguous bits of ``kind``) as ``wanted``, rounding to nearest even, and what did not fit.

    ``clamp``: what is too large for float16 becomes 65504 with its sign, instead of infinite. NaN and Inf stay.
    """
    import numpy

    if kind == wanted:
        return array, Counts(0, nonfinite(array, kind))
    if kind == "bfloat16" and wanted == "float16":
        return _bfloat16_to_float16(array, clamp)
    if wanted == "bfloat16":
        return _to_bfloat16(array, kind)
    values = as_float32(array, kind)
    with numpy.errstate(over="ignore", invalid="ignore"):
        out = values.astype(KINDS[wanted].numpy, copy=False)
    if wanted not in _INFINITE or not nonfinite(out, wanted):
        return out, Counts()
    before = ~numpy.isfinite(values)
    over = ~numpy.isfinite(out) & ~before
    if clamp and over.any():
        out[over] = numpy.copysign(numpy.finfo(out.dtype).max, values[over])
    return out, Counts(int(over.sum()), int(before.sum()))


@functools.cache
def _table() -> Any:
    import numpy

    bits = numpy.arange(65536, dtype=numpy.uint32) << 16
    with numpy.errstate(over="ignore", invalid="ignore"):
        return bits.view(numpy.float32).astype(numpy.float16).view(numpy.uint16)


def _bfloat16_to_float16(array: Any, clamp: bool) -> Tuple[Any, Counts]:
    import numpy

    table = _table()
    source, out = array.reshape(-1), numpy.empty(array.size, numpy.uint16)
    bits, sign, odd = numpy.empty(BLOCK, numpy.uint16), numpy.empty(BLOCK, numpy.uint16), numpy.empty(BLOCK, bool)
    low, high = 113 << 7, 143 << 7  # 2**-14 and 65536 as bfloat16
    overflow = infinite = 0
    for start in range(0, source.size, BLOCK):
        part = source[start : start + BLOCK]
        size = part.size
        u, s, o = bits[:size], sign[:size], out[start : start + size]
        numpy.bitwise_and(part, 0x7FFF, out=u)
        numpy.bitwise_and(part, 0x8000, out=s)
        numpy.subtract(u, low, out=u)  # what is below wraps around and is huge
        rare = numpy.flatnonzero(numpy.greater_equal(u, high - low, out=odd[:size]))
        numpy.add(u, 1 << 7, out=u)
        numpy.multiply(u, 8, out=u)  # numpy has vector code for it, and none for shifts
        numpy.bitwise_or(u, s, out=o)
        if not rare.size:
            continue
        values = part[rare]
        found = table[values]
        size_of = values & 0x7FFF
        beyond = size_of >= high
        if beyond.any():
            bad = size_of >= 0x7F80
            over = beyond & ~bad
            overflow, infinite = overflow + int(over.sum()), infinite + int(bad.sum())
            if clamp:
                found[over] = 0x7BFF | (values[over] & 0x8000)
        o[rare] = found
    return out.view(numpy.float16).reshape(array.shape), Counts(overflow, infinite)


def _to_bfloat16(array: Any, kind: str) -> Tuple[Any, Counts]:
    import numpy

    values = numpy.ascontiguousarray(as_float32(array, kind)).astype(numpy.float32, copy=False)
    bits = values.view(numpy.uint32)
    bad = ~numpy.isfinite(values)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(numpy.uint32)) >> 16).astype(numpy.uint16)
    if bad.any():
        rounded[bad] = (bits[bad] >> 16).astype(numpy.uint16) | (numpy.isnan(values[bad]) * 0x40).astype(numpy.uint16)
    over = ((rounded & 0x7FFF) >= 0x7F80) & ~bad
    return rounded, Counts(int(over.sum()), int(bad.sum()))
