"""``qwenlib config``: look at a profile, and at the YAML that MindFormers will read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from qwenlib.errors import Refused

config = typer.Typer(help="Profiles, and the MindFormers YAML made from them.", no_args_is_help=True)
SETTING = typer.Option(None, "-s", metavar="KEY=VALUE", help="Profile override such as lora.epochs=3; repeatable.")


def register(app: typer.Typer) -> None:
    """Mount ``qwenlib config``."""
    app.add_typer(config, name="config")


@config.command("check")
def check(
    profile: str = typer.Option("smoke", "--profile", help="A shipped profile, or the path of a .yaml file."),
    task: str = typer.Option("", "--task", help="lora, finetune or predict; default: every training, else predict."),
    load_checkpoint: Optional[Path] = typer.Option(None, "--load_checkpoint", help="model_dir, or a .ckpt."),
    train_dataset: Optional[Path] = typer.Option(None, "--train_dataset", help="The MindRecord to train on."),
    torch_ckpt_dir: Optional[Path] = typer.Option(
        None, "--torch_ckpt_dir", help="Compare the model's sizes with this Hugging Face folder's config.json."
    ),
    rank_table: Optional[Path] = typer.Option(None, "--rank_table", help="Rank table for several Ascend ranks."),
    output_dir: Optional[Path] = typer.Option(None, "--output_dir", help="Run directory: its disk is measured."),
    setting: Optional[List[str]] = SETTING,
    as_json: bool = typer.Option(False, "--json", help="Print profile and findings as one JSON document."),
) -> None:
    """Tell every problem of a training at once, before anything is started (exit code 2 when there is one).

    What is given is checked, the rest is skipped and said to be.

    Example: qwenlib config check --profile lora_7b_910a --rank_table hccl.json --train_dataset alpaca.mindrecord
    """
    from dataclasses import asdict

    from qwenlib import preflight
    from qwenlib import profile as profiles
    from qwenlib.weights import read_folder

    prof = profiles.load(profile, setting or [], checked=False)
    inputs = preflight.Inputs(load_checkpoint, train_dataset, rank_table=rank_table, run_dir=output_dir)
    if torch_ckpt_dir is not None:
        inputs.sizes = read_folder(torch_ckpt_dir).sizes
    trainings = [task] if task not in ("", "predict") else [] if task else prof.tasks()
    reports = [preflight.check(prof, name, inputs) for name in trainings]
    if task == "predict" or not reports:
        reports = [preflight.check_predict(prof)]
    if as_json:
        checks = {report.task: [asdict(item) for item in report.findings] for report in reports}
        ok = not any(report.fails for report in reports)
        typer.echo(json.dumps({"profile": profiles.to_dict(prof), "ok": ok, "checks": checks}, indent=2))
    for report in reports:
        if not as_json:
            typer.echo(f"{report.profile}, {report.task}\n{report.text()}")
    for report in reports:
        report.stop()


@config.command("show")
def show(
    profile: str = typer.Option("smoke", "--profile", help="A shipped profile, or the path of a .yaml file."),
    setting: Optional[List[str]] = SETTING,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of YAML."),
) -> None:
    """Print the whole profile, defaults included, as it resolves.

    Example: qwenlib config show --profile lora_7b_910a -s lora.epochs=3
    """
    import yaml

    from qwenlib import profile as profiles

    tree = profiles.to_dict(profiles.load(profile, setting or []))
    text = json.dumps(tree, indent=2) if as_json else yaml.safe_dump(tree, sort_keys=False).rstrip()
    typer.echo(text)


@config.command("render")
def render(
    profile: str = typer.Option("smoke", "--profile", help="A shipped profile, or the path of a .yaml file."),
    task: str = typer.Option("", "--task", help="lora, finetune or predict; default: what the profile has."),
    train_dataset: Path = typer.Option(Path("/path/alpaca.mindrecord"), "--train_dataset", help="The MindRecord."),
    vocab_file: Path = typer.Option(Path("/path/vocab.json"), "--vocab_file", help="vocab.json of the model."),
    merges_file: Path = typer.Option(Path("/path/merges.txt"), "--merges_file", help="merges.txt of the model."),
    output_dir: Path = typer.Option(Path("./output"), "--output_dir", help="Where MindFormers puts checkpoints."),
    setting: Optional[List[str]] = SETTING,
) -> None:
    """Print the YAML that a task is run with.

    Example: qwenlib config render --profile lora_7b_910a --task lora > run_qwen1_5_7b_lora.yaml
    """
    import yaml

    from qwenlib import profile as profiles
    from qwenlib.engine import render as engine

    prof = profiles.load(profile, setting or [])
    chosen = task or (prof.tasks() or ["predict"])[0]
    files: Dict[str, Any] = {"vocab_file": vocab_file, "merges_file": merges_file, "output_dir": output_dir}
    if chosen == "predict":
        tree = engine.predict_config(prof, **files)
    else:
        tree = engine.train_config(prof, chosen, dataset_dir=train_dataset, **files)
    typer.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).rstrip())


@config.command("estimate")
def estimate(
    profile: str = typer.Option("lora_7b_910a", "--profile", help="A shipped profile, or the path of a .yaml file."),
    task: str = typer.Option("", "--task", help="lora or finetune; default: what the profile has."),
    train_dataset: Optional[Path] = typer.Option(None, "--train_dataset", help="Count the rows of this MindRecord."),
    rows: int = typer.Option(0, "--rows", help="Rows of the data set; 0: the MindRecord's, else alpaca's 52002."),
    real_share: float = typer.Option(
        0.0, "--real_share", help="Part of the tokens that is not padding, to 1; 0: the MindRecord's, else 1."
    ),
    mfu: float = typer.Option(0.0, "--mfu", help="Model FLOPs utilisation, 0 to 1; 0: what the guide's row implies."),
    cards: int = typer.Option(0, "--cards", help="Suggest plans for 1 to 64 cards; 0: as many as the profile has."),
    size: str = typer.Option("", "--size", help="Another Qwen1.5: 0.5B, 1.8B, 4B, 7B, 14B, 32B, 72B or 110B."),
    setting: Optional[List[str]] = SETTING,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document (bytes, tokens, hours)."),
) -> None:
    """Memory a card, steps, tokens, hours and disk of a training, and plans that fit; nothing is started.

    Example: qwenlib config estimate --profile finetune_7b_910a --cards 16 --real_share 0.05
    """
    from qwenlib import estimate as room
    from qwenlib import profile as profiles
    from qwenlib.estimate.report import text

    prof = profiles.load(profile, setting or [])
    if size:
        prof = room.with_size(prof, size)
    if not task and not prof.tasks():
        raise Refused(f"profile {prof.name} trains nothing; give --profile lora_7b_910a or finetune_7b_910a.")
    count, share = rows, real_share
    if train_dataset is not None:
        count, share = room.data_at_hand(train_dataset, rows, real_share)
    found = room.estimate(
        prof, task or prof.tasks()[0], rows=count or room.ALPACA_ROWS, real_share=share or 1.0, mfu=mfu, cards=cards
    )
    typer.echo(json.dumps(found, indent=2) if as_json else text(found))
