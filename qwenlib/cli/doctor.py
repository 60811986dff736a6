"""``qwenlib doctor``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("doctor")(doctor)


def doctor(
    profile: str = typer.Option(
        "", "--profile", help="Profile name or YAML file. Default: smoke, or lora_7b_910a when an Ascend is here."
    ),
    root: Path = typer.Option(Path("/"), "--root", help="File system root to look in (another machine's copied tree)."),
    output: Path = typer.Option(Path("runs"), "--output", help="Where runs will write: its disk is measured."),
    rank_table: str = typer.Option("", "--rank_table", help="Rank table file; empty: looked for."),
    run_hours: float = typer.Option(
        0.0, "--run_hours", min=0.0, help="Length of the run, for a notebook's lease; 0: estimated for alpaca."
    ),
    probe: bool = typer.Option(True, "--probe/--no-probe", help="Import MindSpore and MindFormers in a child process."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Check this machine before anything is launched; exit code 1 when something is a FAIL.

    Example: qwenlib doctor --profile lora_7b_910a --json
    """
    from qwenlib import profile as profiles
    from qwenlib.ascend.devices import device_nodes
    from qwenlib.doctor import Context, diagnose
    from qwenlib.errors import Refused
    from qwenlib.workspace import resolve

    if not root.is_dir():
        raise Refused(f"--root {root} is no folder.")
    name = profile or ("lora_7b_910a" if device_nodes(root) else "smoke")
    context = Context(
        profiles.load(name),
        root.absolute(),
        output=resolve(output),
        rank_table=rank_table,
        probe_imports=probe,
        run_seconds=run_hours * 3600 or None,
    )
    report = diagnose(context)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if as_json else report.text(width))
    if report.fails:
        raise typer.Exit(1)
