"""The stage notebooks of a project: one folder each, one notebook in it, found by glob and read strictly."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from qwenlib import workspace
from qwenlib.errors import Refused
from qwenlib.workbook import parameters as params
from qwenlib.workbook.parameters import Parameter

_FOLDER = re.compile(r"^\d\d_\w+$")


@dataclass(frozen=True)
class StageNotebook:
    """A stage: its name (the folder's), its notebook, and the parameters that the notebook takes."""

    name: str
    path: Path
    parameters: Dict[str, Parameter]
    code: str
    """SHA-256 over the source of the code cells."""


def folder(given: Optional[Union[str, Path]] = None) -> Path:
    """The folder that holds the stage folders: ``given``, or ``notebooks/`` of the project around us.

    Raises:
        Refused: there is no such folder.
    """
    if given is not None:
        path = Path(given).expanduser().absolute()
    else:
        package = Path(__file__).resolve().parent
        root = workspace.project_root() or workspace.project_root(package)
        if root is None:
            raise Refused(
                f"no notebooks/01_env at or above {Path.cwd()}. Go into the clone of the project, or give --notebooks."
            )
        path = root / "notebooks"
    if not path.is_dir():
        raise Refused(f"there is no folder {path} to take notebooks from.")
    return path


def find(notebooks: Path) -> List[StageNotebook]:
    """Every stage below ``notebooks``, in the order of their names.

    Raises:
        Refused: no stage folder at all, a folder without exactly one notebook, or a notebook that :func:`load` refuses.
    """
    folders = sorted(item for item in notebooks.iterdir() if item.is_dir() and _FOLDER.match(item.name))
    if not folders:
        raise Refused(f"{notebooks} holds no stage folder (01_env, 02_weights, …).")
    return [load(_only_notebook(item)) for item in folders]


def load(path: Path) -> StageNotebook:
    """Read one stage notebook; its folder names the stage.

    Raises:
        Refused: not a notebook, no (or a second) ``parameters`` cell, or one without ``output`` and ``profile``.
    """
    cells = read_notebook(path).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        found = "none" if not tagged else f"{len(tagged)}" if len(tagged) > 1 else "one that is not code"
        raise Refused(
            f"{path} must have exactly one code cell tagged `parameters`, found {found}. Nothing was run. "
            "Select the cell that holds the settings and add the tag in JupyterLab's property inspector."
        )
    found_parameters = params.read(tagged[0].source, f"{path}, the parameters cell")
    for name in params.RUNNERS_OWN:
        if name not in found_parameters or found_parameters[name].kind.name != "str":
            raise Refused(f"{path}, the parameters cell: `{name}: str = …` is missing; every stage takes it.")
    digest = hashlib.sha256()
    for cell in cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
    return StageNotebook(path.parent.name, path, found_parameters, digest.hexdigest())


def read_notebook(path: Path) -> Any:
    """The notebook as an ``nbformat`` node, version 4.

    Raises:
        Refused: the file is not a notebook.
    """
    import nbformat

    try:
        notebook = nbformat.read(str(path), as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises many kinds, jsonschema's among them
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"{path} is not a Jupyter notebook: {reason}") from None
    return notebook


def choose(stages: Sequence[StageNotebook], only: Optional[Union[str, Sequence[str]]]) -> List[StageNotebook]:
    """The stages named in ``only`` (all of them for None), in the order of the workbook.

    Raises:
        Refused: a name that no stage has, with the nearest one.
    """
    names = [only] if isinstance(only, str) else list(only or [])
    for name in names:
        require_stage(name, stages)
    return [stage for stage in stages if not names or stage.name in names]


def require_stage(name: str, stages: Sequence[StageNotebook]) -> StageNotebook:
    """The stage called ``name``.

    Raises:
        Refused: there is none, with the nearest name.
    """
    for stage in stages:
        if stage.name == name:
            return stage
    known = [stage.name for stage in stages]
    raise Refused(f"there is no stage {name!r}.{_near(name, known)} The stages are {', '.join(known)}.")


def bind(
    stages: Sequence[StageNotebook], chosen: Sequence[StageNotebook], given: Mapping[str, Mapping[str, Any]]
) -> Dict[str, Dict[str, Any]]:
    """Typed values for each chosen stage from ``{stage or "": {name: value}}``.

    A text is parsed only when it comes as :class:`Text` (from a command line); under the key ``""`` stand values for
    every chosen stage that has a parameter of that name.

    Raises:
        Refused: an unknown stage or parameter, with the nearest name; a value of the wrong type; a stage that is
            not run; ``output`` or ``profile``, which the runner gives.
    """
    bound: Dict[str, Dict[str, Any]] = {stage.name: {} for stage in chosen}
    for stage_name, values in sorted(given.items()):
        if stage_name:
            stage = require_stage(stage_name, stages)
            if stage_name not in bound:
                raise Refused(f"parameters are given for {stage_name}, which is not run: --only leaves it out.")
        for name, value in values.items():
            if name in params.RUNNERS_OWN:
                raise Refused(f"the parameter {name} is given by {params.RUNNERS_OWN[name]}, not by -p.")
            takers = [stage] if stage_name else [each for each in chosen if name in each.parameters]
            if not takers or name not in takers[0].parameters:
                raise Refused(_unknown(name, takers or chosen))
            for taker in takers:
                if stage_name or name not in given.get(taker.name, {}):  # what is given for one stage goes first
                    bound[taker.name][name] = _typed(value, taker, name)
    return bound


class Text(str):
    """A value as it was typed on the command line."""


def from_assignments(assignments: Sequence[str]) -> Dict[str, Dict[str, Any]]:
    """``-p`` options as the mapping that :func:`bind` takes.

    Raises:
        Refused: an option does not read ``name=value``, or a name is given twice.
    """
    given: Dict[str, Dict[str, Any]] = {}
    for stage, name, value in params.split(assignments):
        values = given.setdefault(stage or "", {})
        if name in values:
            raise Refused(f"-p {stage + '.' if stage else ''}{name} is given twice.")
        values[name] = Text(value)
    return given


def _typed(value: Any, stage: StageNotebook, name: str) -> Any:
    parameter, where = stage.parameters[name], f"stage {stage.name}"
    if isinstance(value, Text):
        return params.parse(str(value), parameter, where)
    return params.check(str(value) if isinstance(value, Path) else value, parameter, where)


def _unknown(name: str, takers: Sequence[StageNotebook]) -> str:
    known = sorted({known for stage in takers for known in stage.parameters if known not in params.RUNNERS_OWN})
    where = f"stage {takers[0].name} has" if len(takers) == 1 else "no stage that is run has"
    article = "no parameter" if len(takers) == 1 else "a parameter"
    return f"{where} {article} {name!r}.{_near(name, known)} There are: {', '.join(known) or 'none'}."


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5) or [item for item in known if name and name in item][:1]
    return f" Did you mean {near[0]}?" if near else ""


def _only_notebook(stage_folder: Path) -> Path:
    found = sorted(stage_folder.glob("*.ipynb"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise Refused(f"{stage_folder} must hold exactly one notebook, found: {names}.")
    return found[0]
