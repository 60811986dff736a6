"""What ``predict``, ``chat`` and ``eval`` share: options that name a model, and the settings of an answer."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional

import typer

from qwenlib.errors import Refused, WorkFailed

if TYPE_CHECKING:
    from qwenlib.infer.choose import Choice

RUN_DIR = typer.Option(None, "--run_dir", help="A workbook run: its base, LoRA or fine-tuned model, see --model.")
MODEL = typer.Option("", "--model", metavar="NAME", help="base, lora or finetune of --run_dir; default: the last.")
LOAD_CHECKPOINT = typer.Option(None, "--load_checkpoint", help="model_dir with rank_0/x.ckpt, or a .ckpt.")
TORCH_CKPT_DIR = typer.Option(
    None, "--torch_ckpt_dir", help="The Hugging Face folder: sizes, vocab.json and merges.txt are taken from it."
)
VOCAB_FILE = typer.Option(None, "--vocab_file", help="vocab.json of the model.")
MERGES_FILE = typer.Option(None, "--merges_file", help="merges.txt of the model.")
PROFILE = typer.Option("", "--profile", help="A shipped profile, or a .yaml file. Default: the run's, else smoke.")
LORA = typer.Option(False, "--lora", help="--load_checkpoint holds a LoRA adapter (shape: the profile's).")
RANK_TABLE = typer.Option(None, "--rank_table", help="Of the cards that share a network: -s predict.model_parallel=N.")
CHAT = typer.Option(
    None, "--chat/--raw", help="Wrap questions in ChatML, or continue them as they stand. Default: raw for base."
)
SYSTEM = typer.Option(None, "--system", help="System message; '' for none. Default: upstream's.")
LENGTH = typer.Option(None, "--max_new_tokens", "--predict_length", help="Longest answer in tokens.")
DO_SAMPLE = typer.Option(None, "--do_sample/--greedy", help="Draw each token, or take the likeliest.")
TEMPERATURE = typer.Option(None, "--temperature", help="Of drawing: below 1 sharper, above 1 more varied.")
TOP_K = typer.Option(None, "--top_k", help="Draw from the k likeliest tokens; 0: from all.")
TOP_P = typer.Option(None, "--top_p", help="Draw from the likeliest tokens that have this share together.")
PENALTY = typer.Option(None, "--repetition_penalty", help="Above 1: what was said already is less likely.")
SEED = typer.Option(None, "--seed", help="Of drawing: the same seed gives the same answer.")
SETTING = typer.Option(None, "-s", metavar="KEY=VALUE", help="Profile override; repeatable.")


def chosen(
    run_dir: Optional[Path],
    model: str,
    load_checkpoint: Optional[Path],
    torch_ckpt_dir: Optional[Path],
    vocab_file: Optional[Path],
    merges_file: Optional[Path],
    profile: str,
    lora: bool,
    settings: Optional[List[str]],
) -> Dict[str, Choice]:
    """The models that the options name: those of a run (the wanted one last), or the one of a path.

    Raises:
        Refused: neither or both of a run and a checkpoint are given, or what is given does not fit.
    """
    from qwenlib import profile as profiles
    from qwenlib.engine import work
    from qwenlib.infer import choose

    if (run_dir is None) == (load_checkpoint is None):
        raise Refused("give --run_dir (a workbook run) or --load_checkpoint (a checkpoint), one of the two.")
    if run_dir is not None:
        given = {"--torch_ckpt_dir": torch_ckpt_dir, "--vocab_file": vocab_file, "--merges_file": merges_file}
        wrong = [name for name, value in {**given, "--lora": lora or None}.items() if value is not None]
        if wrong:
            raise Refused(f"{', '.join(wrong)} cannot go with --run_dir: the run knows its own.")
        found = choose.of_run(run_dir, profile, settings or [])
        wanted = choose.pick(found, model)
        return {**{name: item for name, item in found.items() if name != wanted.name}, wanted.name: wanted}
    if model not in ("", "base", "tuned"):
        raise Refused("--model names a model of --run_dir; with --load_checkpoint give base or tuned, or leave it out.")
    prof, files = work.model_files(
        profiles.load(profile or "smoke", settings or []), torch_ckpt_dir, vocab_file, merges_file
    )
    path = Path(str(load_checkpoint))
    name = model or path.name
    task = "lora" if lora else ""
    if lora:
        prof.task("lora")
    return {name: choose.Choice(name, prof, path, files["vocab_file"], files["merges_file"], task, raw=model == "base")}


def wanted(found: Dict[str, Choice], chat: Optional[bool], rank_table: Optional[Path]) -> Choice:
    """The model that is meant, as ChatML or raw when the command says so, on the cards of ``rank_table``."""
    choice = replace(list(found.values())[-1], rank_table=rank_table)
    return choice if chat is None else replace(choice, raw=not chat)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[str]:
    """A temporary folder, which stays when what failed names a log in there."""
    folder = tempfile.mkdtemp(prefix=prefix)
    keep = False
    try:
        yield folder
    except WorkFailed as error:
        keep = folder in str(error)
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def answering(**given: Any) -> Dict[str, Any]:
    """The settings of an answer that the command line gives.

    Raises:
        Refused: one is out of its range.
    """
    from qwenlib.infer.settings import checked

    return checked(**given)


def system_message(given: Optional[str]) -> str:
    """The system message: what is given, else upstream's."""
    from qwenlib.infer import SYSTEM as usual

    return usual if given is None else given


def printable(text: str) -> str:
    """``text`` without control characters, which a terminal would obey; line breaks and tabs stay."""
    return "".join(
        character if character in "\n\t" or (character >= " " and not "\x7f" <= character <= "\x9f") else "\ufffd"
        for character in text
    )
