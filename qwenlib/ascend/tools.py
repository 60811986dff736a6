"""Run the driver's command line tools: found below an injectable root, with a time limit, never through a shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence, Union

TIMEOUT = 20.0
"""Seconds a driver tool may take; a hanging npu-smi (a driver in trouble) must not hang the doctor."""

TOOL_FOLDERS = ("usr/local/bin", "usr/local/sbin", "usr/bin", "usr/sbin", "usr/local/Ascend/driver/tools")


@dataclass(frozen=True)
class ToolResult:
    """What a tool said. ``problem`` is empty when it ran and returned 0."""

    path: str
    output: str
    problem: str = ""

    @property
    def found(self) -> bool:
        """Whether the tool exists at all."""
        return bool(self.path)


def under(root: Union[str, Path], path: Union[str, Path]) -> Path:
    """``path`` seen below ``root``: absolute paths are re-rooted unless they already lie below it."""
    root, path = Path(root), Path(path)
    if not path.is_absolute():
        return root / path
    if str(root) == "/" or root == path or root in path.parents:
        return path
    return root / path.relative_to("/")


def find_tool(name: str, root: Union[str, Path], environ: Mapping[str, str]) -> str:
    """The path of a tool, or "". A root other than ``/`` is searched before PATH; the driver's folders always."""
    below = [str(Path(root) / folder) for folder in TOOL_FOLDERS]
    path = environ.get("PATH", os.defpath).split(os.pathsep)
    folders = path + below if str(root) == "/" else below + path
    return shutil.which(name, path=os.pathsep.join(folders)) or ""


def run_tool(
    name: str,
    arguments: Sequence[str],
    root: Union[str, Path] = "/",
    environ: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
) -> ToolResult:
    """Run a tool in its own process group; on a timeout the whole group is killed. Never raises for a bad tool."""
    path = find_tool(name, root, environ)
    if not path:
        return ToolResult("", "", f"{name} is not on PATH nor in {', '.join('/' + f for f in TOOL_FOLDERS[-1:])}")
    try:
        child = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as error:
        return ToolResult(path, "", f"{path} cannot be run: {error.strerror}")
    try:
        raw, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill_group(child)
        return ToolResult(path, "", f"{path} did not answer within {timeout:g} s (a driver in trouble?)")
    except BaseException:  # the interrupt key too: leave no tool behind
        _kill_group(child)
        raise
    output = raw.decode("utf-8", errors="replace")
    if child.returncode:
        said = " ".join(output.split())[:200] or "nothing"
        return ToolResult(path, output, f"{path} returned {child.returncode} and said: {said}")
    return ToolResult(path, output)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout:
        child.stdout.close()
