"""Where a checkpoint lies: ``model_dir/rank_N/x.ckpt``, exactly one file a rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Union

from qwenlib.errors import Refused

_FOREIGN = (".bin", ".json", ".npz", ".pt", ".pth", ".safetensors")


def target(path: Union[str, Path], name: str = "qwen1_5.ckpt", rank: int = 0) -> Path:
    """The file to write: ``path`` itself when it ends in .ckpt, else ``path/rank_0/name`` (or another rank's folder).

    Raises:
        Refused: the rank folder already holds another checkpoint (MindFormers would silently take one of them: the last
            by name to slice it, the last written to load it), or ``path`` is named as another kind of file.
    """
    path = Path(path).expanduser()
    if path.suffix in _FOREIGN or (path.is_file() and path.suffix != ".ckpt"):
        raise Refused(f"{path}: a MindSpore checkpoint must end in .ckpt; or give the folder it shall lie in.")
    file = path if path.suffix == ".ckpt" else path / f"rank_{rank}" / name
    others = [item.name for item in sorted(file.parent.glob("*.ckpt")) if item.name != file.name]
    if others and re.fullmatch(r"rank_\d+", file.parent.name):
        raise Refused(
            f"{file.parent} already holds {', '.join(others)}; MindFormers would take one of them, so exactly one may "
            "lie there. Move it away or choose another folder."
        )
    return file


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
