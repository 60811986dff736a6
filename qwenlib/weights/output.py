"""Large files that are whole or not there, also after kill -9.

Each is written as ``.NAME.part`` beside its place, under a lock that the kernel drops with the process. A leftover of a
killed process is therefore recognised, and begun again from its first byte; a running one is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import check_target, free_bytes, sync
from qwenlib.weights.layout import Layout
from qwenlib.weights.tensors import Extent, spans

_SPACE = (errno.ENOSPC, errno.EDQUOT)


class OutFile:
    """One file being written at any offset, from several threads."""

    def __init__(self, path: Path, layout: Layout):
        self.path, self.layout = path, layout
        self.part = path.with_name(f".{path.name}.part")
        self.handle = -1
        self.whole = False

    def open(self) -> None:
        """Claim the part file and write what stands between the tensors.

        Raises:
            Refused: another process is writing the same file, or something else than a file stands there.
        """
        check_target(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self.handle = os.open(str(self.part), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not _locked(self.handle):
                self.close()
                raise Refused(f"another process is writing {self.path}. Wait for it, or end it.")
            if self.part.exists() and os.fstat(self.handle).st_ino == os.stat(self.part).st_ino:
                break
            self.close()  # its last writer has just renamed it: it is somebody's whole file now
        os.ftruncate(self.handle, 0)
        for offset, head in self.layout.heads:
            self.write_at(offset, memoryview(head))

    def write(self, extents: Sequence[Extent], start: int, data: memoryview) -> None:
        """Write ``data`` at byte ``start`` of the tensor that lies in ``extents``."""
        done = 0
        for offset, length in spans(tuple(extents), start, len(data)):
            self.write_at(offset, data[done : done + length])
            done += length

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``."""
        done = 0
        while done < len(data):
            done += os.pwrite(self.handle, data[done:], offset + done)

    def finish(self) -> None:
        """Make sure that all is on the disk, and give the file its name."""
        size = os.fstat(self.handle).st_size
        if size != self.layout.size:
            raise WorkFailed(f"{self.part} has {size} bytes where {self.layout.size} were planned. Run it again.")
        os.fsync(self.handle)
        os.replace(self.part, self.path)
        self.whole = True
        sync(self.path.parent)
        self.close()

    def close(self) -> None:
        """Let go of the lock."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def drop(self) -> None:
        """Remove what was written; a part file that nobody has locked is a leftover, whoever made it."""
        if self.whole:
            return
        with contextlib.suppress(OSError):
            if self.handle < 0:  # the interrupt key can fall between creating the file and noting its handle
                self.handle = os.open(str(self.part), os.O_RDWR | os.O_CLOEXEC)
            if _locked(self.handle):
                self.part.unlink()
        self.close()


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def written(layouts: Dict[Path, Layout]) -> Iterator[List[OutFile]]:
    """``with written({path: layout}) as files:`` write into them; they get their names together, at the end.

    On any exception nothing is left but folders.

    Raises:
        Refused: the disk has too little room (asked before), or another process is writing the same files.
        WorkFailed: the disk was full after all, or cannot be written to.
    """
    files = [OutFile(path, layout) for path, layout in layouts.items()]
    try:
        for file in files:
            file.open()
        yield files
        for file in files:
            file.finish()
    except OSError as error:
        folder = files[0].path.parent
        if error.errno in _SPACE:
            raise WorkFailed(
                f"no space left while writing below {folder}: {free_bytes(folder) / 2**20:.0f} MiB are free. Nothing "
                "was half-written; free some space or choose another folder, and run it again."
            ) from error
        raise WorkFailed(f"{files[0].path} cannot be written: {error.strerror}. Choose another place.") from error
    finally:
        for file in files:
            file.drop()
