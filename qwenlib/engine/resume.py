"""Where to go on: the newest checkpoint that every rank has written to its end.

MindFormers keeps ``output/checkpoint/rank_N/*.ckpt`` (weights, optimizer state, ``epoch_num``, ``step_num``,
``loss_scale``). A rank that dies while it writes leaves half a file, which MindFormers, taking the newest by time,
would load; here every file is read to its end first (names and lengths only, the weights are skipped).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Dict, List, Optional, Sequence, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import write_text
from qwenlib.workspace import resolve

NEVER, AUTO = "never", "auto"
_VALUE, _TAG, _TENSOR, _CONTENT = 0x0A, 0x0A, 0x12, 0x1A  # fields of MindSpore's Checkpoint message
_SMALL = 256
"""Bytes of an entry that holds one number."""
_CLOSING = ("epoch_num", "step_num", "loss_scale")
"""What MindFormers writes behind the parameters: with these, the file is whole."""


@dataclass(frozen=True)
class Saved:
    """A point of a training that can be gone on from."""

    step: int
    epoch: int
    files: Dict[int, Path]
    """One checkpoint a rank."""


def read_point(path: Path) -> Optional[Tuple[int, int]]:
    """``(step_num, epoch_num)`` of a training checkpoint; None when the file is cut off or holds no such numbers."""
    found: Dict[str, int] = {}
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            while stream.tell() < size:
                if _byte(stream) != _VALUE:
                    return None
                length = _varint(stream)
                end = stream.tell() + length
                if end > size:
                    return None
                if _byte(stream) == _TAG:
                    tag = stream.read(_varint(stream)).decode("utf-8", "replace")
                    if tag in _CLOSING and length < _SMALL:
                        found[tag] = _number(stream.read(end - stream.tell()))
                stream.seek(end)
    except (OSError, EOFError, ValueError):
        return None
    if any(name not in found for name in _CLOSING):
        return None
    return found["step_num"], found["epoch_num"]


def newest(checkpoint_dir: Union[str, Path], ranks: Sequence[int]) -> Optional[Saved]:
    """The latest point of which each of ``ranks`` has a whole file below ``checkpoint_dir``; None: there is none."""
    points: List[Dict[Tuple[int, int], Path]] = []
    for rank in ranks:
        mine: Dict[Tuple[int, int], Path] = {}
        for path in sorted(Path(checkpoint_dir).glob(f"rank_{rank}/*.ckpt"), key=_written):
            point = read_point(path)
            if point is not None:
                mine[point] = path
        points.append(mine)
    common = set(points[0]).intersection(*points[1:]) if points else set()
    if not common:
        return None
    step, epoch = best = max(common)
    return Saved(step, epoch, {rank: mine[best] for rank, mine in zip(ranks, points)})


def _written(path: Path) -> float:
    """When a file was written; one that a training that goes on has just taken away is older than all."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def choose(resume: Union[str, Path], run_dir: Path, ranks: Sequence[int]) -> Optional[Saved]:
    """What ``resume`` means: ``never``; ``auto`` (the newest of ``run_dir/output``, if there is one); or the path of
    a checkpoint folder (one that holds ``rank_N``, or an output folder with ``checkpoint`` in it).

    Raises:
        Refused: the path holds no point that all ranks could go on from.
    """
    if str(resume) == NEVER:
        return None
    if str(resume) == AUTO:
        return newest(run_dir / "output" / "checkpoint", ranks)
    path = Path(resume).expanduser().absolute()
    path = path if path.exists() else resolve(resume)  # a notebook stands in its own folder
    for folder in (path, path / "checkpoint", path / "output" / "checkpoint"):
        saved = newest(folder, ranks)
        if saved is not None:
            return saved
    raise Refused(
        f"resume {path}: it holds no whole training checkpoint for each of the {len(ranks)} rank(s) (rank_N/*.ckpt "
        "with the optimizer's state, of the same step). A weights-only checkpoint goes to load_checkpoint."
    )


def passed_over(run_dir: Path, ranks: Sequence[int], saved: Optional[Saved]) -> str:
    """A line about checkpoints of ``run_dir/output`` that ``auto`` could not take; "" when there are none."""
    folder = run_dir / "output" / "checkpoint"
    files = [path for rank in ranks for path in sorted(folder.glob(f"rank_{rank}/*.ckpt"))]
    broken = [path.name for path in files if read_point(path) is None]
    if not broken and (saved is not None or not files):
        return ""
    why = f"not whole: {', '.join(broken)}" if broken else "the ranks have no step in common"
    how = "the training begins anew" if saved is None else f"the training goes on after step {saved.step}"
    return f"resume auto: checkpoints below {folder} cannot be taken ({why}); {how}\n"


def lay_out(saved: Saved, folder: Path) -> Path:
    """Link the files as ``folder/rank_N/x.ckpt``, exactly one a rank: MindFormers takes the newest by time."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    for rank, path in saved.files.items():
        place = folder / f"rank_{rank}" / path.name
        place.parent.mkdir(parents=True)
        place.symlink_to(path.resolve())
    return folder


def set_weights_aside(output: Path, rank: int) -> None:
    """Rename the rank's weights-only file: MindFormers would write the next ones beside it under another name."""
    for path in (output / "checkpoint_network" / f"rank_{rank}").glob("*.ckpt"):
        path.replace(path.with_name(path.name + ".before_resume"))


def steps_until(metrics: Path, step: int) -> str:
    """The lines of an earlier ``metrics.jsonl`` up to ``step``: the curve that goes on."""
    lines: List[str] = []
    with contextlib.suppress(OSError):
        for line in metrics.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
    return "".join(lines)


def put_back(metrics: Path, lines: str) -> None:
    """Begin the new ``metrics.jsonl`` with them."""
    new = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    write_text(metrics, lines + new)


def _byte(stream: BinaryIO) -> int:
    data = stream.read(1)
    if not data:
        raise EOFError
    return data[0]


def _varint(stream: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = _byte(stream)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise ValueError("no length")


def _number(entry: bytes) -> int:
    """The integer in a one-number entry (little-endian tensor_content); 0 for the fractional loss scale."""
    stream = BytesIO(entry)
    if _byte(stream) != _TENSOR:
        raise ValueError("no tensor")
    tensor = BytesIO(stream.read(_varint(stream)))
    kind, content = "", b""
    while True:
        head = tensor.read(1)
        if not head:
            break
        if head[0] & 7 == 0:  # a dimension
            _varint(tensor)
            continue
        body = tensor.read(_varint(tensor))
        if head[0] == _CONTENT:
            content = body
        else:
            kind = body.decode("ascii", "replace")
    return int.from_bytes(content, "little", signed=True) if kind.startswith("Int") else 0
