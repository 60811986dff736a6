"""``qwenlib diagnose``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List, Optional

import typer


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("diagnose")(diagnose)


def diagnose(
    run_dir: Path = typer.Argument(..., help="A stage's run directory (or the run: its last failed stage is taken)."),
    signatures: Optional[List[Path]] = typer.Option(
        None, "--signatures", help="A YAML file with more signatures; repeatable. Also: QWENLIB_SIGNATURES."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Say why a run failed: reads the logs of all ranks and looks for the errors that are known.

    Example: qwenlib diagnose runs/smoke/04_lora
    """
    from qwenlib import monitor
    from qwenlib.workspace import resolve

    found = monitor.diagnose(resolve(run_dir), signatures or [])
    typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else found.text())
