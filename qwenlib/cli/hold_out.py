"""``qwenlib data hold-out``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from qwenlib.cli.data import data


def register(_app: typer.Typer) -> None:
    """Mount the command beside the others of ``qwenlib data``."""
    data.command("hold-out")(hold_out)


def hold_out(
    messages: Path = typer.Option(..., "--messages", help="Messages file that convert wrote; it is replaced."),
    held_out: Path = typer.Option(..., "--held_out", help="File to write the held-out conversations to."),
    count: int = typer.Option(..., "--count", help="How many; those with the same question go together."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Move conversations out of a messages file before it is built, for qwenlib eval to measure with.

    Example: qwenlib data hold-out --messages messages.jsonl --held_out held_out.jsonl --count 200
    """
    from qwenlib.data.hold_out import hold_out as run

    counts = run(messages, held_out, count)
    text = f"{counts['train']:,} to train on: {messages}\n{counts['held_out']:,} held out: {held_out}"
    typer.echo(json.dumps(counts, indent=2) if as_json else text)
