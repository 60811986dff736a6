"""Rank slices seen as whole tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from qwenlib.errors import Refused
from qwenlib.weights.ckpt_read import read_table
from qwenlib.weights.slice_plan import Plan
from qwenlib.weights.tensors import Part, Tensor, Window, elements, matrix


def gather(folder: Path, files: Dict[int, Path], plan: Plan, shapes: Dict[str, Tuple[int, ...]]) -> Dict[str, Tensor]:
    """Every tensor that the ranks' ``files`` hold, put together from their slices (replicas: the first rank's).

    ``shapes``: full shapes by name; what is not named there must be the same on every rank.

    Raises:
        Refused: ranks are missing or too many, or slices are missing or have another shape than the plan's; all told.
    """
    missing = sorted(set(range(plan.ranks)) - set(files))
    if missing or len(files) > plan.ranks:
        raise Refused(
            f"{folder} holds {len(files)} ranks, the plan has {plan.ranks}"
            + (f"; missing: {', '.join(f'rank_{rank}' for rank in missing)}." if missing else ".")
        )
    tables = {rank: read_table(path) for rank, path in files.items()}
    problems: List[str] = []
    found: Dict[str, Tensor] = {}
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        holders = [rank for rank, table in tables.items() if name in table]
        first = tables[holders[0]][name]
        shape = shapes.get(name, first.shape)
        parts: Dict[Window, Part] = {}
        for rank in range(plan.ranks):
            window = plan.window(name, shape, rank)
            if window is None:
                continue
            held = tables[rank].get(name)
            if held is None:
                problems.append(f"rank_{rank} lacks {name}")
            elif matrix(held.shape) != (window.rows, window.columns) or held.kind != first.kind:
                problems.append(
                    f"rank_{rank}: {name} is {list(held.shape)} {held.kind}, "
                    f"the plan says {[window.rows, window.columns][: len(held.shape)]} {first.kind}"
                )
            elif window not in parts:
                parts[window] = Part(held.parts[0].path, held.parts[0].extents, window)
        if sum(window.rows * window.columns for window in parts) != elements(shape) and not problems:
            problems.append(f"{name}: the slices do not make up {list(shape)}")
        found[name] = Tensor(name, first.kind, shape, _join(list(parts.values()), shape))
    problems += [f"no rank holds {name}" for name in shapes if name not in found]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise Refused(
            f"{folder}: {'; '.join(problems[:4])}{more}. Were they cut by another plan, or is it a model of other "
            "sizes (then give its folder: --torch_ckpt_dir)?"
        )
    return found


def _join(parts: Sequence[Part], shape: Tuple[int, ...]) -> Tuple[Part, ...]:
    return tuple(sorted(parts, key=lambda part: (part.window.top, part.window.left)))
