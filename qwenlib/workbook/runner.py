"""The workbook: stage after stage, each notebook in a kernel of its own, and a record of what happened."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from qwenlib import files, workspace
from qwenlib.errors import WorkFailed
from qwenlib.workbook import banner, html, kernel, lock, processes, resume, stages
from qwenlib.workbook.execute import Outcome, execute, failure_without_cell, paragraph
from qwenlib.workbook.interrupt import Signals
from qwenlib.workbook.plan import Plan, prepare
from qwenlib.workbook.record import Record, blank, now
from qwenlib.workbook.show import CellProgress, say
from qwenlib.workbook.stages import StageNotebook

WORK = ".work"
"""Folder in the run directory, so on its file system, for what is not finished yet."""

SPACE_BYTES = 64 * 2**20


def run(
    profile: str = "smoke",
    output: Union[str, Path] = "runs/smoke",
    parameters: Optional[Mapping[str, Mapping[str, Any]]] = None,
    only: Optional[Union[str, Sequence[str]]] = None,
    resume: bool = False,
    timeout: Optional[int] = None,
    notebooks: Optional[Union[str, Path]] = None,
    kernel_name: Optional[str] = None,
) -> Dict[str, Any]:
    """Run the stage notebooks in their order and return what ``RUN/run.json`` says at the end.

    A stage that fails ends the run: that is in the result (``state`` failed, ``first_failure``), not an exception.

    Args:
        profile: a shipped profile's name, or the path of a YAML file.
        output: the run directory; a relative one counts from the project root.
        parameters: ``{stage: {name: value}}``; under the key ``""``, values for every stage that has the name.
        only: the stages to run (None: all).
        resume: skip stages whose code, parameters, profile, inputs and results are as they were at their last success.
        timeout: seconds that one cell may take (None: any).
        notebooks: the folder with the stage folders (None: the project's).
        kernel_name: an installed kernelspec to use instead of the interpreter that runs this.

    Raises:
        Refused: anything about the above that is wrong, before any notebook is started; or another runner is at work
            in ``output``; or the disk has less than 64 MiB free.
        WorkFailed: the runner itself could not write (a full disk).
        KeyboardInterrupt: after Ctrl-C, when kernels are gone and run.json says so (SystemExit(143) after SIGTERM).
    """
    plan = prepare(profile, output, parameters, only, resume, timeout, notebooks, kernel_name)
    files.require_space(plan.run_dir, SPACE_BYTES, "the workbook")
    files.make_folder(plan.run_dir)
    token = uuid.uuid4().hex
    work = plan.run_dir / WORK
    with lock.held(plan.run_dir, token) as dead_runner, Signals() as signals:
        if dead_runner:
            say(f"taking over {plan.run_dir} from a runner that died{_ended(processes.end(dead_runner, patience=0))}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            with processes.MemoryPeak(token) as memory:
                content = _Run(plan, token, signals, memory).go()
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if content["state"] == "interrupted":
        signals.raise_again()
    return content


class _Run:
    """One run in progress."""

    def __init__(self, plan: Plan, token: str, signals: Signals, memory: processes.MemoryPeak):
        self.plan, self.token, self.signals, self.memory = plan, token, signals, memory
        self.run_dir = plan.run_dir
        self.code = resume.code()
        names = [stage.name for stage in plan.stages]
        chosen = [stage.name for stage in plan.chosen]
        self.record = Record(plan.run_dir, plan.profile, names, chosen, plan.resume)
        plan.kernel_spec.env = {**plan.kernel_spec.env, **kernel.environment(token)}

    def go(self) -> Dict[str, Any]:
        """All chosen stages, until one does not succeed."""
        state = "done"
        for number, stage in enumerate(self.plan.chosen, 1):
            if self.signals.caught is not None:
                state = "interrupted"
                break
            head = f"[{number}/{len(self.plan.chosen)}] {stage.name}"
            source = resume.made_from(stage, self.plan.all_values(stage), self.plan.profile_content, self.code)
            why = resume.changed(self.run_dir, stage.name, source) if self.plan.resume else "--resume is not given"
            if why is None:
                say(f"{head}: skipped, nothing changed since it was done")
                self._skip(stage)
                continue
            say(f"{head}: running ({why})")
            error = self._guarded(stage, source, why)
            if error is not None:
                state = "interrupted" if error["kind"] == "interrupt" else "failed"
                break
        self.memory.stage_mib()
        return self.record.finish(state, round(self.memory.total / 2**20, 1))

    def _skip(self, stage: StageNotebook) -> None:
        meta = workspace.read_meta(self.run_dir, stage.name)
        why = f"nothing changed since {meta['created']}"
        values, metrics = self.plan.values(stage), meta["metrics"]
        self.record.update(stage.name, state="skipped", why=why, parameters=values, metrics=metrics, stale=None)

    def _guarded(self, stage: StageNotebook, source: Dict[str, Any], why: str) -> Optional[Dict[str, Any]]:
        """:meth:`_stage`; when the runner itself fails (a full disk), the record says so if it still can."""
        try:
            return self._stage(stage, source, why)
        except (OSError, WorkFailed) as error:
            processes.end(self.token, patience=0)
            with contextlib.suppress(OSError, WorkFailed):
                facts = failure_without_cell("runner", type(error).__name__, str(error))
                self.record.fail(stage.name, facts, "failed")
                self.record.finish("failed", round(self.memory.total / 2**20, 1))
            raise WorkFailed(f"stage {stage.name} could not be carried out: {paragraph(str(error))}") from error

    def _stage(self, stage: StageNotebook, source: Dict[str, Any], why: str) -> Optional[Dict[str, Any]]:
        started = time.monotonic()
        self.memory.stage_mib()
        values = self.plan.values(stage)
        runnable = [cell for cell in stages.read_notebook(stage.path).cells if _runs(cell)]
        entry = {**blank(), "state": "running", "why": why, "started": now(), "parameters": values}
        entry.update(cells=len(runnable) + 1, cells_done=0)  # and papermill's injected cell
        self._make_room(stage)
        self.record.update(stage.name, **entry)

        outcome = self._execute(stage, values)
        left = processes.end(self.token, patience=0.5 if outcome.error is None else 2.0)
        if left:
            say(f"{stage.name}: processes were left behind{_ended(left)}")
        error = outcome.error or self._missing_meta(stage)
        if error is not None:
            resume.forget(self.run_dir, stage.name)  # the cell that failed may have come after stage.finish
            banner.put(outcome.notebook, error, outcome.executed_index)
        self._write(stage, outcome.notebook, failed=error is not None)

        seconds = round(time.monotonic() - started, 1)
        self.record.update(stage.name, seconds=seconds, peak_mib=self.memory.stage_mib(), left_behind=left)
        if error is not None:
            state = "interrupted" if error["kind"] == "interrupt" else "failed"
            self.record.fail(stage.name, error, state)
            say(f"{stage.name}: {state} after {seconds:.0f} s")
            return error
        metrics = workspace.read_meta(self.run_dir, stage.name)["metrics"]
        resume.remember(self.run_dir, stage.name, source)
        self.record.update(stage.name, state="done", metrics=metrics)
        say(f"{stage.name}: done in {seconds:.0f} s")
        return None

    def _execute(self, stage: StageNotebook, values: Mapping[str, Any]) -> Outcome:
        work = self.run_dir / WORK / stage.name
        work.mkdir(parents=True)
        entry = self.record.stages[stage.name]
        with CellProgress(stage.name, entry["cells"]) as progress:

            def on_cell(index: int, over: bool) -> None:
                if over:
                    progress.done()
                    self.record.update(stage.name, cells_done=entry["cells_done"] + 1)
                else:
                    progress.begin(f"in cell {index + 1}")

            return execute(stage, values, work, self.plan.kernel_spec, self.plan.timeout, self.signals, on_cell)

    def _make_room(self, stage: StageNotebook) -> None:
        """Take away what says that this stage is whole, and mark (or take away) what was built on it."""
        names = [each.name for each in self.plan.stages]
        chosen = [each.name for each in self.plan.chosen]
        again = {stage.name}
        for name in names[names.index(stage.name) + 1 :]:
            if again & set(resume.builds_on(self.run_dir, name)):
                again.add(name)
                self.record.stages[name]["stale"] = f"{stage.name} was run again after it"
            if name in chosen and not self.plan.resume:
                resume.forget(self.run_dir, name)
                self.record.stages[name]["stale"] = None
        resume.forget(self.run_dir, stage.name)

    def _missing_meta(self, stage: StageNotebook) -> Optional[Dict[str, Any]]:
        path = self.run_dir / stage.name / workspace.META
        if path.is_file():
            return None
        text = f"the notebook ended without writing {path}: its last cell must call stage.finish(…)."
        return failure_without_cell("missing_meta", "MissingMeta", text)

    def _notebook(self, stage: StageNotebook) -> Path:
        return self.run_dir / stage.name / f"{stage.name}.ipynb"

    def _write(self, stage: StageNotebook, notebook: Any, failed: bool) -> None:
        """Put the executed notebook and its page in place, and after a failure the kernel's own log."""
        import nbformat

        path = self._notebook(stage)
        with files.atomic_path(path) as part:
            nbformat.write(notebook, str(part))
        page: Optional[Path] = path.with_suffix(".html")
        try:
            html.write(notebook, path.with_suffix(".html"), stage.name)
        except (OSError, WorkFailed):
            raise
        except Exception as error:  # nbconvert and Jinja raise many kinds; the stage itself is not at fault
            say(f"{stage.name}: no HTML page ({type(error).__name__}: {paragraph(str(error))})")
            path.with_suffix(".html").unlink(missing_ok=True)
            page = None
        log = self.run_dir / WORK / stage.name / "kernel.log"
        kept = path.with_name("kernel.log")
        kept.unlink(missing_ok=True)
        if failed and log.is_file() and log.stat().st_size:
            log.replace(kept)
        self.record.update(stage.name, notebook=str(path), html=str(page) if page else None)


def _runs(cell: Any) -> bool:
    return cell.cell_type == "code" and bool(cell.source.strip())


def _ended(processes_left: List[str]) -> str:
    return f"; ended: {', '.join(processes_left)}" if processes_left else ""
