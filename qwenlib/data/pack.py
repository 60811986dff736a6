"""Several samples in a row: best fit, window by window, so that memory does not grow with the data set.

In MindFormers 1.0 attention knows no sample borders: a sample still sees those before it in its row. Labels never
cross a border (:func:`qwenlib.data.rows.to_packed_row`).
"""

from __future__ import annotations

import random
from typing import Dict, Generic, Iterable, Iterator, List, Sequence, Tuple, TypeVar

import numpy

from qwenlib.errors import Refused

WINDOW_SAMPLES = 8192
WINDOW_TOKENS = 4_000_000
"""A window is packed when it holds this many samples or tokens (20 MB of ids and labels)."""
FULL = 0.99
"""A row filled to this share is done; others wait for the next window …"""
OPEN_ROWS = 256
"""… but no more than this many, the emptiest."""

Sample = TypeVar("Sample")


class Packer(Generic[Sample]):
    """Best fit decreasing over windows of samples.

    Each sample goes into the row where it leaves the least room; the longest of a window goes first. ``seed`` decides
    between equals and shuffles rows and the samples in them; the same samples and seed give the same rows.
    """

    def __init__(self, width: int, seed: int = 0):
        self.width = width
        self._random = random.Random(seed)
        self._waiting: List[Tuple[int, Sample]] = []
        self._tokens = 0
        self._open: List[Tuple[int, List[Sample]]] = []  # room left, samples

    def add(self, sample: Sample, tokens: int) -> Iterator[List[Sample]]:
        """Take a sample of ``tokens`` tokens; yields the rows that are finished by it, mostly none.

        Raises:
            Refused: it is longer than a row.
        """
        if not 1 <= tokens <= self.width:
            raise Refused(f"a sample of {tokens} tokens does not fit a row of {self.width}.")
        self._waiting.append((tokens, sample))
        self._tokens += tokens
        if len(self._waiting) >= WINDOW_SAMPLES or self._tokens >= WINDOW_TOKENS:
            yield from self._pack(last=False)

    def finish(self) -> Iterator[List[Sample]]:
        """The rows that are left."""
        yield from self._pack(last=True)

    def _pack(self, last: bool) -> Iterator[List[Sample]]:
        self._random.shuffle(self._waiting)
        self._waiting.sort(key=lambda item: -item[0])
        by_room: Dict[int, List[List[Sample]]] = {}
        rooms = 0  # bit n is set: there is a row with room for n more
        for room, row in self._open:
            by_room.setdefault(room, []).append(row)
            rooms |= 1 << room
        for tokens, sample in self._waiting:
            fitting = rooms >> tokens
            room = tokens + (fitting & -fitting).bit_length() - 1 if fitting else self.width
            row = by_room[room].pop() if fitting else []
            if fitting and not by_room[room]:
                rooms ^= 1 << room
            row.append(sample)
            by_room.setdefault(room - tokens, []).append(row)
            rooms |= 1 << (room - tokens)
        self._waiting, self._tokens = [], 0
        rows = [(room, row) for room in sorted(by_room) for row in by_room[room]]
        done = len(rows)
        if not last:
            done = sum(room <= (1 - FULL) * self.width for room, _ in rows)
            done = max(done, len(rows) - OPEN_ROWS)
        self._open = rows[done:]
        finished = [row for _, row in rows[:done]]
        self._random.shuffle(finished)
        for row in finished:
            self._random.shuffle(row)
            yield row


def packed_rows(lengths: Iterable[int], width: int, seed: int = 0) -> int:
    """How many rows samples of these lengths take when packed (longer ones count as cut to ``width``)."""
    packer: Packer[None] = Packer(width, seed)
    count = 0
    for length in lengths:
        count += sum(1 for _ in packer.add(None, min(int(length), width)))
    return count + sum(1 for _ in packer.finish())


def saving(lengths: Sequence[int], seq_length: int, rows_per_step: int = 1) -> Dict[str, float]:
    """What packing changes for conversations of these lengths: see :func:`saving_of`; too long ones count as cut."""
    width = seq_length + 1
    found = numpy.minimum(numpy.asarray(lengths, dtype=numpy.int64), width)
    if not len(found):
        raise Refused("there are no conversations to pack.")
    return saving_of(int(found.sum()), len(found), packed_rows(found, width), width, rows_per_step)


def saving_of(tokens: int, rows: int, packed: int, width: int, rows_per_step: int = 1) -> Dict[str, float]:
    """``real_share`` of a padded row's places and ``packed_share`` of a packed one's, ``rows`` and ``packed_rows``, and
    an epoch's ``steps`` and ``packed_steps``.

    ``rows_per_step``: batch_size x data_parallel x micro_batch_num. An incomplete last step is not run
    (``drop_remainder``).
    """
    if rows_per_step < 1:
        raise Refused(f"rows_per_step must be at least 1, found {rows_per_step}.")
    return {
        "real_share": tokens / (rows * width),
        "packed_share": tokens / (packed * width),
        "rows": rows,
        "packed_rows": packed,
        "steps": rows // rows_per_step,
        "packed_steps": packed // rows_per_step,
    }


def saving_text(figures: Dict[str, float], done: bool = False) -> str:
    """:func:`saving` as a sentence; ``done``: the rows are packed already."""
    share, steps, packed = (figures[name] for name in ("packed_share", "steps", "packed_steps"))
    if done:
        return (
            f"packed, the epoch takes {packed:,} steps instead of {steps:,}: {100 * share:.1f} % of a step is real "
            f"instead of {100 * figures['real_share']:.0f} %."
        )
    real = f"{100 * figures['real_share']:.0f} % of a step is real"
    if packed == steps:
        return f"{real}, and packing would not change that: an epoch takes {steps:,} steps."
    return f"{real}: pack and the epoch takes {packed:,} steps instead of {steps:,} ({100 * share:.1f} % real)."
