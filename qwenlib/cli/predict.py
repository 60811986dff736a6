"""``qwenlib predict``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from qwenlib.cli import model as models
from qwenlib.errors import Refused


def register(app: typer.Typer) -> None:
    """Mount ``qwenlib predict``."""
    app.command("predict")(predict)


def predict(
    predict_data: Optional[List[str]] = typer.Option(None, "--predict_data", help="A question; repeatable."),
    input_file: Optional[Path] = typer.Option(
        None, "--input_file", help="Questions: .txt, one a line, or .jsonl with prompt or messages (id, answer)."
    ),
    output_file: Optional[Path] = typer.Option(
        None, "--output_file", help="Answers, .jsonl or .csv; what is answered there already is not asked again."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Begin --output_file anew."),
    run_dir: Optional[Path] = models.RUN_DIR,
    model: str = models.MODEL,
    load_checkpoint: Optional[Path] = models.LOAD_CHECKPOINT,
    torch_ckpt_dir: Optional[Path] = models.TORCH_CKPT_DIR,
    vocab_file: Optional[Path] = models.VOCAB_FILE,
    merges_file: Optional[Path] = models.MERGES_FILE,
    profile: str = models.PROFILE,
    lora: bool = models.LORA,
    chat: Optional[bool] = models.CHAT,
    system: Optional[str] = models.SYSTEM,
    max_new_tokens: Optional[int] = models.LENGTH,
    do_sample: Optional[bool] = models.DO_SAMPLE,
    temperature: Optional[float] = models.TEMPERATURE,
    top_k: Optional[int] = models.TOP_K,
    top_p: Optional[float] = models.TOP_P,
    repetition_penalty: Optional[float] = models.PENALTY,
    seed: Optional[int] = models.SEED,
    setting: Optional[List[str]] = models.SETTING,
    rank_table: Optional[Path] = models.RANK_TABLE,
    dry_run: bool = typer.Option(False, "--dry-run", help="Print each rank's command and environment; start nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Answer questions, streaming, or a file of them; the model is loaded once, in a background process.

    Example: qwenlib predict --load_checkpoint model_dir --torch_ckpt_dir Qwen1.5-7B
    --predict_data 帮助我制定一份去上海的旅游攻略

    Example: qwenlib predict --run_dir runs/smoke --model lora --input_file prompts.txt --output_file answers.jsonl
    """
    if bool(predict_data) == (input_file is not None):
        raise Refused("give --predict_data (a question) or --input_file (a file of questions), one of the two.")
    if not all(question.strip() for question in predict_data or []):
        raise Refused("--predict_data is empty: give it a question.")
    if (input_file is None) != (output_file is None):
        raise Refused("--input_file and --output_file go together.")
    if overwrite and output_file is None:
        raise Refused("--overwrite is about --output_file.")
    settings = models.answering(
        max_new_tokens=max_new_tokens or None,  # 0: the profile's
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    found = models.chosen(
        run_dir, model, load_checkpoint, torch_ckpt_dir, vocab_file, merges_file, profile, lora, setting
    )
    choice = models.wanted(found, chat, rank_table)
    words = models.system_message(system)
    with tempfile.TemporaryDirectory(prefix="qwenlib-predict-") as folder:
        if dry_run:
            typer.echo(choice.plan(folder).describe())
        elif input_file is not None and output_file is not None:
            _batch(choice, input_file, output_file, folder, words, overwrite, settings, as_json)
        else:
            _questions(choice, predict_data or [], folder, words, settings, as_json)


def _questions(
    choice: Any, questions: List[str], folder: str, system: str, settings: Dict[str, Any], as_json: bool
) -> None:
    from qwenlib.infer import opened

    answers = []
    with choice.open(folder) as session:
        for question in questions:
            messages = opened(question, system)
            if as_json:
                answers.append({"question": question, "model": choice.name, **session.chat(messages, **settings)})
                continue
            typer.echo(f"> {models.printable(question)}")
            done = session.chat(messages, on_text=_print, **settings)
            typer.echo(f"\n[{figures(done)}]")
    if as_json:
        typer.echo(json.dumps(answers, indent=2, ensure_ascii=False))


def _batch(
    choice: Any,
    input_file: Path,
    output_file: Path,
    folder: str,
    system: str,
    overwrite: bool,
    settings: Dict[str, Any],
    as_json: bool,
) -> None:
    from qwenlib.infer import batch

    questions = batch.read_prompts(input_file, system)
    told = batch.run(choice, questions, output_file, folder=folder, overwrite=overwrite, **settings)
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    text = f"{told['answered']} answered, {told['already']} were already: {told['output_file']}"
    if told["answered"]:
        text += (
            f"\n{told['answer_tokens']} tokens in {told['seconds']:.1f} s, {told['tokens_per_second']:.1f} tokens/s"
            f", first token after {told['first_token_seconds'] or 0:.3f} s (median)"
        )
    if told["expected"]:
        text += f"\n{told['right']} of {told['expected']} are the expected answer to the letter"
    typer.echo(text)


def figures(done: Dict[str, Any]) -> str:
    """An answer's counts and times, with what was left out of its prompt."""
    from qwenlib.infer.prompt import left_out

    parts = [f"prompt {done['prompt_tokens']} tokens", f"answer {done['answer_tokens']}"]
    if done["first_token_seconds"] is not None:
        parts.append(f"first after {done['first_token_seconds']:.2f} s")
    if done["seconds"]:
        parts.append(f"{done['answer_tokens'] / done['seconds']:.1f} tokens/s")
    parts.append({"stop": "ended by itself", "length": "cut at its longest", "asked": "stopped"}[done["finish"]])
    if done["dropped_turns"] or done["cut_tokens"]:
        parts.append(left_out(done["dropped_turns"], done["cut_tokens"]))
    return ", ".join(parts)


def _print(piece: str) -> None:
    sys.stdout.write(models.printable(piece))
    sys.stdout.flush()
