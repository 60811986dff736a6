"""Where the rank table is: an explicit path, the platform's variables, the platform's two file names, or nowhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import List, Mapping, Optional, Union

from qwenlib.ascend.tools import under

FILE_NAME = "jobstart_hccl.json"
PLATFORM_FILES = ("/user/config/jobstart_hccl.json", "/user/config/nbstart_hccl.json")
VARIABLES = ("RANK_TABLE_FILE_V_1_0", "RANK_TABLE_FILE")


@dataclass(frozen=True)
class Found:
    """The path of the rank table and the reason for it; ``path`` None: there is none, ``reason`` says where was looked.

    ``announced`` is True when something (an argument, a variable) names the file: then it is worth waiting for.
    """

    path: Optional[Path]
    reason: str
    announced: bool = False


def find(
    explicit: Union[str, Path] = "", environ: Mapping[str, str] = os.environ, root: Union[str, Path] = "/"
) -> Found:
    """The rank table of this machine, looked for in Huawei's own order. Paths count from ``root``.

    A folder (ModelArts sets ``RANK_TABLE_FILE=/user/config``) stands for the ``jobstart_hccl.json`` in it. A file that
    is named but absent is still the answer: the platform may be about to write it.
    """
    if explicit:
        path = Path(explicit).expanduser()
        return Found(path / FILE_NAME if path.is_dir() else path, "given by you", True)
    looked: List[str] = []
    for name in VARIABLES:
        value = environ.get(name, "").strip()
        if value:
            path = _inside(under(root, value))
            return Found(path, f"the variable {name}={value} names it", True)
        looked.append(f"{name} is not set")
    for file in PLATFORM_FILES:
        path = under(root, file)
        if path.is_file():
            return Found(path, f"found in the platform's place; {'; '.join(looked)}")
        looked.append(f"there is no {path}")
    return Found(None, "; ".join(looked))


def _inside(path: Path) -> Path:
    folder = path.is_dir() or not (path.exists() or path.suffix)  # /user/config may be mounted later
    return path / FILE_NAME if folder else path
