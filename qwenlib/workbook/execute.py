"""One notebook through papermill, and what really happened to it.

papermill's output notebook cannot be trusted after a dead kernel, a timeout or Ctrl-C; what counts here is the
exception, and the cell that nbclient's hooks saw last.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

from qwenlib.workbook import banner, kernel
from qwenlib.workbook.interrupt import Signals, Stopped
from qwenlib.workbook.stages import StageNotebook, read_notebook

START_SECONDS = 120
IOPUB_SECONDS = 60
"""How long outputs may lag behind the end of a cell; nbclient's 4 s are too few on a machine that is busy."""

EVALUE_CHARACTERS = 1500


@dataclass
class Outcome:
    """An executed notebook; ``error`` (as in run.json) is None after a success."""

    notebook: Any
    error: Optional[Dict[str, Any]] = None
    executed_index: Optional[int] = None
    """The failing cell's place in the executed notebook, which has one cell more than the source."""


@dataclass
class _Seen:
    """What nbclient's hooks saw."""

    notebook: Any = None
    index: Optional[int] = None
    kernels: List[Any] = field(default_factory=list)


def execute(
    stage: StageNotebook,
    values: Mapping[str, Any],
    work: Path,
    kernel_spec: Any,
    timeout: Optional[int],
    signals: Signals,
    on_cell: Callable[[int, bool], None],
) -> Outcome:
    """Run the notebook of ``stage`` in a kernel of its own, standing in the notebook's folder.

    Args:
        stage: the notebook.
        values: parameters to inject.
        work: an existing folder for papermill's unfinished notebook and the kernel's own log.
        kernel_spec: from :func:`qwenlib.workbook.kernel.spec`, its environment filled.
        timeout: seconds that one cell may take; None: any.
        signals: checked before each cell.
        on_cell: called with the cell's place and whether it is over.
    """
    import papermill

    seen = _Seen(kernels=signals.kernels)
    before = len(seen.kernels)

    def cell_start(cell: Any, cell_index: int) -> None:
        seen.index = cell_index
        signals.check()
        on_cell(cell_index, False)

    def cell_executed(cell: Any, cell_index: int, execute_reply: Any) -> None:
        on_cell(cell_index, True)

    def notebook_start(notebook: Any) -> None:
        seen.notebook = notebook

    unfinished, log_path = work / f"{stage.name}.ipynb", work / "kernel.log"
    failure: Optional[BaseException] = None
    with open(log_path, "ab") as log, _quiet():
        try:
            papermill.execute_notebook(
                _no_format(stage.path),
                _no_format(unfinished),
                parameters=dict(values),
                kernel_name=kernel.NAME,
                language="python",
                progress_bar=False,
                start_timeout=START_SECONDS,
                execution_timeout=timeout,
                # From here on: options of nbclient's NotebookClient.
                kernel_manager_class=kernel.manager_class(kernel_spec, log, seen.kernels),
                resources={"metadata": {"path": str(stage.path.parent)}},
                iopub_timeout=IOPUB_SECONDS,
                on_notebook_start=notebook_start,
                on_cell_start=cell_start,
                on_cell_executed=cell_executed,
            )
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        finally:
            for process in seen.kernels[before:]:
                _ensure_gone(process)
    notebook = seen.notebook if seen.notebook is not None else read_notebook(stage.path)
    banner.clean(notebook)
    _set_straight(notebook, stage)
    if failure is None:
        return Outcome(notebook)
    code = seen.kernels[-1].returncode if len(seen.kernels) > before else None
    facts = _classify(failure, seen, signals, timeout, code, _tail(log_path))
    index = seen.index if facts["kind"] not in ("no_kernel", "runner") else None
    facts.update(_where(notebook, index))
    return Outcome(notebook, facts, index)


def failure_without_cell(kind: str, ename: str, evalue: str) -> Dict[str, Any]:
    """An error, as in run.json, that happened in no cell."""
    return {"kind": kind, "cell_index": None, "cell_source": None, "ename": ename, "evalue": paragraph(evalue)}


def paragraph(text: str) -> str:
    """``text`` on one line, cut where it is too long to be read."""
    line = " ".join(text.split())
    return line if len(line) <= EVALUE_CHARACTERS else line[: EVALUE_CHARACTERS - 1] + "…"


def _classify(
    failure: BaseException, seen: _Seen, signals: Signals, timeout: Optional[int], code: Optional[int], log: str
) -> Dict[str, Any]:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    ename = type(failure).__name__
    if signals.caught is not None or isinstance(failure, (Stopped, KeyboardInterrupt)):
        kind, ename, text = "interrupt", "KeyboardInterrupt", f"stopped by {signals.name or 'KeyboardInterrupt'}"
    elif isinstance(failure, PapermillExecutionError):
        kind, ename, text = "cell", failure.ename, failure.evalue
    elif isinstance(failure, DeadKernelError):
        kind, text = "dead_kernel", f"the kernel died ({_exit(code)}).{log}"
    elif isinstance(failure, CellTimeoutError):
        late = "outputs did not arrive" if "IOPub" in str(failure) else f"it took longer than {timeout} s (--timeout)"
        kind, text = "timeout", f"{late}; the kernel was stopped."
    elif seen.notebook is None and not isinstance(failure, OSError):
        kind, text = "no_kernel", f"{failure} ({_exit(code)}).{log}"
    else:
        kind, text = "runner", str(failure)
    return {"kind": kind, "ename": ename, "evalue": paragraph(text)}


def _exit(code: Optional[int]) -> str:
    if code is None:
        return "it was never started"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in {item.value for item in signal.Signals} else str(-code)
    hint = ", often because the machine ran out of memory" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


def _where(notebook: Any, executed_index: Optional[int]) -> Dict[str, Any]:
    """The cell's place in the source notebook: papermill's injected cell is not counted."""
    if executed_index is None:
        return {"cell_index": None, "cell_source": None}
    injected = [i for i, cell in enumerate(notebook.cells) if "injected-parameters" in cell.metadata.get("tags", [])]
    shift = 1 if injected and executed_index >= injected[0] else 0
    lines = [line for line in notebook.cells[executed_index].source.splitlines() if line.strip()] or [""]
    return {"cell_index": executed_index - shift, "cell_source": lines[0].strip()[:80]}


def _set_straight(notebook: Any, stage: StageNotebook) -> None:
    """The notebook names the kernel that its reader has, not how this run was made."""
    notebook.metadata["kernelspec"] = {"display_name": kernel.TITLE, "language": "python", "name": kernel.NAME}
    made = notebook.metadata.get("papermill")
    if made is not None:
        made["input_path"] = str(stage.path)
        made.pop("output_path", None)


def _ensure_gone(process: Any) -> None:
    with contextlib.suppress(OSError):
        if process.poll() is None:
            process.kill()
    with contextlib.suppress(Exception):
        process.wait(timeout=10)


_ALWAYS = "Kernel is running over TCP without encryption"
"""Said by every kernel since ipykernel 7."""


def _tail(path: Path, lines: int = 3) -> str:
    """The last lines that the kernel's process itself printed (a segmentation fault's report, say)."""
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = [line.strip() for line in text if _ALWAYS not in line][-lines:]
        if said:
            return " It printed last: " + " / ".join(said)
    return ""


def _no_format(path: Path) -> str:
    # papermill puts parameters into {braces} of a path.
    return str(path).replace("{", "{{").replace("}", "}}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """papermill's and nbclient's log lines, about what is reported here anyway, are held back."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
