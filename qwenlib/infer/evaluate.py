"""What was learned, in figures: perplexity on conversations that training did not see, and answers to the letter."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import sha256, write_json
from qwenlib.infer.choose import Choice
from qwenlib.infer.compare import exact_match

EVAL = "eval.json"


def evaluate(
    choices: Mapping[str, Choice],
    *,
    folder: Union[str, Path],
    held_out: Optional[Union[str, Path]] = None,
    table: Any = None,
    output_file: Optional[Union[str, Path]] = None,
) -> Dict[str, Any]:
    """Measure the models of a run and write ``eval.json``.

    All of them are scored in one background process that holds one network. The conversations are rendered as ChatML
    for every model, the base one included, and only the answers count (their tokens and the ``<|im_end|>`` behind).

    Args:
        choices: base first (:func:`qwenlib.infer.choose.of_run`).
        folder: where the process works, in ``eval/``.
        held_out: conversations that training did not see (records in any format that 03_data reads); None: none.
        table: answers of :func:`qwenlib.infer.compare`, to be counted and kept; None: none.
        output_file: default: ``folder/eval.json``.

    Returns:
        What the file holds: ``{"models": {name: {"checkpoint", "held_out": {"loss", "perplexity", "tokens",
        "token_accuracy"}, "exact": {"right", "of", "share"}}}, "held_out": {"file", "sha256", "conversations",
        "rows", "truncated"}, "answers": [a row of the table each], "created"}``. Loss is in nats a token.

    Raises:
        Refused: there is nothing to measure with, no base model, or the conversations cannot be read.
        WorkFailed: the scoring process failed.
    """
    if held_out is None and table is None:
        raise Refused("there is nothing to measure with: give held-out conversations, or prompts, or both.")
    folder = Path(folder).absolute()
    models: Dict[str, Dict[str, Any]] = {
        name: {"checkpoint": str(choice.checkpoint)} for name, choice in choices.items()
    }
    found: Dict[str, Any] = {"models": models, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    if held_out is not None:
        scores, found["held_out"] = score(choices, held_out, folder / "eval")
        for name, figures in scores.items():
            models[name]["held_out"] = {**figures, "perplexity": perplexity(figures["loss"])}
    if table is not None:
        found["answers"] = table.to_dict("records")
        for name, counted in exact_match(table).items():
            models.setdefault(name, {})["exact"] = counted
    write_json(output_file or folder / EVAL, found)
    return found


def score(
    choices: Mapping[str, Choice], held_out: Union[str, Path], folder: Path
) -> Tuple[Dict[str, Dict[str, float]], Dict[str, Any]]:
    """``({model: {"loss", "tokens", "token_accuracy"}}, what they were measured on)``.

    Raises:
        Refused: there is no base model among them, or the conversations cannot be read.
        WorkFailed: the process failed.
    """
    from qwenlib import data
    from qwenlib.engine import single

    if "base" not in choices:
        raise Refused(f"scoring begins with the base model; there are only: {', '.join(choices)}.")
    base = choices["base"]
    adapted = [choice for choice in choices.values() if choice.adapter_task]
    folder.mkdir(parents=True, exist_ok=True)
    messages, mindrecord = folder / "held_out.jsonl", folder / "held_out.mindrecord"
    data.convert(held_out, messages)
    length = base.profile.data.seq_length
    built = data.build(
        messages, mindrecord, base.vocab_file, base.merges_file, length, labels="assistant", overwrite=True
    )
    found = single.score(
        adapted[0].profile if adapted else base.profile,
        load_checkpoint=base.checkpoint,
        checkpoints={name: choice.checkpoint for name, choice in choices.items() if name != "base"},
        mindrecord=mindrecord,
        vocab_file=base.vocab_file,
        merges_file=base.merges_file,
        run_dir=folder,
        adapter_task=adapted[0].adapter_task if adapted else "",
        plain=[name for name, choice in choices.items() if not choice.adapter_task],
    )
    measured = {
        "file": str(held_out),
        "sha256": sha256(held_out),
        "conversations": built["records"],
        "rows": built["rows"],
        "truncated": built["truncated"],
    }
    return found, measured


def perplexity(loss: float) -> float:
    """exp(loss): among how many equally likely tokens the model hesitates; infinite when that is no number any more."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def evaluation_table(found: Mapping[str, Any]) -> Any:
    """What :func:`evaluate` found as a DataFrame, a model a row; columns that were not measured are left out.

    Rounded for people; ``found`` keeps every digit.
    """
    import pandas

    rows: List[Dict[str, Any]] = []
    for name, figures in found["models"].items():
        row: Dict[str, Any] = {"model": name}
        if "held_out" in figures:
            measured = figures["held_out"]
            row["held-out loss"], row["perplexity"] = measured["loss"], measured["perplexity"]
            row["token accuracy"] = measured["token_accuracy"]
        if "exact" in figures:
            row["exact answers"] = f"{figures['exact']['right']} of {figures['exact']['of']}"
        rows.append(row)
    places = {"held-out loss": 4, "perplexity": 2, "token accuracy": 4}
    return pandas.DataFrame(rows).set_index("model").round(places)


def held_out_figures(found: Mapping[str, Any]) -> Dict[str, Dict[str, float]]:
    """``{model: figures}`` of the held-out part; {} when there was none."""
    return {name: figures["held_out"] for name, figures in found["models"].items() if "held_out" in figures}
