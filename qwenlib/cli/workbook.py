"""``qwenlib workbook``: run the six notebooks, list their parameters, look at a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from qwenlib.errors import Refused, WorkFailed

workbook = typer.Typer(
    help="Run the notebooks headless: papermill, strictly.", no_args_is_help=True, pretty_exceptions_enable=False
)


def register(app: typer.Typer) -> None:
    """Mount ``qwenlib workbook``."""
    app.add_typer(workbook, name="workbook")


@workbook.command("run")
def run_command(
    profile: str = typer.Option("smoke", "--profile", help="A shipped profile, or the path of a .yaml file."),
    output: str = typer.Option("runs/smoke", "--output", help="Run directory (relative: from the project root)."),
    parameter: Optional[List[str]] = typer.Option(
        None,
        "-p",
        "--parameter",
        metavar="[STAGE.]NAME=VALUE",
        help="A notebook's parameter; without STAGE, for every stage that has it. Can be repeated.",
    ),
    only: Optional[List[str]] = typer.Option(None, "--only", metavar="STAGE", help="Run this stage. Can be repeated."),
    resume: bool = typer.Option(False, "--resume", help="Skip stages of which nothing changed since they were done."),
    timeout: Optional[int] = typer.Option(None, "--timeout", metavar="SECONDS", help="What one cell may take."),
    notebooks: Optional[Path] = typer.Option(None, "--notebooks", help="Folder with the stage folders."),
    kernel: Optional[str] = typer.Option(
        None, "--kernel", metavar="NAME", help="An installed kernelspec (default: the Python that runs qwenlib)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print run.json on stdout at the end, and nothing else there."),
) -> None:
    """Run the stage notebooks in their order.

    Everything is checked before the first one starts. What happened is in OUTPUT/run.json at any time; each stage's
    folder gets the executed notebook and its HTML page.

    Exit codes: 0 done; 1 a stage failed; 2 refused (here, or by a stage); 130 Ctrl-C.

    Example: qwenlib workbook run --profile smoke --output runs/smoke -p 04_lora.epochs=3 --resume
    """
    from qwenlib import workspace
    from qwenlib.workbook import record, runner, stages

    given = stages.from_assignments(parameter or [])
    stopped: Optional[BaseException] = None
    try:
        content = runner.run(profile, output, given, only or None, resume, timeout, notebooks, kernel)
    except (KeyboardInterrupt, SystemExit) as signal:
        stopped, content = signal, record.read(workspace.resolve(output))
    print(json.dumps(content, indent=2, ensure_ascii=False) if as_json else record.table(content))
    if isinstance(stopped, SystemExit):
        raise stopped
    if stopped is not None:
        raise typer.Exit(130)
    if content["state"] == "failed":
        _fail(content)


@workbook.command("list")
def list_command(
    notebooks: Optional[Path] = typer.Option(None, "--notebooks", help="Folder with the stage folders."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """List the stages and the parameters of their notebooks: name, type, default, meaning.

    Example: qwenlib workbook list
    """
    from qwenlib.workbook import parameters, stages

    found = stages.find(stages.folder(notebooks))
    tree = [
        {"stage": stage.name, "notebook": str(stage.path), "parameters": parameters.describe(stage.parameters)}
        for stage in found
    ]
    if as_json:
        print(json.dumps(tree, indent=2, ensure_ascii=False))
        return
    for stage in found:
        print(f"{stage.name}   {stage.path}")
        for each in parameters.describe(stage.parameters):
            given = f"given by {each['given_by']}" if each["given_by"] else f"default {each['default']!r}"
            meaning = f"   {each['help']}" if each["help"] else ""
            print(f"    {each['name']}: {each['type']}   {given}{meaning}")


@workbook.command("status")
def status_command(
    run_dir: Path = typer.Argument(..., metavar="DIR", help="The --output of a run."),
    as_json: bool = typer.Option(False, "--json", help="Print run.json (a dead runner's run as interrupted)."),
) -> None:
    """Show how a run stands, from its run.json; at any time, also while it runs.

    Example: qwenlib workbook status runs/smoke
    """
    from qwenlib import workspace
    from qwenlib.workbook import record

    content = record.read(workspace.resolve(run_dir))
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    print(record.table(content))
    if content.get("first_failure"):
        print(_sentence(content["first_failure"]))


def _sentence(failure: Dict[str, Any]) -> str:
    from qwenlib.workbook import banner

    where = banner.place(failure)
    return f"stage {failure['stage']}{', ' + where if where else ''}: {banner.sentence(failure)}"


def _fail(content: Dict[str, Any]) -> None:
    """Raise what the first failure of a run means to the shell: a stage's own refusal stays one."""
    failure = content["first_failure"]
    notebook = content["stages"][failure["stage"]]["notebook"]
    text = f"{_sentence(failure)} (executed notebook: {notebook}; go on with --resume)"
    raise (Refused if failure["kind"] == "cell" and failure["ename"] == "Refused" else WorkFailed)(text)
