"""MindRecord files: write, count, read.

A MindRecord is a pair, the file and ``file.db`` (SQLite), and the pair holds its own file name: it can be moved to
another folder, but not renamed. The writer therefore works under the final name in a folder beside.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import sqlite3
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Generator, Iterator, List, Optional, Sequence, Type, Union
from urllib.parse import quote

import numpy
import psutil

from qwenlib import files
from qwenlib.data.rows import COLUMNS, Row
from qwenlib.errors import Refused, WorkFailed

SCHEMA = {name: {"type": "int32", "shape": [-1]} for name in COLUMNS}
PAGE = 2**20
"""Bytes of a page (more where rows are longer). MindSpore writes the index a page at a time: with its own 32 MiB, the
memory for that grows by 1.4 KB a row up to four million rows; with 1 MiB it ends at about 110 MB."""
SMALLEST = 16 * 2**20 + 2 * PAGE
"""Bytes of an empty file: the header and two pages."""

_FORBIDDEN = re.compile(r"""[\\/:*?"<>|`&';]|^\s|\s$""")


def check_name(path: Path) -> None:
    """Refuse a file name that MindSpore cannot write or that MindFormers would skip without a word."""
    if not path.name.endswith(".mindrecord"):
        raise Refused(f"output_file must end in .mindrecord (MindFormers skips other names), found {path.name!r}.")
    found = _FORBIDDEN.search(path.name)
    if found:
        raise Refused(
            f"{path.name!r}: MindRecord file names cannot hold {found.group()!r}; choose another output_file."
        )


def require_mindspore(doing: str) -> None:
    """Refuse when MindSpore is not installed."""
    if importlib.util.find_spec("mindspore") is None:
        raise Refused(
            f"{doing} a MindRecord needs MindSpore, which is not installed; on a CPU: pip install 'qwenlib[cpu]'"
        )


def part_names(name: str, file_partition: int) -> List[str]:
    """The files that MindSpore writes for ``name``: itself, or ``name0`` … with zeros in front where needed."""
    if file_partition == 1:
        return [name]
    digits = len(str(file_partition - 1))
    return [f"{name}{number:0{digits}d}" for number in range(file_partition)]


class Writer:
    """``with Writer(path) as writer: writer.write(rows)``: all of ``path`` and ``path.db``, or nothing.

    An existing pair is only replaced when the new one is complete. While the two files change places there is no
    ``.db``, without which MindSpore opens nothing: half a pair is never taken for a whole one.

    Raises:
        WorkFailed: MindSpore could not write, or wrote fewer rows than it was given.
    """

    def __init__(self, path: Union[str, Path], file_partition: int = 1, beside: Sequence[Path] = ()):
        """``beside``: files that speak of the old pair, taken away with it."""
        self.path, self.beside = Path(path).absolute(), list(beside)
        self.names = part_names(self.path.name, file_partition)
        self.rows = 0
        self._partition = file_partition

    @property
    def files(self) -> List[Path]:
        """The finished files, each with its ``.db`` behind it."""
        return [self.path.parent / f"{name}{suffix}" for name in self.names for suffix in ("", ".db")]

    def __enter__(self) -> Writer:
        require_mindspore("writing")
        from mindspore.mindrecord import FileWriter

        prefix = f".{self.path.name}.{platform.node()}.{os.getpid()}."
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_over(self.path)
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=str(self.path.parent)))
        except OSError as error:
            raise files.unwritable(self.path, error) from error
        try:
            if not _can_lock(self._folder):  # better now than after an hour of tokenizing
                raise WorkFailed(f"{self.path} cannot be written (database is locked).{_locked(self.path.parent)}")
            with _told(self.path, self._folder):
                self._writer: Any = FileWriter(str(self._folder / self.path.name), shard_num=self._partition)
                self._writer.add_schema(SCHEMA, "ChatML conversations")
        except BaseException:
            self._remove()
            raise
        return self

    def write(self, rows: List[Row]) -> None:
        """Append rows (int32 arrays under the names of COLUMNS)."""
        with _told(self.path, self._folder):
            if not self.rows:
                row = sum(column.nbytes for column in rows[0].values())
                self._writer.set_page_size(max(PAGE, 1 << (2 * row).bit_length()))
            self._writer.write_raw_data(rows)
            if not self.rows:
                _remember_schema(self._writer)
        self.rows += len(rows)

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            if kind is None:
                with _told(self.path, self._folder):
                    self._writer.commit()
                self._check()
                self._put_in_place()
        finally:
            self._writer = None
            self._remove()

    def _check(self) -> None:
        found = sum(count_rows(self._folder / name) for name in self.names)
        if found != self.rows:
            raise WorkFailed(f"{self.path} was given {self.rows} rows, but its index counts {found}. Nothing was kept.")

    def _put_in_place(self) -> None:
        umask = os.umask(0)
        os.umask(umask)
        for name in self.names:
            for suffix in ("", ".db"):
                os.chmod(self._folder / f"{name}{suffix}", 0o666 & ~umask)
                files.sync(self._folder / f"{name}{suffix}")
        for note in self.beside:
            note.unlink(missing_ok=True)
        for stale in existing(self.path):
            if stale.suffix == ".db":
                stale.unlink()
        files.sync(self.path.parent)  # no crash may bring the old index back beside the new file
        kept = {self.path.parent / name for name in self.names}
        for stale in existing(self.path):
            if stale not in kept:
                stale.unlink()
        for suffix in ("", ".db"):
            for name in self.names:
                os.replace(self._folder / f"{name}{suffix}", self.path.parent / f"{name}{suffix}")
        files.sync(self.path.parent)

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class _Remembered:
    """A header of MindSpore's that knows its schema; all else is asked of the real one."""

    def __init__(self, header: Any):
        self._real, self.schema, self.blob_fields = header, header.schema, header.blob_fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _remember_schema(writer: Any) -> None:
    """Spare MindSpore to make its schema anew from JSON, six times a row: a fifth of the time that writing takes.

    Where its writer is built differently, nothing happens.
    """
    inner: Any = getattr(writer, "_writer", None)
    header = getattr(inner, "_header", None)
    if hasattr(header, "schema") and hasattr(header, "blob_fields"):
        inner._header = _Remembered(header)


def _remove_left_over(path: Path) -> None:
    """Take away what builds of ``path`` that were killed on this machine have left."""
    mine = re.compile(re.escape(f".{path.name}.{platform.node()}.") + r"(\d+)\.\w+")
    for folder in path.parent.iterdir():
        found = mine.fullmatch(folder.name)
        if found and folder.is_dir() and not psutil.pid_exists(int(found.group(1))):
            shutil.rmtree(folder, ignore_errors=True)


def existing(path: Path) -> List[Path]:
    """Files that a MindRecord of this name occupies now, parts of a partitioned one included."""
    mine = re.compile(re.escape(path.name) + r"\d*(\.db)?")
    if not path.parent.is_dir():
        return []
    return sorted(item for item in path.parent.iterdir() if mine.fullmatch(item.name))


def neighbours(path: Union[str, Path]) -> List[Path]:
    """Other MindRecords that MindFormers would join with ``path`` if it were given the folder instead of the file.

    It takes every file below the folder whose name matches ``mindrecord0*$``.
    """
    path = Path(path).absolute()
    mine = {item.name for item in existing(path)}
    found = (item for item in path.parent.rglob("*mindrecord*") if re.search(r"mindrecord0*$", item.name))
    return sorted(item for item in found if item.is_file() and (item.parent != path.parent or item.name not in mine))


def check_trainable(path: Union[str, Path]) -> None:
    """Refuse a MindRecord that MindFormers would skip, or read in part, without a word.

    It takes files whose name matches ``mindrecord0*$``: of the parts of a partitioned one, the first alone.

    Raises:
        Refused: another name; one part of several; no such file, or no ``.db`` beside it.
    """
    path = Path(path).absolute()
    if not re.search(r"mindrecord0*$", path.name):
        raise Refused(
            f"{path}: MindFormers only reads files whose name ends in .mindrecord; build it under such a name."
        )
    whole = path.with_name(re.sub(r"(?<=mindrecord)0+$", "", path.name))
    found = [item for item in existing(whole) if item.suffix != ".db" and item != whole]
    if (not path.is_file() and found) or path in found:
        raise Refused(
            f"{whole} lies in {len(found)} files, of which MindFormers would train on the first only. "
            "Build it again with --file_partition 1."
        )
    parts(path)


def count_rows(path: Union[str, Path]) -> int:
    """Rows of a MindRecord, from its index, without MindSpore; of all parts when ``path`` was partitioned.

    Raises:
        Refused: a file or its ``.db`` is missing, or the ``.db`` is not MindRecord's.
        WorkFailed: the ``.db`` cannot be locked for reading (NFS).
    """
    return sum(_count(part) for part in parts(path))


def parts(path: Union[str, Path]) -> List[Path]:
    """``path`` itself, or the parts ``path0``, ``path1`` … of a partitioned MindRecord, each with its ``.db``.

    Raises:
        Refused: there is none, or one of a pair is missing.
    """
    path = Path(path)
    found = [path] if path.is_file() else [item for item in existing(path) if item.suffix != ".db"] or [path]
    for part in found:
        index = part.with_name(part.name + ".db")
        for half in (part, index):
            if not half.is_file():
                raise Refused(
                    f"there is no {half}. A MindRecord is two files, {part.name} and {index.name}, side by side."
                )
    return found


def _count(path: Path) -> int:
    index = path.with_name(path.name + ".db")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(index))}?mode=ro", uri=True)) as database:
            return int(database.execute("select count(*) from INDEXES").fetchone()[0])
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise WorkFailed(f"{index} cannot be read ({error}).{_locked(index.absolute().parent)}") from None
        raise Refused(f"{index} is not the index of a MindRecord ({error}). Build the data set again.") from None


def read_rows(path: Union[str, Path]) -> Generator[Row, None, None]:
    """Yield the rows in order: ``{"input_ids", "target_ids", "attention_mask"}``, int32 arrays [seq_length + 1].

    Raises:
        Refused: no such file or no ``.db`` beside it, or columns other than these.
    """
    names = [str(part) for part in parts(Path(path).absolute())]
    count_rows(path)
    require_mindspore("reading")
    from mindspore.mindrecord import FileReader

    try:
        reader = FileReader(names, num_consumer=1)  # a list: one name alone would bring its siblings along
    except RuntimeError as error:
        raise Refused(f"MindSpore cannot open {path}: {_sentence(error)}") from None
    try:
        for found in reader.get_next():
            missing = [name for name in COLUMNS if name not in found]
            if missing:
                raise Refused(f"{path} has no column {missing[0]}; it has {', '.join(found)}. Build it with qwenlib.")
            yield {name: numpy.asarray(found[name], dtype=numpy.int32) for name in COLUMNS}
    finally:
        reader.close()


def row_at(path: Union[str, Path], index: int) -> Row:
    """Row ``index``, counted from 0, without reading those before it.

    Raises:
        Refused: there is no such row (and as :func:`read_rows`).
    """
    rows = count_rows(path)
    if not 0 <= index < rows:
        raise Refused(f"{path} has rows 0 to {rows - 1}; there is no row {index}.")
    names = [str(part) for part in parts(Path(path).absolute())]
    require_mindspore("reading")
    from mindspore.dataset import MindDataset, SequentialSampler

    try:
        found = MindDataset(
            names,
            columns_list=list(COLUMNS),
            sampler=SequentialSampler(index, 1),
            num_parallel_workers=1,
        ).create_dict_iterator(num_epochs=1, output_numpy=True)
        row = next(iter(found))
    except RuntimeError as error:
        raise Refused(f"MindSpore cannot open {path}: {_sentence(error)}") from None
    return {name: numpy.asarray(row[name], dtype=numpy.int32) for name in COLUMNS}


@contextlib.contextmanager
def _told(path: Path, folder: Optional[Path] = None) -> Iterator[None]:
    """Turn what MindSpore raises into one sentence."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        text = _sentence(error)
        hint = ""
        if "database is locked" in str(error) or (folder and not _can_lock(folder)):
            hint = f" (database is locked){_locked(path.parent)}"
        elif shutil.disk_usage(path.parent).free < SMALLEST:
            hint = " The disk is full."
        raise WorkFailed(f"MindSpore could not write {path}: {text}{hint} Nothing was kept.") from error


def _can_lock(folder: Path) -> bool:
    """Whether SQLite can write a new database in ``folder`` and lock those that are there."""
    probe = folder / "probe.sqlite"
    try:
        for index in [probe, *folder.glob("*.db")]:
            with contextlib.closing(sqlite3.connect(str(index), timeout=0, isolation_level=None)) as database:
                database.execute("begin exclusive")
                database.execute("create table if not exists qwenlib_probe (a)")
                database.execute("rollback")
    except sqlite3.Error as error:
        return "locked" not in str(error)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return True


def _locked(folder: Path) -> str:
    """What to do when SQLite says "database is locked"."""
    return (
        f" SQLite cannot lock files on this file system ({_file_system(folder)}; NFS often): build on a local disk, "
        "such as /tmp or /cache, and copy the .mindrecord and the .db file side by side."
    )


def _file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``, as in /proc/mounts ("" where there is none)."""
    best, name = "", ""
    for mount in psutil.disk_partitions(all=True):
        inside = os.path.commonpath([mount.mountpoint, str(folder)]) == mount.mountpoint
        if inside and len(mount.mountpoint) >= len(best):
            best, name = mount.mountpoint, mount.fstype
    return name or "of unknown type"


def _sentence(error: BaseException) -> str:
    """The first line of MindSpore's message that says something."""
    lines = [line.strip("- \t") for line in str(error).splitlines()]
    telling = [line for line in lines if line and "Dataset Pipeline Error Message" not in line]
    return telling[0] if telling else type(error).__name__
