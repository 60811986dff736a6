"""``run.json``: what a run is doing or has done, whole and readable at any instant."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from qwenlib import workspace
from qwenlib.errors import Refused
from qwenlib.files import read_json, write_json
from qwenlib.workbook import lock

NAME = "run.json"
STATES = ("pending", "running", "done", "skipped", "failed", "interrupted")


class Record:
    """The content of ``RUN/run.json``; every change of a stage is written at once.

    ``stages`` maps a stage's name to: state (one of :data:`STATES`), why (it was run or skipped), seconds, peak_mib,
    parameters, metrics (from its meta.json), cells and cells_done, notebook and html (paths), left_behind (processes
    that had to be ended after it), stale (why its result no longer fits), error.
    ``error`` holds kind (cell, dead_kernel, timeout, interrupt, missing_meta, no_kernel, runner), cell_index (counted
    from 0 in the source notebook, or null), cell_source (its first line), ename and evalue (one paragraph).
    """

    def __init__(self, run_dir: Path, profile: str, stages: Sequence[str], chosen: Sequence[str], resume: bool):
        self.path = run_dir / NAME
        before = _stages_before(self.path)
        self.content: Dict[str, Any] = {
            "state": "running",
            "profile": profile,
            "output": str(run_dir),
            "only": list(chosen) if len(chosen) < len(stages) else None,
            "resume": resume,
            "started": now(),
            "finished": None,
            "seconds": None,
            "peak_mib": None,
            "versions": workspace.versions(),
            "commit": workspace.commit(),
            "runner": lock.identity(),
            "first_failure": None,
            "stages": {name: {**blank(), **before.get(name, {})} for name in stages},
        }
        self._start = time.monotonic()
        for name in chosen:
            if resume:  # a stage that is skipped keeps what is known of its last run
                self.stages[name].update(state="pending", error=None, left_behind=[])
            else:
                self.stages[name] = blank()
        self.write()

    @property
    def stages(self) -> Dict[str, Dict[str, Any]]:
        """The entries of the stages, in their order."""
        stages: Dict[str, Dict[str, Any]] = self.content["stages"]
        return stages

    def update(self, stage: str, **changes: Any) -> None:
        """Change the entry of ``stage`` and write the file."""
        self.stages[stage].update(changes)
        self.write()

    def fail(self, stage: str, error: Dict[str, Any], state: str) -> None:
        """Note the error of ``stage``; the first one of a run is also its ``first_failure``."""
        self.stages[stage].update(state=state, error=error)
        if self.content["first_failure"] is None:
            self.content["first_failure"] = {"stage": stage, **error}
        self.write()

    def finish(self, state: str, peak_mib: float) -> Dict[str, Any]:
        """Write the end of the run and return the whole content."""
        seconds = round(time.monotonic() - self._start, 1)
        self.content.update(state=state, finished=now(), seconds=seconds, peak_mib=peak_mib)
        self.write()
        return self.content

    def write(self) -> None:
        """Replace the file."""
        write_json(self.path, self.content)


def blank() -> Dict[str, Any]:
    """The entry of a stage of which nothing is known yet."""
    return {
        "state": "pending",
        "why": None,
        "started": None,
        "seconds": None,
        "peak_mib": None,
        "parameters": {},
        "metrics": {},
        "cells": None,
        "cells_done": None,
        "notebook": None,
        "html": None,
        "left_behind": [],
        "stale": None,
        "error": None,
    }


def read(run_dir: Path) -> Dict[str, Any]:
    """The content of ``run.json``; a run whose runner is gone without saying so is shown as interrupted.

    Raises:
        Refused: there is no run in that folder, or its run.json is not one.
    """
    path = run_dir / NAME
    if not path.is_file():
        raise Refused(f"there is no {path}: no workbook has been run there. Give the --output of a run.")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise Refused(f"{path} is not the record of a workbook run (it has no stages).")
    if content.get("state") == "running" and lock.is_alive(content.get("runner") or {}) is False:
        content["state"] = "interrupted"
        for entry in content["stages"].values():
            if entry.get("state") == "running":
                entry.update(state="interrupted", error=vanished())
    return content


def vanished() -> Dict[str, Any]:
    """The error of a stage whose runner ended without a word."""
    return {
        "kind": "interrupt",
        "cell_index": None,
        "cell_source": None,
        "ename": "RunnerGone",
        "evalue": "the runner was ended from outside (SIGKILL, out of memory, power) while this stage ran",
    }


def table(content: Dict[str, Any]) -> str:
    """The run as a table for people: stage, state, minutes, peak memory, where."""
    rows: List[List[str]] = [["stage", "state", "minutes", "peak MiB", "where"]]
    for name, entry in content["stages"].items():
        state = f"{entry['state']}, stale" if entry.get("stale") else str(entry["state"])
        if entry["state"] == "running" and entry.get("cells"):
            state += f" {entry['cells_done']}/{entry['cells']}"
        where = entry.get("html") or entry.get("notebook") or ""
        peak = entry.get("peak_mib")
        rows.append([name, state, _minutes(entry.get("seconds")), f"{peak:.0f}" if peak else "-", str(where)])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]).rstrip() for row in rows]
    total = _minutes(content.get("seconds"))
    peak = f", at most {content['peak_mib']:.0f} MiB" if content.get("peak_mib") else ""
    lines.append(f"{content['state']}: profile {content['profile']}, {total} minutes{peak}, in {content['output']}")
    return "\n".join(lines)


def now() -> str:
    """The time, with its zone, as in meta.json."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _minutes(seconds: Optional[float]) -> str:
    return "-" if seconds is None else f"{seconds / 60:.1f}"


def _stages_before(path: Path) -> Dict[str, Dict[str, Any]]:
    """Entries of the previous run in the same folder; none when its record cannot be read."""
    try:
        stages = read(path.parent)["stages"]
    except Refused:
        return {}
    return {name: entry for name, entry in stages.items() if isinstance(entry, dict)}
