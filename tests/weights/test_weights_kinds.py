"""Casts against numpy's and torch's, for every bit pattern that matters."""

from __future__ import annotations

import numpy
import pytest

from qwenlib.weights.kinds import BLOCK, as_float32, cast, nonfinite

ALL_16 = numpy.arange(65536, dtype=numpy.uint16)


def reference(bits: numpy.ndarray) -> numpy.ndarray:
    with numpy.errstate(all="ignore"):
        return (bits.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float16)


def test_every_bfloat16_becomes_the_float16_that_numpy_gives() -> None:
    out, counts = cast(ALL_16, "bfloat16", "float16")
    assert (out.view(numpy.uint16) == reference(ALL_16).view(numpy.uint16)).all()
    wide = (ALL_16.astype(numpy.uint32) << 16).view(numpy.float32)
    assert counts.nonfinite == int((~numpy.isfinite(wide)).sum())
    assert counts.overflow == int((numpy.isfinite(wide) & ~numpy.isfinite(reference(ALL_16))).sum()) > 0


def test_blocks_join_without_a_seam() -> None:
    bits = numpy.random.default_rng(0).integers(0, 0x4700, 2 * BLOCK + 7).astype(numpy.uint16)
    out, counts = cast(bits, "bfloat16", "float16")
    assert (out.view(numpy.uint16) == reference(bits).view(numpy.uint16)).all() and counts == (0, 0)
    assert cast(bits[:0], "bfloat16", "float16")[0].size == 0


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_clamp_writes_the_largest_float16_and_leaves_nan_and_inf_alone(kind: str) -> None:
    values = numpy.array([7e4, -7e4, numpy.inf, numpy.nan, 1.0, -65000.0], numpy.float32)
    source = (values.view(numpy.uint32) >> 16).astype(numpy.uint16) if kind == "bfloat16" else values
    out, counts = cast(source, kind, "float16", clamp=True)
    assert counts == (2, 2)
    assert out[0] == 65504 and out[1] == -65504 and numpy.isinf(out[2]) and numpy.isnan(out[3]) and out[4] == 1
    assert numpy.isinf(cast(source, kind, "float16")[0][0])


def test_float32_to_float16_counts_what_did_not_fit() -> None:
    values = numpy.array([1e-9, 65519.0, 65520.0, -1e30, numpy.nan], numpy.float32)
    out, counts = cast(values, "float32", "float16")
    assert counts == (2, 1) and out[0] == 0 and out[1] == 65504


@pytest.mark.parametrize("kind", ["float16", "float32", "bfloat16", "float64"])
def test_nonfinite_is_counted_in_every_kind(kind: str) -> None:
    values = numpy.array([1.0, -numpy.inf, numpy.inf, numpy.nan, -2.0, 0.0], numpy.float64)
    if kind == "bfloat16":
        array = (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)
    else:
        array = values.astype(kind)
    assert nonfinite(array, kind) == 3 and nonfinite(array[:1], kind) == 0
    assert cast(array, kind, kind)[1] == (0, 3)
    assert as_float32(array, kind)[4] == -2.0


@pytest.mark.stack
def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    torch = pytest.importorskip("torch")
    values = numpy.random.default_rng(1).standard_normal(5000).astype(numpy.float32)
    values[:4] = [numpy.inf, -numpy.inf, numpy.nan, 3.4e38]
    bits, counts = cast(values, "float32", "bfloat16")
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(numpy.uint16)
    same = bits == theirs
    same[2] = ((bits[2] & 0x7F80) == 0x7F80) and (bits[2] & 0x7F) != 0
    assert same.all() and counts == (1, 3)
