"""Where a checkpoint lies: ``model_dir/rank_N/x.ckpt``, exactly one file a rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from qwenlib.errors import Refused


def target(path: Union[str, Path], name: str = "qwen1_5.ckpt", rank: int = 0) -> Path:
    """The file to write: ``path`` itself when it ends in .ckpt, else ``path/rank_0/name`` (or another rank's folder).

    Raises:
        Refused: the rank folder already holds another checkpoint (MindFormers would silently take the last by name).
    """
    path = Path(path).expanduser()
    if path.suffix == ".ckpt":
        return path
    folder = path / f"rank_{rank}"
    others = [item.name for item in sorted(folder.glob("*.ckpt")) if item.name != name]
    if others:
        raise Refused(
            f"{folder} already holds {', '.join(others)}; MindFormers takes the last one by name, so exactly one may "
            "lie there. Move it away or choose another folder."
        )
    return folder / name


def locate(path: Union[str, Path], rank: int = 0) -> Path:
    """The one checkpoint file of ``rank`` below ``path`` (a .ckpt file, a rank folder, or a model_dir).

    Raises:
        Refused: there is no checkpoint, or more than one.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix != ".ckpt":
            raise Refused(f"{path} is no MindSpore checkpoint: the name must end in .ckpt.")
        return path
    if not path.is_dir():
        raise Refused(f"there is no checkpoint {path}.")
    found: List[Path] = []
    for folder in (path / f"rank_{rank}", path):
        found = sorted(folder.glob("*.ckpt"))
        if found:
            break
    if not found:
        raise Refused(f"{path} holds no .ckpt file, neither in rank_{rank}/ nor directly.")
    if len(found) > 1:
        names = ", ".join(item.name for item in found)
        raise Refused(f"{found[0].parent} holds {len(found)} checkpoints ({names}); name the one that is meant.")
    return found[0]


def describe(sha256: Dict[Path, str]) -> List[Dict[str, Any]]:
    """``[{"file", "bytes", "sha256"}]`` of the files that something was made from, for its meta.json."""
    return [
        {"file": str(path.absolute()), "bytes": path.stat().st_size, "sha256": digest}
        for path, digest in sorted(sha256.items())
    ]


def newest(folder: Path) -> Path:
    """The .ckpt of a rank folder: the one with the latest step in its name, then the latest written.

    Raises:
        Refused: the folder holds none.
    """
    found = [item for item in folder.glob("*.ckpt") if not item.name.startswith(".")]
    if not found:
        raise Refused(f"{folder} holds no .ckpt file.")
    return max(found, key=lambda item: (_step(item.name), item.stat().st_mtime_ns, item.name))


def _step(name: str) -> Tuple[int, int]:
    match = re.search(r"-(\d+)_(\d+)\.ckpt$", name)
    return (int(match.group(1)), int(match.group(2))) if match else (-1, -1)
