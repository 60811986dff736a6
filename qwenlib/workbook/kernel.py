"""The kernel of a stage: this interpreter's, described on the fly, with an environment of its own.

An installed kernelspec called ``python3`` may point to another interpreter, and a fresh virtual environment may have
none; what a notebook says about its kernel is therefore not asked.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from pathlib import Path
from typing import IO, Any, Dict, List, Optional

from qwenlib.errors import Refused

MARKER = "QWENLIB_WORKBOOK"
"""Environment variable that every process of a run carries, by which those that left the process tree are found."""

NAME = "python3"
TITLE = "Python 3 (ipykernel)"


def spec(name: Optional[str] = None) -> Any:
    """The ``KernelSpec`` to start: of the interpreter that runs qwenlib, or of the installed kernelspec ``name``.

    Raises:
        Refused: ipykernel is not installed, or there is no kernelspec of that name (those that exist are listed).
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

    if name is None:
        if importlib.util.find_spec("ipykernel") is None:
            raise Refused(f"{sys.executable} has no ipykernel, so no notebook can run in it: pip install ipykernel.")
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, language="python", display_name=TITLE)
    manager = KernelSpecManager()
    try:
        found = manager.get_kernel_spec(name)
    except NoSuchKernel:
        have = ", ".join(sorted(manager.find_kernel_specs())) or "none"
        raise Refused(f"there is no kernelspec {name!r}; installed: {have}.") from None
    if found.language.lower() != "python":
        raise Refused(f"the kernelspec {name!r} is for {found.language}; the notebooks need Python.")
    return found


def environment(token: str) -> Dict[str, str]:
    """What the kernels' environment has beside the runner's own: headless, offline, and the marker of the run."""
    values = {
        "QWENLIB_HEADLESS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "MPLBACKEND": "",  # empty: ipykernel then chooses its inline backend, whatever the shell had
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        MARKER: token,
    }
    root = str(Path(__file__).resolve().parent.parent.parent)
    if root not in site.getsitepackages():  # a clone that was not installed: the kernels stand in other folders
        values["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return values


def manager_class(kernel_spec: Any, log: IO[bytes], started: List[Any]) -> Any:
    """A kernel manager class for one stage.

    It starts ``kernel_spec``; what the process prints past Jupyter goes to ``log`` (stdout may belong to ``--json``);
    the process (a ``Popen``) is appended to ``started``.
    """
    from jupyter_client.manager import AsyncKernelManager

    class StageKernelManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> Any:
            return kernel_spec

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(**{**options, "stdout": log, "stderr": log})
            started.append(self.provisioner.process)  # type: ignore[union-attr]

    return StageKernelManager
