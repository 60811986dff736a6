"""The folders of one run, and the hand-over from stage to stage through ``meta.json``.

RUN/run.json               written by the workbook runner
RUN/01_env/ … 06_infer/    one folder a stage: artefacts, meta.json, the executed notebook, its HTML
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Union

from qwenlib import __version__
from qwenlib.errors import Refused
from qwenlib.files import read_json, write_json

STAGES = ("01_env", "02_weights", "03_data", "04_lora", "05_finetune", "06_infer")
META = "meta.json"


def project_root(start: Optional[Path] = None) -> Optional[Path]:
    """The nearest folder at or above ``start`` (default: the working folder) that holds ``notebooks/01_env``."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks" / "01_env").is_dir():
            return folder
    return None


def resolve(path: Union[str, Path]) -> Path:
    """An absolute path: a relative one counts from the project root, wherever the notebook or shell stands."""
    path = Path(path).expanduser()
    if path.is_absolute():
        return path
    return (project_root() or Path.cwd()) / path


@dataclass
class Stage:
    """One stage of a run: its folder, the clock, and what goes into its ``meta.json``."""

    name: str
    run_dir: Path
    profile: str
    started: float = field(default_factory=time.time)
    inputs: Dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The folder of this stage."""
        return self.run_dir / self.name

    def take(self, stage: str) -> Dict[str, Any]:
        """Read what an earlier stage handed over, note it as an input and return its whole ``meta.json``.

        Raises:
            Refused: the earlier stage has not been run (to its end) in this run directory.
        """
        meta = read_meta(self.run_dir, stage)
        self.inputs[stage] = {"created": meta["created"], "outputs": meta["outputs"]}
        return meta

    def finish(
        self,
        outputs: Optional[Dict[str, Any]] = None,
        metrics: Optional[Dict[str, Any]] = None,
        config: Optional[Dict[str, Any]] = None,
    ) -> Dict[str, Any]:
        """Write ``meta.json`` (its presence says that the stage is whole) and say how long the stage took."""
        seconds = round(time.time() - self.started, 1)
        meta = {
            "stage": self.name,
            "profile": self.profile,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": seconds,
            "inputs": self.inputs,
            "outputs": {key: str(value) for key, value in (outputs or {}).items() if value is not None},
            "metrics": metrics or {},
            "config": config or {},
            "versions": versions(),
            "commit": commit(),
        }
        write_json(self.path / META, meta)
        print(f"{self.name} took {seconds:.0f} s; it wrote {self.path}")
        return meta


def open_stage(name: str, output: Union[str, Path], profile: str = "smoke") -> Stage:
    """Begin a stage: create its folder, take its old ``meta.json`` away, print where and with what it runs.

    Raises:
        Refused: ``name`` is not one of :data:`STAGES`, or its folder cannot be made.
    """
    if name not in STAGES:
        raise Refused(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}.")
    stage = Stage(name, resolve(output), profile)
    try:
        stage.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"output: the folder {stage.path} cannot be made: {error.strerror}.") from None
    if (stage.path / META).exists():
        (stage.path / META).unlink()
    print(f"{name} · profile {profile} · {stage.path}")
    print(" · ".join(f"{key} {value}" for key, value in versions().items()))
    return stage


def read_meta(run_dir: Union[str, Path], stage: str) -> Dict[str, Any]:
    """The ``meta.json`` of a finished stage.

    Raises:
        Refused: the stage has not been run to its end in ``run_dir``, or its file is damaged.
    """
    path = resolve(run_dir) / stage / META
    if not path.is_file():
        raise Refused(
            f"{path} is missing: stage {stage} has not been finished in {resolve(run_dir)}. "
            f"Run notebooks/{stage} first, or: qwenlib workbook run --only {stage} --output {shlex.quote(str(run_dir))}"
        )
    meta = read_json(path)
    if not isinstance(meta, dict) or not {"created", "outputs"} <= set(meta):
        raise Refused(f"{path} was not written by qwenlib (it must hold created and outputs). Run stage {stage} again.")
    return meta


def versions() -> Dict[str, str]:
    """Versions of what a run depends on, read from package metadata (nothing is imported)."""
    from importlib import metadata

    found = {"qwenlib": __version__, "python": platform.python_version()}
    for name in ("mindspore", "mindformers", "mindpet", "acctransformer", "torch", "transformers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the code in use ("" outside a git checkout), with ``+`` behind it when files are changed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, env=environ
        )
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, env=environ
        )
    except OSError:
        return ""
    if head.returncode:
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def python() -> str:
    """The interpreter that child processes of a stage are started with."""
    return sys.executable
