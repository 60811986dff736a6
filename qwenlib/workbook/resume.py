"""Whether a stage would do the same again.

At each success the runner leaves ``RUN/<stage>/.resume.json``: what the stage was made from and what it made. A later
run with ``--resume`` skips the stage while all of it still holds; otherwise it says what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from qwenlib import files, workspace
from qwenlib.errors import Refused
from qwenlib.workbook.stages import StageNotebook

NAME = ".resume.json"
PACKAGE = Path(__file__).resolve().parent.parent
NOT_DATA = ("__pycache__", ".git", ".venv", ".ipynb_checkpoints")
MANY = 20_000
"""Files that are looked at below one folder; a folder with more is not followed."""


def digest(value: Any) -> str:
    """SHA-256 of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def code() -> str:
    """SHA-256 over the files of the package; shipped profiles are left out: the one in use is compared by content."""
    found = files.fingerprint(PACKAGE)
    return digest({name: sha for name, sha in found.items() if not name.startswith("profiles" + os.sep)})


def made_from(stage: StageNotebook, values: Mapping[str, Any], profile: Any, code_digest: str) -> Dict[str, Any]:
    """What a stage is made from, apart from what earlier stages hand over.

    ``values`` are all parameters, defaults included. Files and folders that they name are looked at too (size and
    time of change): the same path with other data is another input.
    """
    return {
        "notebook": stage.code,
        "code": code_digest,
        "profile": digest(profile),
        "versions": {name: text for name, text in workspace.versions().items() if name != "qwenlib"},
        "parameters": {name: values[name] for name in sorted(values)},
        "files": {
            value: listing(workspace.resolve(value))
            for name, value in sorted(values.items())
            if name != "output" and isinstance(value, str) and _names_data(value)
        },
    }


def remember(run_dir: Path, stage: str, source: Mapping[str, Any]) -> None:
    """Note, after a success, what ``stage`` was made from, what it took and what it left."""
    meta = workspace.read_meta(run_dir, stage)
    left = [workspace.resolve(value) for value in meta["outputs"].values() if value]
    memory = {
        "source": source,
        "inputs": {name: _meta_digest(run_dir, name) for name in meta["inputs"]},
        "outputs": {str(path): listing(path) for path in left if path.exists()},
    }
    files.write_json(run_dir / stage / NAME, memory)


def forget(run_dir: Path, stage: str) -> None:
    """Take away what says that ``stage`` is whole: its meta.json and its memory."""
    for name in (workspace.META, NAME):
        (run_dir / stage / name).unlink(missing_ok=True)


def changed(run_dir: Path, stage: str, source: Mapping[str, Any]) -> Optional[str]:
    """Why ``stage`` has to run again, in a few words; None when it has not."""
    try:
        memory = files.read_json(run_dir / stage / NAME)
        workspace.read_meta(run_dir, stage)
        before = memory["source"]
        inputs: Dict[str, str] = memory["inputs"]
        outputs: Dict[str, Dict[str, List[int]]] = memory["outputs"]
    except (Refused, KeyError, TypeError):
        return "it has not been finished here before"
    for key, what in (
        ("notebook", "the notebook's code"),
        ("code", "the code of qwenlib"),
        ("profile", "the profile"),
        ("versions", "a version of a library"),
    ):
        if before.get(key) != source[key]:
            return f"{what} changed"
    difference = _difference(before.get("parameters", {}), source["parameters"])
    if difference:
        return difference
    for name, found in source["files"].items():
        if str(workspace.resolve(name)) not in outputs and before.get("files", {}).get(name) != found:
            return f"{name}, which a parameter names, changed"
    if not (run_dir / stage / f"{stage}.ipynb").is_file():
        return "its executed notebook is gone"
    for name, sha in inputs.items():
        if _meta_digest(run_dir, name) != sha:
            return f"{name}, which it builds on, was run again"
    return next(filter(None, (_lost(Path(path), found) for path, found in outputs.items())), None)


def builds_on(run_dir: Path, stage: str) -> List[str]:
    """The stages that ``stage``, when it last succeeded, took something from."""
    try:
        return list(files.read_json(run_dir / stage / NAME)["inputs"])
    except (Refused, KeyError, TypeError):
        return []


def listing(path: Path) -> Dict[str, List[int]]:
    """``{relative name: [bytes, time of change in ns]}`` of a file ("." is its name) or of all files in a folder."""
    if path.is_file():
        status = path.stat()
        return {".": [status.st_size, status.st_mtime_ns]}
    found: Dict[str, List[int]] = {}
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in NOT_DATA)
        for name in sorted(names):
            if name.endswith((".ipynb", ".html")):  # opening a page in Jupyter may save it
                continue
            item = Path(folder) / name
            try:
                status = item.stat()
            except OSError:
                continue
            found[str(item.relative_to(path))] = [status.st_size, status.st_mtime_ns]
            if len(found) > MANY:
                return {"": [-1, -1]}
    return found


def _lost(path: Path, before: Mapping[str, List[int]]) -> Optional[str]:
    """What is missing or different below ``path``; files that came since do not matter (a later stage may add some)."""
    after = listing(path)
    for name, status in before.items():
        item = path if name == "." else path / name
        if name not in after:
            return f"{item} is gone"
        if after[name] != status:
            return f"{item} was changed"
    return None


def _meta_digest(run_dir: Path, stage: str) -> str:
    path = run_dir / stage / workspace.META
    return files.sha256(path) if path.is_file() else ""


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Optional[str]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            return f"parameter {name} was {before.get(name)!r} and is {after.get(name)!r}"
    return None


def _names_data(value: str) -> bool:
    if not value or len(value) > 4096 or "\n" in value or "\0" in value:
        return False
    path = workspace.resolve(value)
    root = workspace.project_root()
    try:
        return path.exists() and path.resolve() not in (root, Path.cwd(), Path.home(), Path("/"))
    except OSError:
        return False
