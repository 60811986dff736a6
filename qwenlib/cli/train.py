"""``qwenlib train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from qwenlib.errors import Refused
from qwenlib.launch import Plan

TRAIN_DATASET = ("--train_dataset", "--train_data")


def register(app: typer.Typer) -> None:
    """Mount ``qwenlib train``."""
    app.command("train")(train)


def train(
    profile: str = typer.Option("smoke", "--profile", help="A shipped profile, or the path of a .yaml file."),
    load_checkpoint: Path = typer.Option(
        ..., "--load_checkpoint", help="model_dir with rank_0/x.ckpt, a .ckpt, or rank slices."
    ),
    train_dataset: Path = typer.Option(..., *TRAIN_DATASET, help="The MindRecord to train on."),
    torch_ckpt_dir: Optional[Path] = typer.Option(
        None, "--torch_ckpt_dir", help="The Hugging Face folder: sizes, vocab.json and merges.txt are taken from it."
    ),
    vocab_file: Optional[Path] = typer.Option(None, "--vocab_file", help="vocab.json of the model."),
    merges_file: Optional[Path] = typer.Option(None, "--merges_file", help="merges.txt of the model."),
    output_dir: Path = typer.Option(..., "--output_dir", help="Run directory: logs, metrics, plot, checkpoints."),
    task: str = typer.Option("", "--task", help="lora or finetune; needed when the profile has both."),
    rank_table: Optional[Path] = typer.Option(None, "--rank_table", help="Rank table for several Ascend ranks."),
    setting: Optional[List[str]] = typer.Option(None, "-s", metavar="KEY=VALUE", help="Profile override; repeatable."),
    port: int = typer.Option(0, "--port", help="Port of MindSpore's scheduler on the CPU; 0: a free one."),
    resume_training: str = typer.Option(
        "never", "--resume_training", metavar="auto|never|PATH", help="Go on from the newest whole checkpoint."
    ),
    detach: bool = typer.Option(False, "--detach", help="Return once the ranks run; they outlive this terminal."),
    nodes: str = typer.Option("", "--nodes", help="Addresses of several CPU hosts, node 0 first: 10.0.0.1,10.0.0.2"),
    node_rank: Optional[int] = typer.Option(None, "--node_rank", help="This host's number; else by its address."),
    node_port: int = typer.Option(Plan.node_port, "--node_port", help="Port of node 0 at which the nodes meet."),
    ready_timeout: Optional[float] = typer.Option(None, "--ready_timeout", help="Seconds until all ranks have met."),
    hang_factor: Optional[float] = typer.Option(None, "--hang_factor", help="Usual step times without a step."),
    end_on_hang: bool = typer.Option(False, "--end_on_hang", help="A hang fails the run instead of being reported."),
    max_restarts: int = typer.Option(0, "--max-restarts", help="Restarts from the last checkpoint after a failure."),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Also write TensorBoard event files."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print each rank's command and environment; start nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Fine-tune in background ranks and wait; the first rank that fails ends all, and its error is told.

    With --detach it does not wait: see qwenlib status, logs and stop. On several hosts, give the same command to each.

    Example: qwenlib train --profile smoke --task lora --load_checkpoint model_dir --train_dataset train.mindrecord
    --torch_ckpt_dir Qwen1.5-7B --output_dir runs/mine
    """
    from qwenlib import profile as profiles
    from qwenlib.engine import work

    prof = profiles.load(profile, setting or [])
    chosen = _task(prof, task)
    prof, files = work.model_files(prof, torch_ckpt_dir, vocab_file, merges_file)
    job: Dict[str, Any] = {
        "load_checkpoint": load_checkpoint,
        "train_dataset": train_dataset,
        **files,
        "run_dir": output_dir,
        "rank_table": rank_table,
        "port": port,
        "resume": resume_training,
        "nodes": [name.strip() for name in nodes.split(",") if name.strip()],
        "node_rank": node_rank,
        "node_port": node_port,
        "end_on_hang": end_on_hang,
        "max_restarts": max_restarts,
    }
    optional = {"ready_timeout": ready_timeout, "hang_factor": hang_factor}
    job.update({name: value for name, value in optional.items() if value is not None})
    if tensorboard and detach:
        raise Refused("--tensorboard is written by who watches; with --detach, nobody does: leave out one of them.")
    if dry_run:
        typer.echo(work.training_plan(prof, chosen, **job, dry_run=True).describe())
        return
    if detach:
        run, _ = work.begin(prof, chosen, **job, detach=True)
        if as_json:
            typer.echo(json.dumps({"run_dir": str(run.run_dir), "state": run.poll()["state"]}, indent=2))
        else:
            typer.echo(run.farewell())
        return
    found = work.finetune(prof, chosen, **job, tensorboard=tensorboard)
    frame = found.pop("metrics")
    found["last_loss"] = float(frame["loss"].iloc[-1]) if len(frame) else None
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
    else:
        typer.echo(f"{chosen}: {found['steps']} steps, last loss {found['last_loss']:.3f}; {found['checkpoint']}")


def _task(prof: Any, task: str) -> str:
    have = prof.tasks()
    if task:
        prof.task(task)
        return task
    if len(have) != 1:
        raise Refused(f"profile {prof.name} has {', '.join(have) or 'no training task'}; name one with --task.")
    return str(have[0])
