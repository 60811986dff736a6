"""What is noted about a built MindRecord, and whether it fits the training that is to use it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Union

import numpy

from qwenlib import files
from qwenlib.data import mindrecord
from qwenlib.data.pack import Packer, saving_of
from qwenlib.data.rows import COLUMNS, IGNORE, Encoded, Row
from qwenlib.errors import Refused

META = ".meta.json"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def meta_path(output_file: Union[str, Path]) -> Path:
    """Where the notes of a MindRecord lie."""
    path = Path(output_file)
    return path.with_name(path.name + META)


def read_meta(output_file: Union[str, Path]) -> Dict[str, Any]:
    """What :func:`qwenlib.data.build` noted about a MindRecord.

    Raises:
        Refused: there is none (not built by qwenlib, or not to its end), or it is of another file than the one there.
    """
    path = meta_path(output_file)
    if not path.is_file():
        raise Refused(
            f"there is no {path}: the MindRecord was not built by qwenlib, or not to its end. Build it again."
        )
    meta = dict(files.read_json(path))
    rows = mindrecord.count_rows(output_file)
    if rows != meta.get("rows"):
        raise Refused(
            f"{output_file} holds {rows} rows, but {path.name} speaks of {meta.get('rows')}: they do not belong "
            "together. Build the data set again."
        )
    return meta


def packing(meta: Mapping[str, Any], rows_per_step: int = 1) -> Dict[str, float]:
    """:func:`qwenlib.data.pack.saving` of a built data set, from its notes."""
    return saving_of(meta["tokens"], meta["rows_padded"], meta["rows_packed"], meta["seq_length"] + 1, rows_per_step)


def check_fit(
    meta: Mapping[str, Any],
    *,
    seq_length: int,
    labels: str = "",
    vocab_file: Union[str, Path] = "",
    merges_file: Union[str, Path] = "",
    columns: Sequence[str] = COLUMNS,
    what: str = "the training",
) -> None:
    """Compare the notes of a data set with what is to be trained on it.

    Args:
        meta: what :func:`read_meta` gave, or the ``config`` of 03_data's meta.json.
        seq_length: tokens the network sees.
        labels: the profile's; "" to take any.
        vocab_file: the vocab.json of the model; "" to skip. ``merges_file`` likewise.
        columns: the columns that are read, in order.
        what: who asks, for the error ("profile smoke").

    Raises:
        Refused: another row length, vocabulary, labels or column set, or several files of which MindFormers would read
            the first only; all differences at once, with what to do.
    """
    problems: List[str] = []

    def compare(name: str, wanted: Any, needed: bool = True) -> None:
        found: Optional[Any] = meta.get(name)
        if needed and found != wanted:
            problems.append(f"{name} is {_short(found)}, but {what} has {_short(wanted)}")

    compare("seq_length", seq_length)
    compare("labels", labels, bool(labels))
    for name, path in (("vocab_sha256", vocab_file), ("merges_sha256", merges_file)):
        if str(path):
            compare(name, files.sha256(path))
    compare("columns", list(columns))
    partition = int(meta.get("file_partition", 1))
    if partition != 1:
        problems.append(f"it lies in {partition} files, of which MindFormers would read the first only")
    if problems:
        raise Refused(
            f"the MindRecord does not fit {what}: {'; '.join(problems)}. "
            "Build it again with the same profile and vocabulary (03_data, or qwenlib data build)."
        )


def check_vocabulary(meta: Mapping[str, Any], vocab_file: Union[str, Path], merges_file: Union[str, Path]) -> None:
    """Refuse to decode a MindRecord with another vocabulary than it was built with: the text would be another one.

    Raises:
        Refused: naming the file that differs.
    """
    for name, path in (("vocab_sha256", vocab_file), ("merges_sha256", merges_file)):
        if meta.get(name) != files.sha256(path):
            raise Refused(
                f"the MindRecord was built with another {Path(path).name} than {path} (its {name} is "
                f"{_short(meta.get(name))}). Give the vocabulary that it was built with."
            )


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:12] + "…" if len(text) == 64 else text


class Tally:
    """Figures of a data set, counted as it passes by, in memory that does not grow with it."""

    def __init__(self, seq_length: int, too_long: str, pack: bool):
        self.width, self.too_long, self.pack = seq_length + 1, too_long, pack
        self._lengths: Counter[int] = Counter()
        self._rows = self._learned = self._without_labels = self._special = self._long = 0
        self._samples = self._tokens = self._packed = 0
        self._packer: Packer[None] = Packer(self.width)

    def add(self, item: Encoded, pieces: Sequence[Encoded]) -> None:
        """Count a conversation and the pieces of it that go into rows."""
        self._lengths[len(item.ids)] += 1
        self._long += len(item.ids) > self.width
        self._special += item.special_tokens
        for piece in pieces:
            tokens = len(piece.ids)
            self._samples += 1
            self._tokens += tokens
            if not self.pack:  # how many rows it would be
                self._packed += sum(1 for _ in self._packer.add(None, tokens))

    def watch(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Count rows as they pass."""
        for row in rows:
            learned = int(numpy.count_nonzero(row["target_ids"] != IGNORE))
            self._rows += 1
            self._learned += learned
            # The first token is nobody's target.
            self._without_labels += learned - int(row["target_ids"][0] != IGNORE) == 0
            yield row

    def figures(self) -> Dict[str, Any]:
        """The counts at the end, for meta.json.

        ``records``: conversations. ``rows``; ``rows_padded`` and ``rows_packed``, one of which it is. ``samples``:
        conversations, or pieces of them, in rows. ``tokens``: real ones in rows. ``real_share``: of all places in rows.
        ``longer_than_row``: conversations, ``truncated``, ``dropped`` or ``split``. ``without_labels``: rows in which
        nothing is learned. ``label_tokens``; ``label_share``: of the real tokens. ``length_quantiles``: of
        conversations, before any cut. ``special_tokens_in_text``.
        """
        packed = self._rows if self.pack else self._packed + sum(1 for _ in self._packer.finish())
        return {
            "records": sum(self._lengths.values()),
            "rows": self._rows,
            "rows_padded": self._samples,
            "rows_packed": packed,
            "samples": self._samples,
            "tokens": self._tokens,
            "real_share": self._tokens / (self._rows * self.width),
            "longer_than_row": self._long,
            "truncated": self._long if self.too_long == "truncate" else 0,
            "dropped": self._long if self.too_long == "drop" else 0,
            "split": self._long if self.too_long == "split" else 0,
            "without_labels": self._without_labels,
            "label_tokens": self._learned,
            "label_share": self._learned / self._tokens,
            "length_quantiles": {f"{share:g}": quantile(self._lengths, share) for share in QUANTILES},
            "special_tokens_in_text": self._special,
        }


def quantile(counts: Mapping[int, int], share: float) -> float:
    """``numpy.quantile`` (linear) of values that are given as ``{value: how often}``."""
    values = sorted(counts)
    ends = numpy.cumsum([counts[value] for value in values])
    place = share * (int(ends[-1]) - 1)
    low, high = (values[int(numpy.searchsorted(ends, int(at), side="right"))] for at in (place, numpy.ceil(place)))
    return low + (high - low) * (place - int(place))
