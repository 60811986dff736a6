"""Are two models the same? Names, shapes, number types and the largest difference of each tensor, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Union

from qwenlib.progress import Progress
from qwenlib.weights.kinds import FLOATS, KINDS, as_float32
from qwenlib.weights.source import Source, open_source
from qwenlib.weights.tensors import Files, Tensor, matrix

BLOCK = 4 * 2**20
"""Bytes of each side that are held at a time."""


def check(first: Union[str, Path, Source], second: Union[str, Path, Source], tolerance: float = 0.0) -> Dict[str, Any]:
    """Compare two of: Hugging Face folder, .ckpt file, model_dir, folder of rank slices. Names are MindSpore's.

    Returns:
        ``{"equal", "tensors", "different", "only_in_first", "only_in_second", "max_abs_diff", "rows"}``; a row is
        ``{"name", "shape", "dtype", "other_shape", "other_dtype", "max_abs_diff", "equal"}``; ``equal`` asks for the
        same shape and, up to ``tolerance``, the same values (a float16 and its float32 copy are equal);
        ``max_abs_diff`` is None when shapes differ.

    Raises:
        Refused: one of them cannot be read.
    """
    sides = [open_source(item) for item in (first, second)]
    left, right = sides[0].tensors, sides[1].tensors
    both = [name for name in left if name in right]
    rows: List[Dict[str, Any]] = []
    with Files() as files, Progress("check", len(both), "tensors") as bar:
        for name in both:
            rows.append(_compare(files, left[name], right[name], tolerance))
            bar.advance(note=name)
    only = [[name for name in one if name not in other] for one, other in ((left, right), (right, left))]
    different = sum(not row["equal"] for row in rows)
    numbers = [row["max_abs_diff"] for row in rows if row["max_abs_diff"] is not None]
    return {
        "equal": not different and not only[0] and not only[1],
        "tensors": len(rows),
        "different": different,
        "only_in_first": only[0],
        "only_in_second": only[1],
        "max_abs_diff": max(numbers, key=lambda value: float("inf") if value != value else value, default=None),
        "rows": rows,
    }


def same(first: Tensor, second: Tensor) -> bool:
    """The same shape and the same values."""
    with Files() as files:
        return bool(_compare(files, first, second)["equal"])


def _compare(files: Files, first: Tensor, second: Tensor, tolerance: float = 0.0) -> Dict[str, Any]:
    row: Dict[str, Any] = {
        "name": first.name,
        "shape": list(first.shape),
        "dtype": first.kind,
        "other_shape": list(second.shape),
        "other_dtype": second.kind,
        "max_abs_diff": None,
        "equal": False,
    }
    if first.shape == second.shape:
        row["max_abs_diff"] = largest_difference(files, first, second)
        row["equal"] = row["max_abs_diff"] <= tolerance
    return row


def largest_difference(files: Files, first: Tensor, second: Tensor) -> float:
    """max |first - second|; NaN when one of them has a NaN where the other has none."""
    import numpy

    if len(first.parts) == len(second.parts) == 1:
        first, second = first.flat(), second.flat()
    rows, columns = matrix(first.shape)
    step = max(1, BLOCK // max(1, columns * max(KINDS[first.kind].width, KINDS[second.kind].width)))
    largest = 0.0
    for top in range(0, rows, step):
        bottom = min(rows, top + step)
        a, b = files.rows(first, top, bottom)[0], files.rows(second, top, bottom)[0]
        if first.kind == second.kind and numpy.array_equal(a.view(numpy.uint8), b.view(numpy.uint8)):
            continue
        wide = [
            as_float32(array, kind).astype(numpy.float64) if kind in FLOATS else array.astype(numpy.float64)
            for array, kind in ((a, first.kind), (b, second.kind))
        ]
        alike = (wide[0] == wide[1]) | (numpy.isnan(wide[0]) & numpy.isnan(wide[1]))
        if alike.all():
            continue
        with numpy.errstate(invalid="ignore"):
            found = numpy.abs(wide[0] - wide[1])[~alike].max()
        if numpy.isnan(found):
            return float("nan")
        largest = max(largest, float(found))
    return largest


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
    lines.append(
        f"{verdict}: {found['tensors']} tensors in both, {found['different']} differ, largest difference {number}"
    )
    return "\n".join(lines)
