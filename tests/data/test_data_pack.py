"""Packing, and what becomes of conversations longer than a row."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from typing import Any, List, Sequence

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlib.data import pack
from qwenlib.data.ahead import ahead
from qwenlib.data.length import TOO_LONG, fit
from qwenlib.data.pack import Packer, packed_rows, saving, saving_text
from qwenlib.data.rows import IGNORE, Encoded, to_packed_row
from qwenlib.errors import Refused


def rows_of(lengths: Sequence[int], width: int, seed: int = 0) -> List[List[int]]:
    """Numbers of the samples in each row."""
    packer: Packer[int] = Packer(width, seed)
    found = [row for number, length in enumerate(lengths) for row in packer.add(number, length)]
    return found + list(packer.finish())


def alpaca_like(count: int) -> List[int]:
    """Lengths with a mean of about 180 tokens."""
    draw = random.Random(1)
    return [min(2049, 30 + int(draw.lognormvariate(4.6, 0.8))) for _ in range(count)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200), st.integers(0, 3), st.integers(1, 40), st.integers(0, 5))
def test_every_sample_is_in_one_row_and_no_row_overflows(lengths: List[int], seed: int, window: int, wait: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "WINDOW_SAMPLES", window)
        patch.setattr(pack, "OPEN_ROWS", wait)
        found = rows_of(lengths, 50, seed)
        assert found == rows_of(lengths, 50, seed)
        assert packed_rows(lengths, 50, seed) == len(found)
    assert Counter(itertools.chain.from_iterable(found)) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= 50 for row in found)


def test_rows_of_an_alpaca_like_set_are_full_whatever_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = alpaca_like(30_000)
    assert 150 < sum(lengths) / len(lengths) < 210
    for window in (1000, 8192):
        monkeypatch.setattr(pack, "WINDOW_SAMPLES", window)
        rows = packed_rows(lengths, 2049)
        assert sum(lengths) / (rows * 2049) >= 0.98


def test_the_seed_decides_which_samples_share_a_row() -> None:
    lengths = alpaca_like(500)
    first, other = ({frozenset(row) for row in rows_of(lengths, 2049, seed)} for seed in (0, 1))
    assert first != other
    assert abs(len(first) - len(other)) <= 2


def test_waiting_rows_are_few_when_nothing_fits_together() -> None:
    packer: Packer[None] = Packer(100)
    finished = sum(len(list(packer.add(None, 60))) for _ in range(3 * pack.WINDOW_SAMPLES))
    assert finished >= 3 * pack.WINDOW_SAMPLES - pack.OPEN_ROWS
    assert len(list(packer.finish())) <= pack.OPEN_ROWS


def test_a_sample_that_fits_no_row_is_refused() -> None:
    for length in (0, 11):
        with pytest.raises(Refused, match="does not fit a row of 10"):
            list(Packer(10).add(None, length))


def sample(length: int, first: int = 0, learned: bool = True, **more: Any) -> Encoded:
    ids = numpy.arange(first, first + length, dtype=numpy.int32)
    return Encoded(ids, numpy.full(length, learned), **more)


def test_labels_never_cross_a_sample() -> None:
    row = to_packed_row([sample(3, 10), sample(2, 20), sample(4, 30)], seq_length=10, pad=99)
    assert list(row["input_ids"]) == [10, 11, 12, 20, 21, 30, 31, 32, 33, 99, 99]
    assert list(row["target_ids"]) == [IGNORE, 11, 12, IGNORE, 21, IGNORE, 31, 32, 33, IGNORE, IGNORE]
    assert list(row["attention_mask"]) == [1] * 9 + [0, 0]


END = 999


def test_a_cut_answer_keeps_its_closing_token() -> None:
    long = sample(20, learned=False, answers=[(5, 18)], ends=[3, 20])
    (cut,) = fit(long, 10, "truncate", END)
    assert list(cut.ids) == [*range(9), END]
    assert list(cut.learned) == [False] * 9 + [True]
    assert list(long.ids) == list(range(20)), "the original is another's"
    for answers in ([(9, 18)], [(10, 18)], [(2, 9)], []):  # nothing of it stays; it begins later; it has ended
        (cut,) = fit(sample(20, answers=answers), 10, "truncate", END)
        assert list(cut.ids) == list(range(10))


def test_dropped_and_short_conversations() -> None:
    assert fit(sample(11), 10, "drop", END) == []
    for how in TOO_LONG:
        short = sample(10)
        assert fit(short, 10, how, END) == [short]


@given(st.integers(1, 300), st.integers(1, 60), st.lists(st.integers(1, 300), max_size=12))
def test_split_keeps_every_token_once(length: int, width: int, ends: List[int]) -> None:
    whole = sample(length, ends=sorted(end for end in ends if end <= length))
    pieces = fit(whole, width, "split", END)
    assert all(0 < len(piece.ids) <= width for piece in pieces)
    assert list(numpy.concatenate([piece.ids for piece in pieces])) == list(whole.ids)


def test_split_cuts_behind_a_message_where_it_can() -> None:
    pieces = fit(sample(24, ends=[3, 8, 15, 24]), 10, "split", END)
    assert [len(piece.ids) for piece in pieces] == [8, 7, 9]


def test_the_saving_is_counted_in_steps() -> None:
    figures = saving([4, 10, 20, 6], seq_length=9, rows_per_step=2)
    assert figures["real_share"] == 0.75
    assert (figures["rows"], figures["packed_rows"], figures["steps"], figures["packed_steps"]) == (4, 3, 2, 1)
    assert saving_text(figures).startswith("75 % of a step is real: pack and the epoch takes 1 steps instead of 2")
    assert saving_text(figures, done=True).startswith(
        "packed, the epoch takes 1 steps instead of 2: 100.0 % of a step is"
    )
    assert "would not change that" in saving_text(saving([9, 9], 9))
    with pytest.raises(Refused, match="no conversations"):
        saving([], 9)
    with pytest.raises(Refused, match="rows_per_step must be at least 1"):
        saving([1], 9, 0)


def test_reading_ahead_keeps_order_errors_and_ends_its_thread() -> None:
    assert list(ahead(range(100))) == list(range(100))

    def failing() -> Any:
        yield 1
        raise Refused("line 2")

    with pytest.raises(Refused, match="line 2"):
        list(ahead(failing()))
    endless = ahead(itertools.count())
    assert next(endless) == 0
    endless.close()
    ahead(itertools.count()).close()
    assert not [thread for thread in threading.enumerate() if thread.name == "qwenlib-ahead"]
