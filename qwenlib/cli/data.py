"""``qwenlib data convert|build|preview``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional

import typer

data = typer.Typer(help="From alpaca records to MindRecord.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.add_typer(data, name="data")


def _tell(as_json: bool, value: Dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


@data.command("convert")
def convert(
    data_path: Path = typer.Option(..., "--data_path", help="Alpaca file: a JSON array or JSON Lines."),
    output_path: Path = typer.Option(..., "--output_path", help="Messages file to write (replaced when it exists)."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Turn alpaca records into messages, one JSON object a line.

    Example: qwenlib data convert --data_path alpaca_data.json --output_path messages.jsonl
    """
    from qwenlib.data.convert import convert as run

    counts = run(data_path, output_path)
    notes = [
        f"{counts[key]:,} {text}"
        for key, text in (
            ("empty_answers", "empty answers"),
            ("duplicates", "records like an earlier one"),
            ("special_tokens", "control tokens spelled in texts (build keeps them plain text)"),
        )
        if counts[key]
    ]
    text = f"{counts['records']:,} records, {counts['with_input']:,} of them with input: {output_path}"
    _tell(as_json, counts, "\n".join([text, *(f"note: {note}" for note in notes)]))


@data.command("build")
def build(
    input_glob: str = typer.Option(..., "--input_glob", help="Messages files: a path, or a pattern in quotes."),
    output_file: Path = typer.Option(..., "--output_file", help="File to write, ending in .mindrecord."),
    vocab_file: Path = typer.Option(..., "--vocab_file", help="vocab.json of the model."),
    merges_file: Path = typer.Option(..., "--merges_file", help="merges.txt of the model."),
    seq_length: int = typer.Option(2048, "--seq_length", help="Tokens the network sees; rows are one longer."),
    labels: str = typer.Option(
        "all", "--labels", help="all: learn every token but padding, as upstream; assistant: learn the answers only."
    ),
    file_partition: int = typer.Option(
        1, "--file_partition", help="Number of files. MindFormers reads one of them only: leave it at 1 for training."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing output, when the new one is whole."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Tokenize messages and write the MindRecord that training reads.

    A longer conversation loses its end and is counted. With --labels assistant the tokens of each answer and the
    <|im_end|> behind it are learned.

    Example: qwenlib data build --input_glob messages.jsonl --vocab_file qwen/vocab.json --merges_file qwen/merges.txt
    --seq_length 2048 --output_file alpaca.mindrecord
    """
    from qwenlib.data.build import build as run

    meta = run(
        input_glob,
        output_file,
        vocab_file,
        merges_file,
        seq_length,
        labels=labels,
        overwrite=overwrite,
        file_partition=file_partition,
    )
    text = (
        f"{meta['records']:,} rows of {seq_length + 1} tokens: {output_file}\n"
        f"{100 * meta['real_share']:.1f} % of the places hold a real token, {100 * meta['label_share']:.1f} % of those "
        f"are learned; {meta['truncated']:,} conversations were cut"
    )
    if meta["without_labels"]:
        text += f"\nnote: in {meta['without_labels']:,} rows nothing is learned"
    if meta["special_tokens_in_text"]:
        text += f"\nnote: {meta['special_tokens_in_text']:,} control tokens spelled in texts were kept as plain text"
    _tell(as_json, meta, text)


@data.command("preview")
def preview(
    mindrecord: Path = typer.Option(..., "--mindrecord", help="A built .mindrecord file."),
    vocab_file: Path = typer.Option(..., "--vocab_file", help="vocab.json of the model."),
    merges_file: Path = typer.Option(..., "--merges_file", help="merges.txt of the model."),
    row: int = typer.Option(0, "--row", help="Which row, counted from 0."),
    tokens: bool = typer.Option(False, "--tokens", help="List the tokens with their ids and targets, too."),
    messages: str = typer.Option(
        "", "--messages", help="Messages files, for --histogram (a row tells its length cut)."
    ),
    histogram: Optional[Path] = typer.Option(None, "--histogram", help="Write the histogram of lengths (.png, .svg)."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Show a row as the model sees it, learned text in green, and draw how long the conversations are.

    Example: qwenlib data preview --mindrecord alpaca.mindrecord --vocab_file qwen/vocab.json
    --merges_file qwen/merges.txt --row 5 --tokens
    """
    from qwenlib.data import preview as show
    from qwenlib.data.mindrecord import row_at
    from qwenlib.data.tokenizer import load_tokenizer
    from qwenlib.errors import Refused

    if histogram is not None and histogram.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise Refused(f"--histogram must end in .png, .svg or .pdf, found {histogram.name!r}.")
    if (histogram is None) != (not messages):
        raise Refused(
            "--histogram and --messages go together: the lengths are counted in the messages, before any cut."
        )
    tokenizer = load_tokenizer(vocab_file, merges_file)
    found = row_at(mindrecord, row)
    show.check_vocabulary(found, tokenizer, mindrecord)
    if histogram is not None:
        _draw(histogram, messages, vocab_file, merges_file, len(found["input_ids"]) - 1)
    listed = show.table(found, tokenizer)
    text = show.to_ansi(found, tokenizer, colour=_colour())
    if tokens:
        text += "\n\nposition      id  target  token\n" + "\n".join(
            f"{item['position']:8d}  {item['id']:6d}  {item['target']:6d}  {item['token']}" for item in listed
        )
    _tell(as_json, {"row": row, "text": show.text(found, tokenizer), "tokens": listed}, text)


def _draw(picture: Path, messages: str, vocab_file: Path, merges_file: Path, seq_length: int) -> None:
    from qwenlib.data.build import lengths
    from qwenlib.data.preview import histogram
    from qwenlib.files import atomic_path

    figure = histogram(lengths(messages, vocab_file, merges_file), seq_length)
    with atomic_path(picture) as part:
        figure.savefig(part, format=picture.suffix[1:].lower(), dpi=120)
    typer.echo(f"wrote {picture}", err=True)


def _colour() -> bool:
    import os
    import sys

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
