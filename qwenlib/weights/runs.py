"""Which checkpoints a run has, with step and loss."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from qwenlib.errors import Refused
from qwenlib.weights.ckpt_read import read_table
from qwenlib.weights.steps import step_in

_RANK = re.compile(r"rank_(\d+)")


def list_checkpoints(run_dir: Union[str, Path]) -> List[Dict[str, Any]]:
    """Every .ckpt below ``run_dir``, oldest step first.

    Returns:
        ``[{"path", "rank", "step", "loss", "tensors", "adapter", "optimizer", "bytes", "problem"}]``. ``step`` is the
        global step that MindFormers noted in the file, or for the weights-only file of ``checkpoint_network`` the last
        step of the run; None when neither tells. ``loss``: that step's in the run's metrics.jsonl.

    Raises:
        Refused: there is no such folder, or it holds no checkpoint.
    """
    run_dir = Path(run_dir).expanduser()
    if not run_dir.is_dir():
        raise Refused(f"there is no run directory {run_dir}.")
    losses = _losses(run_dir)
    found = []
    for path in filter(_is_checkpoint, sorted(run_dir.rglob("*.ckpt"))):
        with contextlib.suppress(FileNotFoundError):  # a training that goes on takes its oldest away
            found.append(_describe(path, losses))
    if not found:
        raise Refused(f"{run_dir} holds no .ckpt file.")
    return sorted(found, key=lambda row: (row["step"] is None, row["step"] or 0, str(row["path"])))


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and "strategy" not in path.name


def _describe(path: Path, losses: Dict[int, float]) -> Dict[str, Any]:
    row: Dict[str, Any] = {
        "path": path,
        "rank": None,
        "step": None,
        "loss": None,
        "tensors": 0,
        "adapter": False,
        "optimizer": False,
        "bytes": path.stat().st_size,
        "problem": "",
    }
    ranks = _RANK.findall(path.parent.name) or _RANK.findall(path.name)
    row["rank"] = int(ranks[0]) if ranks else None
    try:
        table = read_table(path)
        row["step"] = step_in(table)
    except Refused as error:
        row["problem"] = str(error)
        return row
    row["tensors"] = len(table)
    row["adapter"] = any("mindpet_delta" in name for name in table)
    row["optimizer"] = any(name.startswith("adam_") for name in table)
    latest = path.parent.parent.name == "checkpoint_network" and "output.previous" not in path.parts
    if row["step"] is None and latest and losses:
        row["step"] = max(losses)
    if row["step"] is not None and "output.previous" not in path.parts:  # the metrics are the last training's
        row["loss"] = losses.get(row["step"])
    return row


def _losses(run_dir: Path) -> Dict[int, float]:
    """``{step: loss}`` of the nearest metrics.jsonl: the run's own, or that of a folder above."""
    metrics: Optional[Path] = None
    for folder in [run_dir, *list(run_dir.absolute().parents)[:4]]:
        if (folder / "metrics.jsonl").is_file():
            metrics = folder / "metrics.jsonl"
            break
    losses: Dict[int, float] = {}
    if metrics is None:
        return losses
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            losses[int(row["step"])] = float(row["loss"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed
    return losses


def table(found: List[Dict[str, Any]]) -> str:
    """The list as text."""
    lines = [f"{'step':>8s} {'loss':>8s} {'rank':>4s} {'GB':>8s}  holds                    path"]
    for row in found:
        holds = (
            "damaged"
            if row["problem"]
            else ", ".join(["weights"] + ["adapter"] * row["adapter"] + ["optimizer states"] * row["optimizer"])
        )
        step, rank = ("-" if row[key] is None else str(row[key]) for key in ("step", "rank"))
        loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
        lines.append(f"{step:>8s} {loss:>8s} {rank:>4s} {row['bytes'] / 1e9:8.3f}  {holds:24s} {row['path']}")
    return "\n".join(lines)
