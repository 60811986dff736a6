"""A run of the workbook, checked in every part before anything is started or written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from qwenlib import profile as profiles
from qwenlib import workspace
from qwenlib.errors import Refused
from qwenlib.workbook import kernel, stages
from qwenlib.workbook.stages import StageNotebook


@dataclass
class Plan:
    """What will be run, where, with what."""

    run_dir: Path
    profile: str
    profile_content: Dict[str, Any]
    stages: List[StageNotebook]
    chosen: List[StageNotebook]
    given: Dict[str, Dict[str, Any]]
    resume: bool
    timeout: Optional[int]
    kernel_spec: Any

    def values(self, stage: StageNotebook) -> Dict[str, Any]:
        """The parameters to inject into ``stage``."""
        return {"output": str(self.run_dir), "profile": self.profile, **self.given[stage.name]}

    def all_values(self, stage: StageNotebook) -> Dict[str, Any]:
        """The same with the defaults of the notebook for all others."""
        return {**{name: parameter.default for name, parameter in stage.parameters.items()}, **self.values(stage)}


def prepare(
    profile: str,
    output: Union[str, Path],
    parameters: Optional[Mapping[str, Mapping[str, Any]]] = None,
    only: Optional[Union[str, Sequence[str]]] = None,
    resume: bool = False,
    timeout: Optional[int] = None,
    notebooks: Optional[Union[str, Path]] = None,
    kernel_name: Optional[str] = None,
) -> Plan:
    """Check everything about a run; the arguments are those of :func:`qwenlib.workbook.run`.

    Raises:
        Refused: an unknown profile, stage, parameter or kernelspec; a value of the wrong type; a notebook that is not
            fit to be run; an output that is a file or holds the notebooks themselves.
    """
    if str(profile).endswith((".yaml", ".yml")):
        profile = str(Path(profile).expanduser().absolute())  # the notebooks stand in other folders
    content = profiles.to_dict(profiles.load(profile))
    found = stages.find(stages.folder(notebooks))
    chosen = stages.choose(found, only)
    given = stages.bind(found, chosen, parameters or {})
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1):
        raise Refused(f"--timeout must be a whole number of seconds, 1 or more, found {timeout!r}.")
    run_dir = _run_dir(output, found)
    return Plan(run_dir, str(profile), content, found, chosen, given, resume, timeout, kernel.spec(kernel_name))


def _run_dir(output: Union[str, Path], found: Sequence[StageNotebook]) -> Path:
    run_dir = workspace.resolve(output)
    for part in (run_dir, *run_dir.parents):
        if part.exists() and not part.is_dir():
            raise Refused(f"--output {run_dir}: {part} is a file; a run needs a folder.")
    run_dir = run_dir.resolve()
    for stage in found:
        if run_dir / stage.name == stage.path.parent.resolve():
            raise Refused(f"--output {run_dir} is where the notebooks are; the run would overwrite them.")
    return run_dir
