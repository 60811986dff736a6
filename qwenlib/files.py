"""Files that are whole or not there: write beside, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Union

from qwenlib.errors import Refused, WorkFailed

PathLike = Union[str, Path]

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is fsynced and renamed onto ``path``.

    On any exception, the interrupt key included, the temporary file is removed and ``path`` is as it was.

    A link to a file stays one: the file that it names is replaced.

    Raises:
        Refused: ``path`` is a folder, a device or a pipe, or lies below a file.
        WorkFailed: the disk or the quota is full (with the free space), or the place cannot be written to.
    """
    target = Path(path)
    part, ours = None, True
    try:
        target = check_target(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=str(target.parent))
        os.close(handle)
        part = Path(name)
        ours = False
        yield part
        ours = True
        os.chmod(part, 0o666 & ~_UMASK)
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkFailed(
                f"no space left while writing {target}: {free_bytes(target) / 2**20:.0f} MiB are free there. "
                "Nothing was half-written; free some space or choose another folder, and run it again."
            ) from error
        if ours:  # not the caller's error: the place itself is wrong
            raise unwritable(target, error) from error
        raise
    finally:
        if part is not None:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()


def make_folder(path: PathLike) -> Path:
    """The folder ``path``, made with its parents when it is not there.

    Raises:
        Refused: it cannot be made: a file of that name, a read-only disk, no permission, a name that is too long.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror
        raise Refused(f"the folder {folder} cannot be made: {why}. Choose another one.") from None
    return folder


def check_target(path: PathLike) -> Path:
    """The file that writing to ``path`` replaces or makes: behind links, ``path`` itself otherwise.

    Raises:
        Refused: it is there and no file (root would replace even /dev/null), or a part of its path is no folder.
        WorkFailed: it cannot be looked at.
    """
    target = Path(path)
    try:
        if target.is_symlink():
            target = Path(os.path.realpath(target))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = os.stat(target).st_mode
            if not stat.S_ISREG(mode):
                found = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
                raise Refused(f"{path} is {found}; give the name of a file to write.")
        above = next((folder for folder in target.parents if folder.exists()), None)
    except OSError as error:
        raise unwritable(path, error) from error
    if above is not None and not above.is_dir():
        raise Refused(f"{path} cannot be written: {above} is no folder. Choose another place.")
    return target


def unwritable(path: PathLike, error: OSError) -> WorkFailed:
    """The sentence for a place that cannot be written to."""
    return WorkFailed(f"{path} cannot be written: {error.strerror}. Choose another place.")


def sync(path: PathLike) -> None:
    """fsync a file or a folder."""
    handle = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: PathLike, text: str) -> None:
    """Replace ``path`` with ``text`` (UTF-8), atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Replace ``path`` with ``value`` as indented JSON, atomically; numpy's numbers stay numbers, paths are texts."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        Refused: the file is missing or cannot be read, or is not JSON (with line and column).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Refused(f"there is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise Refused(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}).") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists nested as deep
        raise Refused(f"{path} cannot be read as JSON: {error}.") from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from None


def sha256(path: PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(folder: PathLike, pattern: str = "*") -> Dict[str, str]:
    """``{relative name: sha256}`` of the files below ``folder`` that match ``pattern``, sorted by name."""
    folder = Path(folder)
    return {
        str(item.relative_to(folder)): sha256(item)
        for item in sorted(folder.rglob(pattern))
        if item.is_file() and "__pycache__" not in item.parts
    }


def existing(path: PathLike) -> Path:
    """The nearest place at or above ``path`` that is there."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return place


def free_bytes(path: PathLike) -> int:
    """Bytes free on the disk that holds ``path``, or will hold it."""
    return shutil.disk_usage(existing(path)).free


def require_space(path: PathLike, needed: int, what: str) -> None:
    """Refuse to begin when the disk that holds ``path`` has fewer than ``needed`` bytes free.

    Raises:
        Refused: with the bytes needed and found.
    """
    free = free_bytes(path)
    if free < needed:
        raise Refused(
            f"{what} needs {needed / 2**20:.0f} MiB below {existing(path)}, where only {free / 2**20:.0f} MiB are "
            "free. Free some space or choose another folder."
        )
