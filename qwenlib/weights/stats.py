"""How large the weights are, layer by layer: a wrong conversion shows as points that leave their line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Union

from qwenlib.weights.kinds import as_float32
from qwenlib.weights.source import Source, open_source
from qwenlib.weights.tensors import Files, Tensor, matrix

SAMPLE = 1 << 20
"""Elements of a tensor that are looked at, in eight stretches spread over it."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:(?:attention|feed_forward)\.)?(.+)$")


def layer_statistics(model: Union[str, Path, Source], sample: int = SAMPLE) -> List[Dict[str, Any]]:
    """``[{"layer", "part", "rms", "largest"}]`` of every tensor in a layer: root mean square, largest absolute value.

    Raises:
        Refused: the model cannot be read.
    """
    held = open_source(model)
    found = []
    with Files() as files:
        for name, tensor in held.tensors.items():
            match = _LAYER.match(name)
            if match:
                values = _stretches(files, tensor, sample)
                rms = float((values**2).mean() ** 0.5)
                found.append(
                    {
                        "layer": int(match.group(1)),
                        "part": match.group(2),
                        "rms": rms,
                        "largest": float(abs(values).max()),
                    }
                )
    return found


def _stretches(files: Files, tensor: Tensor, sample: int) -> Any:
    import numpy

    if len(tensor.parts) == 1:
        tensor = tensor.flat()
    rows, columns = matrix(tensor.shape)
    taken = max(1, min(rows, sample // max(columns, 1)))
    if taken == rows:
        tops, step = [0], rows
    else:
        step = max(1, taken // 8)
        tops = [(rows - step) * number // 7 for number in range(8)]
    parts = [as_float32(files.rows(tensor, top, top + step)[0], tensor.kind).reshape(-1) for top in tops]
    return numpy.concatenate(parts).astype(numpy.float64)


def figure(source: Union[str, Path, Source], converted: Union[str, Path, Source]) -> Any:
    """Root mean square of each kind of tensor over the layers: the source as lines, the converted file as points.

    Points off their line, or on another part's, mean that tensors were lost, swapped or mangled.
    """
    from matplotlib import pyplot

    groups = (
        ("attention", re.compile(r"w[qkvo]\.weight")),
        ("feed forward", re.compile(r"w[123]\.weight")),
        ("norms and biases", re.compile(r".*(norm\.weight|bias)")),
    )
    picture, panels = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    sides = [layer_statistics(source), layer_statistics(converted)]
    for axes, (title, pattern) in zip(panels, groups):
        parts = list(dict.fromkeys(row["part"] for row in sides[0] + sides[1] if pattern.fullmatch(row["part"])))
        for number, part in enumerate(parts):
            for rows, style in zip(sides, ("-", "o")):
                line = sorted((row["layer"], row["rms"]) for row in rows if row["part"] == part)
                axes.plot(
                    [layer for layer, _ in line],
                    [rms for _, rms in line],
                    style,
                    color=f"C{number}",
                    markerfacecolor="none",
                    label=part if style == "-" else None,
                )
        axes.set(title=title, xlabel="layer", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best", fontsize="x-small")
    panels[0].set_ylabel("root mean square")
    picture.suptitle("lines: Hugging Face · circles: MindSpore", fontsize="small")
    return picture
