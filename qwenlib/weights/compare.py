"""Are two models the same? Names, shapes, number types and the largest difference of each tensor, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Union

from qwenlib.progress import Progress
from qwenlib.weights.kinds import FLOATS, KINDS, as_float32, cast
from qwenlib.weights.pump import Pace
from qwenlib.weights.source import Source, open_source
from qwenlib.weights.tensors import Files, Tensor, matrix

BLOCK = 4 * 2**20
"""Bytes of each side that are held at a time."""


def check(first: Union[str, Path, Source], second: Union[str, Path, Source], tolerance: float = 0.0) -> Dict[str, Any]:
    """Compare two of: Hugging Face folder, .ckpt file, model_dir, folder of rank slices. Names are MindSpore's.

    Two tensors are equal when their shapes are and when no value differs by more than ``tolerance``, or when one is
    exactly the other cast to its number type: a bfloat16 model and the float16 checkpoint made of it differ below
    2**-14, where float16 has fewer digits.

    Returns:
        ``{"equal", "tensors", "different", "rounded", "only_in_first", "only_in_second", "max_abs_diff", "rows"}``; a
        row is ``{"name", "shape", "dtype", "other_shape", "other_dtype", "max_abs_diff", "rounded", "equal"}``;
        ``rounded``: equal by the cast only; ``max_abs_diff`` is None when shapes differ, NaN when one has a NaN where
        the other has none.

    Raises:
        Refused: one of them cannot be read.
    """
    sides = [open_source(item) for item in (first, second)]
    left, right = sides[0].tensors, sides[1].tensors
    both = [name for name in left if name in right]
    rows: List[Dict[str, Any]] = []
    total = sum(left[name].bytes for name in both)
    with Files() as files, Progress("check", max(1, total // 10**6), "MB") as bar:
        pace = Pace(bar, total)
        for name in both:
            rows.append(_compare(files, left[name], right[name], tolerance))
            pace.advance(left[name].bytes, name)
        pace.end()
    only = [[name for name in one if name not in other] for one, other in ((left, right), (right, left))]
    different = sum(not row["equal"] for row in rows)
    numbers = [row["max_abs_diff"] for row in rows if row["max_abs_diff"] is not None]
    return {
        "equal": not different and not only[0] and not only[1],
        "tensors": len(rows),
        "different": different,
        "rounded": sum(row["rounded"] for row in rows),
        "only_in_first": only[0],
        "only_in_second": only[1],
        "max_abs_diff": max(numbers, key=lambda value: float("inf") if value != value else value, default=None),
        "rows": rows,
    }


def same(first: Tensor, second: Tensor) -> bool:
    """The same shape and the same values, whatever their number types."""
    with Files() as files:
        return first.shape == second.shape and _differ(files, first, second).largest == 0


def _compare(files: Files, first: Tensor, second: Tensor, tolerance: float) -> Dict[str, Any]:
    row: Dict[str, Any] = {
        "name": first.name,
        "shape": list(first.shape),
        "dtype": first.kind,
        "other_shape": list(second.shape),
        "other_dtype": second.kind,
        "max_abs_diff": None,
        "rounded": False,
        "equal": False,
    }
    if first.shape == second.shape:
        found = _differ(files, first, second)
        row["max_abs_diff"] = found.largest
        row["rounded"] = found.cast and not found.largest <= tolerance
        row["equal"] = found.largest <= tolerance or found.cast
    return row


class _Difference(NamedTuple):
    largest: float
    """max |first - second|; NaN when one has a NaN where the other has none."""
    cast: bool
    """One is the other, cast."""


def _differ(files: Files, first: Tensor, second: Tensor) -> _Difference:
    import numpy

    if len(first.parts) == len(second.parts) == 1:
        first, second = first.flat(), second.flat()
    rows, columns = matrix(first.shape)
    step = max(1, BLOCK // max(1, columns * max(KINDS[first.kind].width, KINDS[second.kind].width)))
    largest, casts = 0.0, [first.kind != second.kind] * 2
    for top in range(0, rows, step):
        bottom = min(rows, top + step)
        a, b = (files.rows(tensor, top, bottom)[0].reshape(-1) for tensor in (first, second))
        if first.kind == second.kind and bytes_equal(a, b):
            continue
        wide = [_wide(array, kind) for array, kind in ((a, first.kind), (b, second.kind))]
        odd = numpy.flatnonzero(wide[0] != wide[1])
        if len(odd):  # NaN is not even itself
            odd = odd[~(numpy.isnan(wide[0][odd]) & numpy.isnan(wide[1][odd]))]
        if not len(odd):
            continue
        for number, (array, kind, other, goal) in enumerate(
            ((a, first.kind, wide[1], second.kind), (b, second.kind, wide[0], first.kind))
        ):
            casts[number] = casts[number] and _is_cast(array[odd], kind, other[odd], goal)
        with numpy.errstate(invalid="ignore"):
            found = numpy.abs(numpy.subtract(wide[0][odd], wide[1][odd], dtype=numpy.float64)).max()
        if numpy.isnan(found):
            return _Difference(float("nan"), False)
        largest = max(largest, float(found))
    return _Difference(largest, any(casts) and 0 < largest < float("inf"))


def bytes_equal(first: Any, second: Any) -> bool:
    """The same bits, for two contiguous arrays of one type."""
    import numpy

    wide = numpy.uint64 if first.nbytes % 8 == 0 else numpy.uint8
    return bool(numpy.array_equal(first.view(wide), second.view(wide)))


def _wide(array: Any, kind: str) -> Any:
    import numpy

    return as_float32(array, kind) if kind in FLOATS else array.astype(numpy.float64)


def _is_cast(array: Any, kind: str, other: Any, goal: str) -> bool:
    """Whether ``array`` of ``kind``, cast to ``goal``, has the values ``other``, with nothing that did not fit."""
    import numpy

    if kind not in FLOATS or goal not in FLOATS:
        return False
    out, counts = cast(numpy.ascontiguousarray(array), kind, goal)
    return not counts.overflow and bool((_wide(out, goal) == other).all())


def table(found: Dict[str, Any], every: bool = False) -> str:
    """The comparison as text: tensors that differ (``every``: all), then the sum."""
    lines = []
    for row in found["rows"]:
        if every or not row["equal"]:
            left, right = f"{row['shape']} {row['dtype']}", f"{row['other_shape']} {row['other_dtype']}"
            number = "-" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.3e}"
            lines.append(f"{row['name']:52s} {left:26s} {right:26s} {number:>10s}")
    if lines:
        lines.insert(0, f"{'tensor':52s} {'first':26s} {'second':26s} {'max |diff|':>10s}")
    for key, where in (("only_in_first", "first"), ("only_in_second", "second")):
        names = found[key]
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            lines.append(f"only in the {where}: {', '.join(names[:6])}{more}")
    number = "-" if found["max_abs_diff"] is None else f"{found['max_abs_diff']:.3e}"
    verdict = "equal" if found["equal"] else "different"
    cast = f", {found['rounded']} are equal up to the rounding of their number type" if found["rounded"] else ""
    lines.append(
        f"{verdict}: {found['tensors']} tensors in both, {found['different']} differ{cast}, largest difference {number}"
    )
    return "\n".join(lines)
