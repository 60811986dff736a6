"""Messages to MindRecord, streaming: what upstream's ``qwen1_5_preprocess.py`` does, with its option names."""

from __future__ import annotations

import array
import glob
import itertools
from pathlib import Path
from typing import Any, Dict, Iterator, List, Union

import numpy

from qwenlib import files
from qwenlib.data import mindrecord
from qwenlib.data.chatml import Message, read_messages
from qwenlib.data.rows import LABELS, Encoded, Encoder, to_row
from qwenlib.data.tokenizer import load_tokenizer, special_ids
from qwenlib.errors import Refused
from qwenlib.progress import Progress

BATCH = 256
"""Conversations that are tokenized and written together."""

META = ".meta.json"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def build(
    input_glob: Union[str, Path],
    output_file: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    seq_length: int = 2048,
    *,
    labels: str = "all",
    overwrite: bool = False,
    file_partition: int = 1,
) -> Dict[str, Any]:
    """Write a MindRecord with rows of ``seq_length + 1`` tokens, one conversation a row, and ``output_file.meta.json``.

    ``input_glob``: messages files (JSON Lines), a path or a pattern. ``labels``: see
    :class:`qwenlib.data.rows.Encoder`. A longer conversation loses its end, as upstream, and is counted. A control
    token that a text spells stays plain text, and is counted.

    Returns:
        The contents of meta.json: ``records``, ``tokens`` (real ones in rows), ``real_share`` (of all places in rows),
        ``truncated``, ``without_labels`` (rows in which nothing is learned), ``label_share`` (learned share of the
        real tokens), ``length_quantiles`` (before cutting), ``special_tokens_in_text``, ``seq_length``, ``labels``,
        ``pad_token_id``, ``special_ids``, ``vocab_size``, ``vocab_sha256``, ``merges_sha256``, ``files``, ``inputs``.

    Raises:
        Refused: an argument, an input or the vocabulary is wrong, or the output exists and ``overwrite`` is off.
        WorkFailed: MindSpore could not write.
    """
    target = Path(output_file).absolute()
    _check(target, seq_length, labels, overwrite, file_partition)
    sources = inputs(input_glob)
    tokenizer = load_tokenizer(vocab_file, merges_file)
    encoder = Encoder(tokenizer, labels)
    lines = sum(_lines(source) for source in sources)
    # Three int32 columns a token; a JSON array (one line or many) gives no count, then at least the smallest file.
    files.require_space(target, mindrecord.SMALLEST * file_partition + 12 * (seq_length + 1) * lines, "the MindRecord")
    tally = _Tally(seq_length)
    with mindrecord.Writer(target, file_partition) as writer, Progress("build", lines or None, "records") as bar:
        for batch in _batches(sources):
            encoded = list(encoder.encode(batch))
            tally.add(encoded)
            writer.write([to_row(item, seq_length, encoder.pad) for item in encoded])
            bar.advance(len(batch))
        _meta_path(target).unlink(missing_ok=True)  # written last: its presence says that the pair is whole
    meta = {
        **tally.figures(),
        "seq_length": seq_length,
        "labels": labels,
        "file_partition": file_partition,
        "pad_token_id": encoder.pad,
        "special_ids": special_ids(tokenizer),
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=False),
        "vocab_sha256": files.sha256(vocab_file),
        "merges_sha256": files.sha256(merges_file),
        "files": [str(path) for path in writer.files],
        "inputs": {str(source): files.sha256(source) for source in sources},
    }
    files.write_json(_meta_path(target), meta)
    return meta


def read_meta(output_file: Union[str, Path]) -> Dict[str, Any]:
    """What :func:`build` noted about a MindRecord.

    Raises:
        Refused: there is none: not built by qwenlib, or not to its end.
    """
    path = _meta_path(Path(output_file))
    if not path.is_file():
        raise Refused(
            f"there is no {path}: the MindRecord was not built by qwenlib, or not to its end. Build it again."
        )
    return dict(files.read_json(path))


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


def lengths(input_glob: Union[str, Path], vocab_file: Union[str, Path], merges_file: Union[str, Path]) -> numpy.ndarray:
    """Tokens of each conversation, uncut, in order."""
    encoder = Encoder(load_tokenizer(vocab_file, merges_file))
    found = array.array("q")
    for batch in _batches(inputs(input_glob)):
        found.extend(len(item.ids) for item in encoder.encode(batch))
    return numpy.frombuffer(found, dtype=numpy.int64)


def _check(target: Path, seq_length: int, labels: str, overwrite: bool, file_partition: int) -> None:
    if seq_length < 1:
        raise Refused(f"seq_length must be at least 1, found {seq_length}.")
    if labels not in LABELS:
        raise Refused(f"labels must be {' or '.join(LABELS)}, found {labels!r}.")
    if not 1 <= file_partition <= 1000:
        raise Refused(f"file_partition must be between 1 and 1000, found {file_partition}.")
    mindrecord.check_name(target)
    if target.is_dir():
        raise Refused(f"{target} is a folder; give the name of a file to write.")
    there = mindrecord.existing(target)
    if there and not overwrite:
        raise Refused(f"{', '.join(map(str, there))} exist already. Choose another output_file, or overwrite them.")


def _batches(sources: List[Path]) -> Iterator[List[List[Message]]]:
    conversations = itertools.chain.from_iterable(map(read_messages, sources))
    return iter(lambda: list(itertools.islice(conversations, BATCH)), [])


def _lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))


def _meta_path(target: Path) -> Path:
    return target.with_name(target.name + META)


class _Tally:
    """Figures of a data set, counted as it passes by."""

    def __init__(self, seq_length: int):
        self.width = seq_length + 1
        self.lengths = array.array("q")
        self.learned = self.without_labels = self.special = 0

    def add(self, encoded: List[Encoded]) -> None:
        for item in encoded:
            self.lengths.append(len(item.ids))
            learned = sum(item.learned[: self.width])
            self.learned += learned
            # The first token is nobody's target.
            self.without_labels += not any(item.learned[1 : self.width])
            self.special += item.special_tokens

    def figures(self) -> Dict[str, Any]:
        found = numpy.frombuffer(self.lengths, dtype=numpy.int64)
        tokens = int(numpy.minimum(found, self.width).sum())
        return {
            "records": len(found),
            "tokens": tokens,
            "real_share": tokens / (len(found) * self.width),
            "truncated": int((found > self.width).sum()),
            "without_labels": self.without_labels,
            "label_tokens": self.learned,
            "label_share": self.learned / tokens,
            "length_quantiles": {f"{share:g}": float(numpy.quantile(found, share)) for share in QUANTILES},
            "special_tokens_in_text": self.special,
        }
