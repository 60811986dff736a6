"""Messages to MindRecord, streaming: what upstream's ``qwen1_5_preprocess.py`` does, with its option names."""

from __future__ import annotations

import contextlib
import glob
import itertools
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Union

import numpy

from qwenlib import files
from qwenlib.data import encoding, mindrecord
from qwenlib.data.length import TOO_LONG, fit
from qwenlib.data.meta import Tally, meta_path
from qwenlib.data.pack import Packer
from qwenlib.data.rows import COLUMNS, LABELS, Encoded, Encoder, Row, to_packed_row, to_row
from qwenlib.data.tokenizer import load_tokenizer, special_ids
from qwenlib.errors import Refused
from qwenlib.progress import Progress

WRITE = 256
"""Rows that are handed to MindSpore together. It starts threads for each hand-over, which wait for a core while the
tokenizer has both; many more rows are slower again, as memory is not used again."""


def build(
    input_glob: Union[str, Path],
    output_file: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    seq_length: int = 2048,
    *,
    labels: str = "all",
    too_long: str = "truncate",
    pack: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    file_partition: int = 1,
) -> Dict[str, Any]:
    """Write a MindRecord with rows of ``seq_length + 1`` tokens and ``output_file.meta.json``.

    Memory does not grow with the data set, and little with its longest conversation, which is tokenized in pieces. A
    control token that a text spells stays plain text, and is counted.

    Args:
        input_glob: messages files (JSON Lines), a path or a pattern.
        output_file: ends in .mindrecord; ``.db`` and ``.meta.json`` go beside it.
        vocab_file: vocab.json, or the folder that holds both vocabulary files.
        merges_file: merges.txt; not looked at when ``vocab_file`` is a folder.
        seq_length: tokens the network sees.
        labels: see :class:`qwenlib.data.rows.Encoder`.
        too_long: see :func:`qwenlib.data.length.fit`.
        pack: several conversations in a row (:mod:`qwenlib.data.pack`). In MindFormers 1.0 attention still sees the
            row's earlier conversations.
        seed: of the packing.
        overwrite: replace an existing output when the new one is complete.
        file_partition: number of files; MindFormers would train on the first of several only.

    Returns:
        The contents of meta.json, see :class:`qwenlib.data.meta.Tally`, with ``seq_length``, ``labels``, ``too_long``,
        ``pack``, ``seed``, ``columns``, ``file_partition``, ``pad_token_id``, ``special_ids``, ``vocab_size``,
        ``vocab_sha256``, ``merges_sha256``, ``files``, ``inputs``.

    Raises:
        Refused: an argument, an input or the vocabulary is wrong, no row is left, or the output exists and
            ``overwrite`` is off.
        WorkFailed: MindSpore could not write.
    """
    target = Path(output_file).absolute()
    _check(target, seq_length, labels, too_long, overwrite, file_partition)
    sources = inputs(input_glob)
    vocab_file, merges_file = vocabulary_files(vocab_file, merges_file)
    tokenizer = load_tokenizer(vocab_file, merges_file)
    encoder = Encoder(tokenizer, labels)
    lines = sum(_lines(source) for source in sources)
    _require_space(target, sources, lines, seq_length, pack, file_partition)
    tally = Tally(seq_length, too_long, pack)
    with contextlib.ExitStack() as stack:
        # First of all: the tokenizer works while MindSpore is being imported, and behind all writing afterwards.
        if encoding.large(sources):  # padded, MindSpore's writing takes longer, and no core should be taken from it
            batches = encoding.encoded_apart(vocab_file, merges_file, labels, sources, nice=0 if pack else 19)
        else:
            batches = encoding.encoded_batches(encoder, sources)
        encoded = stack.enter_context(contextlib.closing(batches))
        writer = stack.enter_context(mindrecord.Writer(target, file_partition, beside=[meta_path(target)]))
        bar = stack.enter_context(Progress("build", lines or None, "records"))
        samples = _samples(encoded, tally, bar, seq_length + 1, too_long, encoder.end)
        rows = _packed(samples, seq_length, encoder.pad, seed) if pack else _padded(samples, seq_length, encoder.pad)
        for chunk in _chunks(tally.watch(rows), WRITE):
            writer.write(chunk)
        if not writer.rows:
            raise Refused(f"every conversation is longer than a row of {seq_length + 1} tokens, and was dropped.")
    meta = {
        **tally.figures(),
        "seq_length": seq_length,
        "labels": labels,
        "too_long": too_long,
        "pack": pack,
        "seed": seed,
        "columns": list(COLUMNS),
        "file_partition": file_partition,
        "pad_token_id": encoder.pad,
        "special_ids": special_ids(tokenizer),
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=False),
        "vocab_sha256": files.sha256(vocab_file),
        "merges_sha256": files.sha256(merges_file),
        "files": [str(path) for path in writer.files],
        "inputs": {str(source): files.sha256(source) for source in sources},
    }
    files.write_json(meta_path(target), meta)  # last: its presence says that the pair is whole
    return meta


def inputs(input_glob: Union[str, Path]) -> List[Path]:
    """The files that a path or a pattern names, sorted.

    Raises:
        Refused: none.
    """
    if Path(input_glob).is_file():  # a name may hold brackets
        return [Path(input_glob)]
    found = sorted(Path(name) for name in glob.glob(str(input_glob), recursive=True) if Path(name).is_file())
    if not found:
        raise Refused(f"input_glob {str(input_glob)!r} names no file. Give the messages file that convert wrote.")
    return found


def lengths(
    input_glob: Union[str, Path], vocab_file: Union[str, Path], merges_file: Union[str, Path] = ""
) -> numpy.ndarray:
    """Tokens of each conversation, uncut, in order: int32 [conversations]."""
    encoder = Encoder(load_tokenizer(*vocabulary_files(vocab_file, merges_file)))
    with contextlib.closing(encoding.encoded_batches(encoder, inputs(input_glob))) as batches:
        return numpy.fromiter((len(item.ids) for batch in batches for item in batch), dtype=numpy.int32)


def vocabulary_files(vocab_file: Union[str, Path], merges_file: Union[str, Path] = "") -> List[Path]:
    """``[vocab.json, merges.txt]``, of a tokenizer folder when ``vocab_file`` is one.

    Raises:
        Refused: a vocab.json without merges.txt.
    """
    vocab = Path(vocab_file)
    if vocab.is_dir():
        return [vocab / "vocab.json", vocab / "merges.txt"]
    if not str(merges_file):
        raise Refused(f"{vocab} alone is half a tokenizer: give merges_file, too, or the folder that holds both.")
    return [vocab, Path(merges_file)]


def _samples(
    batches: Iterable[List[Encoded]], tally: Tally, bar: Progress, width: int, too_long: str, end_token: int
) -> Iterator[Encoded]:
    """The pieces that go into rows."""
    for batch in batches:
        for item in batch:
            pieces = fit(item, width, too_long, end_token)
            tally.add(item, pieces)
            yield from pieces
        bar.advance(len(batch))


def _padded(samples: Iterable[Encoded], seq_length: int, pad: int) -> Iterator[Row]:
    return (to_row(sample, seq_length, pad) for sample in samples)


def _packed(samples: Iterable[Encoded], seq_length: int, pad: int, seed: int) -> Iterator[Row]:
    packer: Packer[Encoded] = Packer(seq_length + 1, seed)
    for sample in samples:
        # Copies: a sample that waits must not keep the whole batch it was cut from.
        alone = Encoded(sample.ids.copy(), sample.learned.copy())
        for row in packer.add(alone, len(alone.ids)):
            yield to_packed_row(row, seq_length, pad)
    for row in packer.finish():
        yield to_packed_row(row, seq_length, pad)


def _chunks(rows: Iterator[Row], size: int) -> Iterator[List[Row]]:
    return iter(lambda: list(itertools.islice(rows, size)), [])


def _check(target: Path, seq_length: int, labels: str, too_long: str, overwrite: bool, file_partition: int) -> None:
    if seq_length < 1:
        raise Refused(f"seq_length must be at least 1, found {seq_length}.")
    if labels not in LABELS:
        raise Refused(f"labels must be {' or '.join(LABELS)}, found {labels!r}.")
    if too_long not in TOO_LONG:
        raise Refused(f"too_long must be one of {', '.join(TOO_LONG)}, found {too_long!r}.")
    if not 1 <= file_partition <= 1000:
        raise Refused(f"file_partition must be between 1 and 1000, found {file_partition}.")
    mindrecord.check_name(target)
    files.check_target(target)
    there = mindrecord.existing(target)
    if there and not overwrite:
        raise Refused(
            f"{', '.join(map(str, there))} exist already. Choose another output_file, or replace them: --overwrite."
        )


def _require_space(
    target: Path, sources: List[Path], lines: int, seq_length: int, pack: bool, file_partition: int
) -> None:
    """Three int32 columns a place. Padded, a row a line (a JSON array gives no count, then the smallest file);
    packed, about a token for every six bytes of text."""
    places = sum(source.stat().st_size for source in sources) // 6 if pack else (seq_length + 1) * lines
    files.require_space(target, mindrecord.SMALLEST * file_partition + 12 * places, "the MindRecord")


def _lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))
