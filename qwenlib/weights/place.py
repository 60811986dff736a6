"""Where a checkpoint lies: ``model_dir/rank_N/x.ckpt``, exactly one file a rank."""

from __future__ import annotations

from pathlib import Path
from typing import List, Union

from qwenlib.errors import Refused


def target(path: Union[str, Path], name: str = "qwen1_5.ckpt") -> Path:
    """The file to write: ``path`` itself when it ends in .ckpt, else ``path/rank_0/name``.

    Raises:
        Refused: rank_0 already holds another checkpoint (MindFormers would silently take the last by name).
    """
    path = Path(path).expanduser()
    if path.suffix == ".ckpt":
        return path
    folder = path / "rank_0"
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
