"""What is noted about a data set decides whether it may be trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlib import data, files
from qwenlib.data import mindrecord, preview
from qwenlib.data.meta import META, Tally, check_vocabulary, packing, quantile, read_meta
from qwenlib.data.pack import packed_rows
from qwenlib.data.rows import COLUMNS, Encoded
from qwenlib.errors import Refused
from qwenlib.profile import load


@pytest.fixture
def meta(vocabulary: Path) -> Dict[str, Any]:
    return {
        "seq_length": 96,
        "labels": "assistant",
        "columns": list(COLUMNS),
        "file_partition": 1,
        "vocab_sha256": files.sha256(vocabulary / "vocab.json"),
        "merges_sha256": files.sha256(vocabulary / "merges.txt"),
    }


def fits(meta: Dict[str, Any], vocabulary: Path, **change: Any) -> None:
    names = {"vocab_file": vocabulary / "vocab.json", "merges_file": vocabulary / "merges.txt"}
    data.check_fit(meta, **{"seq_length": 96, "labels": "assistant", **names, **change})


def test_the_same_profile_and_vocabulary_fit(meta: Dict[str, Any], vocabulary: Path) -> None:
    fits(meta, vocabulary)
    fits(meta, vocabulary, labels="", vocab_file="", merges_file="")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seq_length": 128}, "seq_length is 96, but profile x has 128"),
        ({"labels": "all"}, "labels is assistant, but profile x has all"),
        ({"columns": ["input_ids", "labels"]}, "columns is input_ids, target_ids, attention_mask, but"),
    ],
)
def test_another_profile_is_refused(meta: Dict[str, Any], vocabulary: Path, change: Dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        fits(meta, vocabulary, what="profile x", **change)


def test_another_vocabulary_is_refused(meta: Dict[str, Any], vocabulary: Path, tmp_path: Path) -> None:
    other = tmp_path / "vocab.json"
    other.write_bytes((vocabulary / "vocab.json").read_bytes() + b" ")
    with pytest.raises(Refused, match=r"vocab_sha256 is \w{12}…, but .* has \w{12}…"):
        fits(meta, vocabulary, vocab_file=other)


def test_another_vocabulary_cannot_decode(meta: Dict[str, Any], vocabulary: Path, tmp_path: Path) -> None:
    vocab, merges = vocabulary / "vocab.json", vocabulary / "merges.txt"
    check_vocabulary(meta, vocab, merges)
    other = tmp_path / "merges.txt"
    other.write_bytes(merges.read_bytes() + b"\n")
    with pytest.raises(
        Refused, match=r"built with another merges\.txt than .*Give the vocabulary that it was built with"
    ):
        check_vocabulary(meta, vocab, other)


def test_every_difference_is_told_at_once(meta: Dict[str, Any], vocabulary: Path) -> None:
    with pytest.raises(Refused) as caught:
        fits({"file_partition": 4}, vocabulary)
    for word in ("seq_length", "labels", "vocab_sha256", "merges_sha256", "columns", "lies in 4 files", "03_data"):
        assert word in str(caught.value)


def test_notes_of_another_or_no_file_are_refused(tmp_path: Path) -> None:
    import sqlite3

    target = tmp_path / "t.mindrecord"
    with pytest.raises(Refused, match="not built by qwenlib, or not to its end"):
        read_meta(target)
    target.write_bytes(b"x")
    with sqlite3.connect(str(target) + ".db") as database:
        database.execute("create table INDEXES (ROW_ID integer)")
        database.executemany("insert into INDEXES values (?)", [(1,), (2,)])
    files.write_json(tmp_path / f"t.mindrecord{META}", {"rows": 3})
    with pytest.raises(Refused, match=r"holds 2 rows, but t\.mindrecord\.meta\.json speaks of 3"):
        read_meta(target)


def test_neighbours_are_what_mindformers_would_mix_in(tmp_path: Path) -> None:
    for name in ("a.mindrecord", "a.mindrecord.db", "b.mindrecord", "deep/c.mindrecord0", "d.mindrecord1", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = mindrecord.neighbours(tmp_path / "a.mindrecord")
    assert [path.name for path in found] == ["b.mindrecord", "c.mindrecord0"]


def test_a_part_of_several_files_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("p.mindrecord0", "p.mindrecord1", "w.mindrecord"):
        for suffix in ("", ".db"):
            (tmp_path / f"{name}{suffix}").write_bytes(b"")
    mindrecord.check_trainable(tmp_path / "w.mindrecord")
    for name, said in {
        "p.mindrecord0": "lies in 2 files, of which MindFormers would train on the first only",
        "p.mindrecord": "lies in 2 files",
        "p.mindrecord1": "only reads files whose name ends in",
        "none.mindrecord": "there is no",
    }.items():
        with pytest.raises(Refused, match=said):
            mindrecord.check_trainable(tmp_path / name)


def test_the_packing_of_a_data_set_is_told_for_each_training_task() -> None:
    notes = {"tokens": 9000, "rows_padded": 100, "rows_packed": 10, "seq_length": 999}
    assert packing(notes, 4)["packed_steps"] == 2
    text = preview.packing_text(notes, load("lora_7b_910a"))
    assert (
        text
        == "lora, 4 rows a step: 9 % of a step is real: pack and the epoch takes 2 steps instead of 25 (90.0 % real)."
    )


@pytest.mark.parametrize("override", ["data.too_long=cut", "data.seq_length=0", "data.pack=maybe"])
def test_wrong_profile_settings_are_refused(override: str) -> None:
    with pytest.raises(Refused, match=override.split("=")[0]):
        load("smoke", [override])


def test_the_profiles_say_whether_to_pack() -> None:
    assert (load("smoke").data.pack, load("smoke").data.too_long) == (False, "truncate")
    assert load("smoke", ["data.pack=true"]).data.pack


@given(st.lists(st.integers(1, 100), min_size=1), st.floats(0, 1))
def test_quantiles_of_counts_are_numpys(values: List[int], share: float) -> None:
    assert quantile(Counter(values), share) == pytest.approx(float(numpy.quantile(values, share)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_the_packing_is_foreseen_while_counting(lengths: List[int]) -> None:
    tally = Tally(seq_length=49, too_long="truncate", pack=False)
    for length in lengths:
        item = Encoded(numpy.arange(length, dtype=numpy.int32), numpy.ones(length, dtype=bool))
        tally.add(item, [item])
    row = {name: numpy.zeros(50, dtype=numpy.int32) for name in COLUMNS}
    assert sum(1 for _ in tally.watch(row for _ in lengths)) == len(lengths)
    found = tally.figures()
    assert (found["records"], found["tokens"], found["rows_padded"]) == (len(lengths), sum(lengths), len(lengths))
    assert found["rows_packed"] == packed_rows(lengths, 50)
