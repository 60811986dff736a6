"""``qwenlib weights convert|slice|merge|merge-lora|adapter|export|check|list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from qwenlib.errors import Refused

weights = typer.Typer(help="Checkpoints: convert, slice, merge, export, compare.", no_args_is_help=True)

_JSON = typer.Option(False, "--json", help="Print one JSON document on stdout.")
_OUT = typer.Option(
    ..., "--mindspore_ckpt_path", help="A model_dir (then rank_0/qwen1_5.ckpt is written in it) or a .ckpt file."
)
_CLAMP = typer.Option(False, "--clamp", help="Write 65504 for values too large for float16, instead of refusing.")
_PROFILE = typer.Option("", "--profile", help="A shipped profile, or the path of a .yaml file.")
_TASK = typer.Option("", "--task", help="lora or finetune: whose parallel plan; needed when the profile has both.")
_SETTING = typer.Option(None, "-s", metavar="KEY=VALUE", help="Profile override; repeatable.")
_OPTIMIZER = typer.Option(
    None, "--optimizer_parallel/--no-optimizer_parallel", help="Default: as the profile trains (on, but for the CPU)."
)
_STRATEGY = typer.Option(None, "--strategy", help="A strategy file of MindSpore; it then rules instead of the profile.")
_STEP = typer.Option(None, "--step", help="Which checkpoint of a run, as list shows; empty: the latest of all ranks.")
_HF = typer.Option(None, "--torch_ckpt_dir", help="The original Hugging Face folder: config.json, tokenizer files.")


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.add_typer(weights, name="weights")


def _tell(as_json: bool, value: Any, text: str) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str) if as_json else text)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"


def _warn(found: Dict[str, Any]) -> None:
    """Say on stderr what was clamped, and what was never finite."""
    told = {"clamped": "values were clamped to 65504", "nonfinite": "values are NaN or Inf in the source"}
    for key, what in told.items():
        counts = found.get(key) or {}
        if counts:
            names = ", ".join(f"{name}: {number}" for name, number in list(counts.items())[:6])
            typer.echo(f"note: {sum(counts.values()):,} {what} ({names})", err=True)


@weights.command("convert")
def convert(
    torch_ckpt_dir: Path = typer.Option(..., "--torch_ckpt_dir", help="A Qwen1.5 folder as Hugging Face ships it."),
    mindspore_ckpt_path: Path = _OUT,
    dtype: str = typer.Option("float16", "--dtype", help="float16, as upstream, or float32."),
    clamp: bool = _CLAMP,
    as_json: bool = _JSON,
) -> None:
    """Turn a Hugging Face folder (safetensors or .bin) into the checkpoint that MindFormers loads.

    Example: qwenlib weights convert --torch_ckpt_dir Qwen1.5-7B --mindspore_ckpt_path model_dir
    """
    from qwenlib.weights import convert as run

    done = run(torch_ckpt_dir, mindspore_ckpt_path, dtype, clamp)
    _warn(done)
    _tell(
        as_json,
        done,
        f"{done['tensors']} tensors, {_size(done['bytes'])} as {done['dtype']} in {done['seconds']:.1f} s: "
        f"{done['checkpoint']}",
    )


@weights.command("slice")
def slice_(
    source: Path = typer.Option(..., "--source", help="A Hugging Face folder, a model_dir or a .ckpt file."),
    output_dir: Path = typer.Option(..., "--output_dir", help="Folder that gets rank_0, rank_1 and so on."),
    profile: str = _PROFILE,
    task: str = _TASK,
    ranks: str = typer.Option("", "--ranks", help="Only these ranks, e.g. 0-7 on the first server; empty: all."),
    dtype: str = typer.Option("", "--dtype", help="float16 or float32; empty: the checkpoint's, float16 from HF."),
    optimizer_parallel: Optional[bool] = _OPTIMIZER,
    strategy: Optional[Path] = _STRATEGY,
    setting: Optional[List[str]] = _SETTING,
    clamp: bool = _CLAMP,
    as_json: bool = _JSON,
) -> None:
    """Cut a model into rank slices, so that training starts without every rank loading the whole.

    Example: qwenlib weights slice --source Qwen1.5-7B --output_dir sliced --profile finetune_7b_910a --ranks 0-7
    """
    from qwenlib.profile import Parallel
    from qwenlib.weights import slice_checkpoint, slice_for_task

    if not profile and strategy is None:
        raise Refused("how shall it be cut? Give --profile (with its parallel plan) or --strategy.")
    options: Dict[str, Any] = {"ranks": ranks, "dtype": dtype, "clamp": clamp, "strategy": strategy}
    if profile:
        prof = _profile(profile, setting)
        name = _task_name(prof, task)
        done = slice_for_task(prof, name, source, output_dir, optimizer_parallel=optimizer_parallel, **options)
    else:
        done = slice_checkpoint(source, output_dir, Parallel(), optimizer_parallel=True, **options)
    _warn(done)
    text = f"{len(done['ranks'])} of {done['of']} ranks, {_size(done['bytes'])} in {done['seconds']:.1f} s"
    _tell(as_json, done, f"{text}: {output_dir}. Train with --load_checkpoint {output_dir}: each rank loads its slice.")


@weights.command("merge")
def merge(
    rank_dir: Path = typer.Option(..., "--rank_dir", help="Folder with rank_0, rank_1 and so on."),
    mindspore_ckpt_path: Path = _OUT,
    profile: str = _PROFILE,
    task: str = _TASK,
    torch_ckpt_dir: Optional[Path] = _HF,
    optimizer_parallel: Optional[bool] = _OPTIMIZER,
    strategy: Optional[Path] = _STRATEGY,
    setting: Optional[List[str]] = _SETTING,
    all_tensors: bool = typer.Option(False, "--all", help="Keep optimizer states and counters, too."),
    step: Optional[int] = _STEP,
    as_json: bool = _JSON,
) -> None:
    """Put the rank checkpoints of a finished run together (the latest step that all ranks have, or --step).

    Example: qwenlib weights merge --rank_dir run/output/checkpoint_network --mindspore_ckpt_path full.ckpt \
    --profile finetune_7b_910a
    """
    from qwenlib.weights import merge as run

    options: Dict[str, Any] = {"strategy": strategy, "optimizer_parallel": optimizer_parallel is not False}
    if profile:
        prof = _profile(profile, setting)
        if optimizer_parallel is None:
            options["optimizer_parallel"] = prof.device_target != "CPU"
        chosen = _task(prof, task)
        options.update(parallel=chosen.parallel, adapter=chosen.adapter, model=_model(prof, torch_ckpt_dir))
    elif torch_ckpt_dir is not None:
        options.update(model=_model(None, torch_ckpt_dir))
    done = run(rank_dir, mindspore_ckpt_path, weights_only=not all_tensors, step=step, **options)
    text = f"{done['tensors']} tensors, {_size(done['bytes'])} in {done['seconds']:.1f} s: {done['checkpoint']}"
    _tell(as_json, done, text)


@weights.command("merge-lora")
def merge_lora(
    adapter: Path = typer.Option(..., "--adapter", help="An adapter, or a LoRA run's checkpoint (which holds both)."),
    mindspore_ckpt_path: Optional[Path] = typer.Option(None, "--mindspore_ckpt_path", help="Where to write."),
    base: Optional[Path] = typer.Option(None, "--base", help="The base: Hugging Face folder, model_dir or .ckpt."),
    lora_alpha: Optional[float] = typer.Option(None, "--lora_alpha", help="The adapter's; default: the profile's."),
    profile: str = _PROFILE,
    dtype: str = typer.Option("", "--dtype", help="float16 or float32; empty: the base's."),
    unmerged: bool = typer.Option(False, "--unmerged", help="Keep the matrices apart, as a LoRA network loads them."),
    list_: bool = typer.Option(False, "--list", help="Only list the checkpoints of the run directory --adapter."),
    step: Optional[int] = _STEP,
    setting: Optional[List[str]] = _SETTING,
    clamp: bool = _CLAMP,
    as_json: bool = _JSON,
) -> None:
    """Add a LoRA adapter into its base; --list shows which checkpoints a run has.

    Example: qwenlib weights merge-lora --adapter run/04_lora/output/checkpoint_network --base model_dir \
    --mindspore_ckpt_path merged --profile lora_7b_910a
    """
    from qwenlib import weights as room

    if list_:
        _list(adapter, as_json)
        return
    if mindspore_ckpt_path is None:
        raise Refused("--mindspore_ckpt_path is missing: where shall the merged checkpoint go?")
    if unmerged:
        if base is None:
            raise Refused("--unmerged puts an adapter and its base together: give --base.")
        opened = _run(adapter, profile, "lora", setting, base, step)
        joined = room.join_adapter(opened, mindspore_ckpt_path, base=base)
        _tell(as_json, joined, f"{joined['tensors']} tensors, unmerged: {joined['checkpoint']}")
        return
    alpha = lora_alpha if lora_alpha is not None else _alpha(profile, setting)
    opened = _run(adapter, profile, "lora", setting, base, step)
    done = room.merge_lora(opened, mindspore_ckpt_path, base=base, lora_alpha=alpha, dtype=dtype, clamp=clamp)
    _warn(done)
    text = f"{done['merged']} layers merged (rank {done['lora_rank']}, alpha {done['lora_alpha']:g})"
    if done["replaced"]:
        text += f", taken from the adapter's file: {', '.join(done['replaced'][:6])}"
    _tell(as_json, done, f"{text}: {done['checkpoint']}")


@weights.command("adapter")
def adapter(
    checkpoint: Path = typer.Option(..., "--checkpoint", help="A LoRA run's checkpoint."),
    adapter_path: Path = typer.Option(..., "--adapter_path", help="The .ckpt file to write."),
    base: Optional[Path] = typer.Option(None, "--base", help="The base; what else was trained is kept, too."),
    lora_alpha: Optional[float] = typer.Option(None, "--lora_alpha", help="Noted beside it; default: the profile's."),
    profile: str = _PROFILE,
    step: Optional[int] = _STEP,
    setting: Optional[List[str]] = _SETTING,
    as_json: bool = _JSON,
) -> None:
    """Save only what a LoRA run trained: some hundred MB instead of base and adapter.

    Example: qwenlib weights adapter --checkpoint run/04_lora/output/checkpoint_network --base model_dir \
    --adapter_path adapter.ckpt --profile lora_7b_910a
    """
    from qwenlib.weights import save_adapter

    alpha = lora_alpha if lora_alpha is not None else _alpha(profile, setting)
    opened = _run(checkpoint, profile, "lora", setting, base, step)
    done = save_adapter(opened, adapter_path, base=base, lora_alpha=alpha)
    if done["left_out"]:
        typer.echo("note: without --base nothing tells whether lm_head.weight was trained; it is left out.", err=True)
    also = f", with {', '.join(done['also'][:6])}" if done["also"] else ""
    _tell(as_json, done, f"{done['tensors']} tensors, {_size(done['bytes'])}{also}: {done['checkpoint']}")


@weights.command("export")
def export(
    source: Path = typer.Option(..., "--source", help="A .ckpt file, a model_dir, or a folder of rank slices."),
    output_dir: Path = typer.Option(..., "--output_dir", help="The Hugging Face folder to write."),
    torch_ckpt_dir: Optional[Path] = _HF,
    profile: str = _PROFILE,
    task: str = _TASK,
    dtype: str = typer.Option("", "--dtype", help="float16, float32 or bfloat16; empty: the checkpoint's."),
    max_shard_size: str = typer.Option("5GB", "--max_shard_size", help="Largest file."),
    step: Optional[int] = _STEP,
    setting: Optional[List[str]] = _SETTING,
    clamp: bool = _CLAMP,
    as_json: bool = _JSON,
) -> None:
    """Write a folder that transformers loads: sharded safetensors, index, config.json.

    Rank slices of MindFormers itself need --profile and --task; those of qwenlib weights slice know how they were cut.

    Example: qwenlib weights export --source merged --output_dir Qwen1.5-7B-mine --torch_ckpt_dir Qwen1.5-7B
    """
    from qwenlib.weights import export as run

    model = _model(_profile(profile, setting), torch_ckpt_dir) if profile else None
    done = run(
        _run(source, profile, task, setting, torch_ckpt_dir, step),
        output_dir,
        torch_ckpt_dir=torch_ckpt_dir,
        model=model,
        dtype=dtype,
        max_shard_size=max_shard_size,
        clamp=clamp,
    )
    _warn(done)
    text = f"{done['tensors']} tensors in {len(done['files'])} files, {_size(done['bytes'])} as {done['dtype']}"
    _tell(as_json, done, f"{text} in {done['seconds']:.1f} s: {output_dir}")


@weights.command("check")
def check(
    first: Path = typer.Argument(..., help="A Hugging Face folder, .ckpt file, model_dir or folder of rank slices."),
    second: Path = typer.Argument(..., help="Another one."),
    tolerance: float = typer.Option(0.0, "--tolerance", help="Largest absolute difference that counts as equal."),
    every: bool = typer.Option(False, "--all", help="List every tensor, not only those that differ."),
    profile: str = _PROFILE,
    task: str = _TASK,
    torch_ckpt_dir: Optional[Path] = _HF,
    setting: Optional[List[str]] = _SETTING,
    step: Optional[int] = _STEP,
    as_json: bool = _JSON,
) -> None:
    """Compare two models tensor by tensor; exit code 1 when they differ.

    A tensor and its cast to another number type are equal. Rank slices of MindFormers itself need --profile and --task.

    Example: qwenlib weights check Qwen1.5-7B model_dir
    """
    from qwenlib.weights import check as run
    from qwenlib.weights.compare import table

    sides = [_run(side, profile, task, setting, torch_ckpt_dir, step) for side in (first, second)]
    found = run(sides[0], sides[1], tolerance)
    _tell(as_json, found, table(found, every))
    if not found["equal"]:
        raise typer.Exit(1)


@weights.command("list")
def list_checkpoints(
    run_dir: Path = typer.Argument(..., help="A run directory."),
    as_json: bool = _JSON,
) -> None:
    """List the checkpoints of a run with step and loss.

    Example: qwenlib weights list runs/mine/04_lora
    """
    _list(run_dir, as_json)


def _list(run_dir: Path, as_json: bool) -> None:
    from qwenlib.weights import list_checkpoints as run
    from qwenlib.weights.runs import table

    found = run(run_dir)
    _tell(as_json, found, table(found))


def _profile(name: str, settings: Optional[List[str]]) -> Any:
    from qwenlib import profile as profiles

    return profiles.load(name, settings or [])


def _task(prof: Any, task: str) -> Any:
    return prof.task(_task_name(prof, task))


def _task_name(prof: Any, task: str) -> str:
    have = prof.tasks()
    if not task and len(have) != 1:
        raise Refused(f"profile {prof.name} has {', '.join(have) or 'no training task'}; name one with --task.")
    return str(task or have[0])


def _run(
    path: Path,
    profile: str,
    task: str,
    settings: Optional[List[str]],
    sizes: Optional[Path],
    step: Optional[int] = None,
) -> Any:
    """``path`` as a source; when it holds the ranks of a run and nothing says how they were cut, the ranks put together
    by the profile's plan. ``sizes``: a Hugging Face folder that knows the model's; ``step``: which checkpoint."""
    from qwenlib.weights.slicing import open_ranks
    from qwenlib.weights.source import SLICE_META, open_source, rank_folders

    if not profile or len(rank_folders(path)) < 2 or (path / SLICE_META).is_file():
        return open_source(path, step=step)
    prof = _profile(profile, settings)
    chosen = _task(prof, task)
    model = _model(prof, sizes if sizes is not None and (sizes / "config.json").is_file() else None)
    return open_ranks(path, chosen.parallel, model, chosen.adapter, prof.device_target != "CPU", step=step)


def _alpha(profile: str, settings: Optional[List[str]]) -> Optional[float]:
    if not profile:
        return None
    found = _profile(profile, settings).task("lora").adapter
    return float(found.lora_alpha) if found else None


def _model(prof: Any, torch_ckpt_dir: Optional[Path]) -> Any:
    from qwenlib.profile import Model
    from qwenlib.weights import read_folder

    if torch_ckpt_dir is not None:
        return Model(**read_folder(torch_ckpt_dir).sizes)
    return prof.model
