"""``qwenlib predict``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

import typer


def register(app: typer.Typer) -> None:
    """Mount ``qwenlib predict``."""
    app.command("predict")(predict)


def predict(
    predict_data: List[str] = typer.Option(..., "--predict_data", help="A question; repeatable."),
    load_checkpoint: Path = typer.Option(..., "--load_checkpoint", help="model_dir with rank_0/x.ckpt, or a .ckpt."),
    torch_ckpt_dir: Optional[Path] = typer.Option(
        None, "--torch_ckpt_dir", help="The Hugging Face folder: sizes, vocab.json and merges.txt are taken from it."
    ),
    vocab_file: Optional[Path] = typer.Option(None, "--vocab_file", help="vocab.json of the model."),
    merges_file: Optional[Path] = typer.Option(None, "--merges_file", help="merges.txt of the model."),
    profile: str = typer.Option("smoke", "--profile", help="A shipped profile, or the path of a .yaml file."),
    lora: bool = typer.Option(False, "--lora", help="The checkpoint holds a LoRA adapter (shape: the profile's)."),
    chat: bool = typer.Option(True, "--chat/--raw", help="Wrap the question in ChatML, or continue it as it stands."),
    max_new_tokens: int = typer.Option(0, "--predict_length", help="Longest answer in tokens; 0: the profile's."),
    setting: Optional[List[str]] = typer.Option(None, "-s", metavar="KEY=VALUE", help="Profile override; repeatable."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Answer questions with a checkpoint, streaming; the model is loaded once, in a background process.

    Example: qwenlib predict --load_checkpoint model_dir --torch_ckpt_dir Qwen1.5-7B
    --predict_data 帮助我制定一份去上海的旅游攻略
    """
    from qwenlib import infer
    from qwenlib import profile as profiles
    from qwenlib.engine import work

    prof = profiles.load(profile, profiles.overrides("predict", setting or [], max_new_tokens=max_new_tokens))
    prof, files = work.model_files(prof, torch_ckpt_dir, vocab_file, merges_file)
    answers = []
    with (
        tempfile.TemporaryDirectory(prefix="qwenlib-predict-") as folder,
        infer.Session(
            prof,
            load_checkpoint=load_checkpoint,
            vocab_file=files["vocab_file"],
            merges_file=files["merges_file"],
            run_dir=folder,
            adapter_task="lora" if lora else "",
            name=str(load_checkpoint),
        ) as session,
    ):
        for question in predict_data:
            if as_json:
                answers.append({"question": question, **session.ask(question, chat=chat)})
                continue
            typer.echo(f"> {question}")
            done = session.ask(question, chat=chat, on_text=_print)
            typer.echo(f"\n[{done['answer_tokens']} tokens, {done['seconds']:.1f} s, ended by {done['finish']}]")
    if as_json:
        typer.echo(json.dumps(answers, indent=2, ensure_ascii=False))


def _print(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
