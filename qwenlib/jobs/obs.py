"""Copies between OBS and the local disk, through moxing where the platform has it; plain folders otherwise."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from qwenlib.errors import Refused, WorkFailed


def is_remote(url: str) -> bool:
    """Whether ``url`` is OBS's."""
    return url.startswith(("obs://", "s3://"))


def require(url: str) -> None:
    """Refuse early what :func:`copy` could not do later.

    Raises:
        Refused: OBS without moxing.
    """
    if is_remote(url) and importlib.util.find_spec("moxing") is None:
        raise Refused(
            f"{url}: OBS is reached through moxing, which only ModelArts images have; copy by hand (obsutil) and give "
            "a folder instead."
        )


def copy(source: str, target: str) -> None:
    """Copy a file or a folder with all that is in it; what is there already is overwritten.

    Raises:
        Refused: OBS without moxing, or a local source that is not there.
        WorkFailed: the copy failed, with moxing's or the system's own words.
    """
    for url in (source, target):
        require(url)
    if not is_remote(source) and not Path(source).exists():
        raise Refused(f"there is no {source} to copy.")
    try:
        if is_remote(source) or is_remote(target):
            import moxing  # type: ignore[import-not-found,unused-ignore]

            folder = moxing.file.is_directory(source) if is_remote(source) else Path(source).is_dir()
            (moxing.file.copy_parallel if folder else moxing.file.copy)(source, target)
        elif Path(source).is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    except Exception as error:  # moxing raises its own kinds
        raise WorkFailed(f"copying {source} to {target} failed: {' '.join(str(error).split())}") from error
