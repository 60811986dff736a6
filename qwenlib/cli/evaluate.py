"""``qwenlib eval``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from qwenlib.cli import model as models
from qwenlib.errors import Refused


def register(app: typer.Typer) -> None:
    """Mount ``qwenlib eval``."""
    app.command("eval")(evaluate)


def evaluate(
    run_dir: Path = typer.Option(..., "--run_dir", help="A workbook run; all of its models are measured."),
    held_out: Optional[Path] = typer.Option(
        None, "--held_out", help="Records that training did not see. Default: what 03_data of the run held out."
    ),
    prompt_file: Optional[Path] = typer.Option(
        None, "--prompt_file", help="A fixed set of questions, as --input_file of predict. Default: training prompts."
    ),
    prompts: int = typer.Option(24, "--prompts", help="How many training prompts are asked; 0: none."),
    output_file: Optional[Path] = typer.Option(None, "--output_file", help="Default: eval.json in the run."),
    profile: str = models.PROFILE,
    max_new_tokens: Optional[int] = models.LENGTH,
    setting: Optional[List[str]] = models.SETTING,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Measure base, LoRA and fine-tuned model: perplexity on held-out conversations, and answers to the letter.

    Example: qwenlib eval --run_dir runs/smoke --prompts 24
    """
    from qwenlib import infer, workspace

    if prompts < 0:
        raise Refused(f"--prompts must be at least 0, found {prompts}.")
    settings = models.answering(max_new_tokens=max_new_tokens or None, do_sample=False)
    folder = workspace.resolve(run_dir)
    if not folder.is_dir():
        raise Refused(f"there is no run directory {folder}.")
    asked = _questions(folder, prompt_file, prompts)
    unseen = held_out or _held_out(folder)
    if unseen is None and not asked:
        raise Refused(f"03_data of {folder} held nothing out; give --held_out FILE, or ask --prompts.")
    target = output_file or folder / infer.EVAL
    with (
        tempfile.TemporaryDirectory(prefix="qwenlib-eval-") as place,
        infer.Models.of_run(folder, folder=place, profile=profile, settings=setting or []) as found,
    ):
        table = infer.compare(found, asked, **settings) if asked else None
        told = infer.evaluate(found.choices, folder=place, held_out=unseen, table=table, output_file=target)
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    typer.echo(infer.evaluation_table(told).to_string(float_format="%.3f"))
    if "held_out" in told:
        typer.echo(f"held out: {told['held_out']['conversations']} conversations of {told['held_out']['file']}")
    typer.echo(f"written: {target}")


def _questions(folder: Path, prompt_file: Optional[Path], count: int) -> List[Dict[str, Any]]:
    from qwenlib import data, workspace
    from qwenlib.infer import batch, choose

    if prompt_file is not None:
        found = batch.read_prompts(prompt_file)
        return [
            {"prompt": item["messages"][-1]["content"], "answer": item["expected"], "messages": item["messages"]}
            for item in found
        ]
    if count == 0:
        return []
    made = workspace.read_meta(folder, "03_data")["outputs"]
    return data.prompts(choose.here(folder, "03_data", made["messages"]), count)


def _held_out(folder: Path) -> Optional[Path]:
    from qwenlib import workspace
    from qwenlib.infer import choose

    found = workspace.read_meta(folder, "03_data")["outputs"].get("held_out")
    return choose.here(folder, "03_data", found) if found else None
