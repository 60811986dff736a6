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
    data_path: Path = typer.Option(..., "--data_path", help="Records: a JSON array or JSON Lines."),
    output_path: Path = typer.Option(..., "--output_path", help="Messages file to write (replaced when it exists)."),
    format: str = typer.Option(
        "auto",
        "--format",
        help="alpaca (instruction, input, output; system, history), sharegpt (conversations of from, value), messages; "
        "auto: what the first record's keys say.",
    ),
    system: Optional[str] = typer.Option(
        None, "--system", help="System message of records without one; '' for none. Default: upstream's."
    ),
    on_error: str = typer.Option(
        "stop", "--on_error", "--on-error", help="stop at a bad record, or skip it into OUTPUT_PATH.skipped.jsonl."
    ),
    special_tokens: str = typer.Option(
        "escape",
        "--special_tokens",
        "--special-tokens",
        help="Control tokens spelled in texts: escape (<|im_end|> becomes <| im_end |>) or keep.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Turn alpaca or ShareGPT records into messages, one JSON object a line.

    Example: qwenlib data convert --data_path alpaca_data.json --output_path messages.jsonl
    """
    from qwenlib.data.chatml import SYSTEM
    from qwenlib.data.convert import convert as run

    counts = run(
        data_path,
        output_path,
        format=format,
        system=SYSTEM if system is None else system,
        on_error=on_error,
        special_tokens=special_tokens,
    )
    did = "escaped" if special_tokens == "escape" else "kept (build reads them as plain text)"
    notes = [
        f"{counts[key]:,} {text}"
        for key, text in (
            ("skipped", f"bad records were skipped: {counts['skipped_path']}"),
            ("empty_answers", "conversations with an empty answer"),
            ("without_answer", "conversations without an answer"),
            ("duplicates", "records like an earlier one"),
            ("special_tokens", f"control tokens spelled in texts were {did}"),
        )
        if counts[key]
    ]
    text = (
        f"{counts['records']:,} records, {counts['with_input']:,} of them with input: {output_path}\n"
        f"format {counts['format']} ({counts['format_reason']})"
    )
    _tell(as_json, counts, "\n".join([text, *(f"note: {note}" for note in notes)]))


@data.command("build")
def build(
    input_glob: str = typer.Option(..., "--input_glob", help="Messages files: a path, or a pattern in quotes."),
    output_file: Path = typer.Option(..., "--output_file", help="File to write, ending in .mindrecord."),
    vocab_file: Path = typer.Option(..., "--vocab_file", help="vocab.json of the model, or its tokenizer folder."),
    merges_file: str = typer.Option("", "--merges_file", help="merges.txt; not needed when a folder is given."),
    seq_length: int = typer.Option(2048, "--seq_length", help="Tokens the network sees; rows are one longer."),
    labels: str = typer.Option(
        "all", "--labels", help="all: learn every token but padding, as upstream; assistant: learn the answers only."
    ),
    too_long: str = typer.Option(
        "truncate",
        "--too_long",
        "--too-long",
        help="Conversations longer than a row: truncate (as upstream; a cut answer keeps its <|im_end|>), drop, or "
        "split over several rows.",
    ),
    pack: bool = typer.Option(
        False,
        "--pack",
        help="Several conversations in a row: fewer steps. Labels never cross a conversation, but in MindFormers 1.0 "
        "attention still sees the row's earlier ones.",
    ),
    seed: int = typer.Option(0, "--seed", help="Of the packing: same seed, same rows."),
    file_partition: int = typer.Option(
        1, "--file_partition", help="Number of files. MindFormers reads one of them only: leave it at 1 for training."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing output, when the new one is whole."),
    repeat: int = typer.Option(1, "--repeat", hidden=True),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Tokenize messages and write the MindRecord that training reads.

    With --labels assistant the tokens of each answer and the <|im_end|> behind it are learned.

    Example: qwenlib data build --input_glob messages.jsonl --vocab_file qwen/vocab.json --merges_file qwen/merges.txt \
    --seq_length 2048 --output_file alpaca.mindrecord
    """
    from qwenlib.data.build import build as run
    from qwenlib.data.mindrecord import neighbours

    meta = run(
        input_glob,
        output_file,
        vocab_file,
        merges_file,
        seq_length,
        labels=labels,
        too_long=too_long,
        pack=pack,
        seed=seed,
        overwrite=overwrite,
        file_partition=file_partition,
    )
    text = (
        f"{meta['records']:,} conversations in {meta['rows']:,} rows of {seq_length + 1} tokens: {output_file}\n"
        f"{100 * meta['real_share']:.1f} % of the places hold a real token, {100 * meta['label_share']:.1f} % of those "
        f"are learned"
    )
    done = {"truncated": "cut", "dropped": "left out", "split": "split over several rows"}
    notes = [f"{meta[key]:,} conversations are longer than a row: {verb}" for key, verb in done.items() if meta[key]]
    if meta["without_labels"]:
        notes.append(f"in {meta['without_labels']:,} rows nothing is learned")
    if meta["special_tokens_in_text"]:
        notes.append(f"{meta['special_tokens_in_text']:,} control tokens spelled in texts were kept as plain text")
    if not pack and meta["rows_packed"] < meta["rows"]:
        notes.append(f"with --pack it would be {meta['rows_packed']:,} rows instead of {meta['rows']:,}")
    if file_partition > 1:
        notes.append(f"MindFormers trains on {Path(meta['files'][0]).name} only, and skips the other files silently")
    if repeat != 1:
        notes.append("--repeat does nothing, as in upstream's script: epochs belong to the training's profile")
    others = neighbours(output_file)
    if others:
        names = ", ".join(path.name for path in others)
        notes.append(f"given the folder as its data set, MindFormers would mix in {names}: give it the file")
    _tell(as_json, meta, "\n".join([text, *(f"note: {note}" for note in notes)]))


@data.command("preview")
def preview(
    mindrecord: Path = typer.Option(..., "--mindrecord", help="A built .mindrecord file."),
    vocab_file: Path = typer.Option(..., "--vocab_file", help="vocab.json of the model, or its tokenizer folder."),
    merges_file: str = typer.Option("", "--merges_file", help="merges.txt; not needed when a folder is given."),
    row: int = typer.Option(0, "--row", help="Which row, counted from 0."),
    tokens: bool = typer.Option(False, "--tokens", help="List the tokens with their ids and targets, too."),
    messages: str = typer.Option(
        "", "--messages", help="Messages files, for --histogram (a row tells its length cut)."
    ),
    histogram: Optional[Path] = typer.Option(None, "--histogram", help="Write the histogram of lengths (.png, .svg)."),
    rows_per_step: int = typer.Option(
        1, "--rows_per_step", help="batch_size x data_parallel x micro_batch_num, for the steps of an epoch."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout."),
) -> None:
    """Show a row as the model sees it, learned text in green, what packing would change, and how long conversations
    are.

    Example: qwenlib data preview --mindrecord alpaca.mindrecord --vocab_file qwen/vocab.json \
    --merges_file qwen/merges.txt --row 5 --tokens
    """
    from qwenlib.data import preview as show
    from qwenlib.data.build import vocabulary_files
    from qwenlib.data.meta import check_vocabulary, meta_path, packing, read_meta
    from qwenlib.data.mindrecord import row_at
    from qwenlib.data.pack import saving_text
    from qwenlib.data.tokenizer import load_tokenizer
    from qwenlib.errors import Refused

    if histogram is not None and histogram.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise Refused(f"--histogram must end in .png, .svg or .pdf, found {histogram.name!r}.")
    if (histogram is None) != (not messages):
        raise Refused(
            "--histogram and --messages go together: the lengths are counted in the messages, before any cut."
        )
    vocab, merges = vocabulary_files(vocab_file, merges_file)
    tokenizer = load_tokenizer(vocab, merges)
    notes = read_meta(mindrecord) if meta_path(mindrecord).is_file() else None
    if notes is not None:
        check_vocabulary(notes, vocab, merges)
    found = row_at(mindrecord, row)
    show.check_vocabulary(found, tokenizer, mindrecord)
    if histogram is not None:
        _draw(histogram, messages, vocab, merges, len(found["input_ids"]) - 1)
    colour = _colour()
    text = show.to_ansi(found, tokenizer, colour)
    if tokens:
        text += f"\n\n{show.tokens_ansi(found, tokenizer, colour)}"
    value: Dict[str, Any] = {"row": row, "text": show.text(found, tokenizer), "tokens": show.table(found, tokenizer)}
    if notes is not None:
        value["packing"] = packing(notes, rows_per_step)
        text += f"\n\n{saving_text(value['packing'], bool(notes['pack']))}"
    _tell(as_json, value, text)


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
