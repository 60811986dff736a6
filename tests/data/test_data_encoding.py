"""Tokens from a process of its own are those of the thread, and its end is told."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, List

import numpy
import psutil
import pytest

from qwenlib import data
from qwenlib.data import encoding
from qwenlib.data.rows import Encoded, Encoder
from qwenlib.errors import Refused, WorkFailed

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample thirty times over: more than a pipe holds."""
    path = tmp_path_factory.mktemp("messages") / "messages.jsonl"
    data.convert(data.sample_path(), path)
    path.write_bytes(path.read_bytes() * 30)
    return path


def plain(batches: Any) -> List[Any]:
    def one(item: Encoded) -> List[Any]:
        ends = [list(map(int, pair)) for pair in item.answers]
        return [item.ids.tolist(), item.learned.tolist(), ends, list(item.ends), item.special_tokens]

    return [one(item) for batch in batches for item in batch]


def children() -> List[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "qwenlib.data.encoding" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize("labels", ["all", "assistant"])
def test_a_process_of_its_own_makes_the_same_tokens(
    messages: Path, files_of: Dict[str, Path], tokenizer: Any, labels: str
) -> None:
    here = plain(encoding.encoded_batches(Encoder(tokenizer, labels), [messages]))
    apart = plain(encoding.encoded_apart(*files_of.values(), labels, [messages]))
    assert len(here) == 7200 and apart == here
    assert not children()


def test_a_line_that_is_no_conversation_is_refused_in_the_same_words(
    messages: Path, files_of: Dict[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(messages.read_bytes() + b'{"type": "chatml"}\n')
    told = []
    for batches in (
        encoding.encoded_batches(Encoder(tokenizer), [bad]),
        encoding.encoded_apart(*files_of.values(), "all", [bad]),
    ):
        with pytest.raises(Refused) as refused:
            plain(batches)
        told.append(str(refused.value))
    assert told[0] == told[1] and "7201" in told[0]


def test_a_process_that_was_killed_is_told_and_nothing_passes_for_the_whole(
    messages: Path, files_of: Dict[str, Path]
) -> None:
    batches = encoding.encoded_apart(*files_of.values(), "all", [messages])
    next(batches)
    (child,) = children()
    child.kill()
    with pytest.raises(WorkFailed, match="tokenizes was ended before it was done"):
        plain(batches)


def test_who_stops_early_leaves_no_process(messages: Path, files_of: Dict[str, Path]) -> None:
    with contextlib.closing(encoding.encoded_apart(*files_of.values(), "all", [messages])) as batches:
        next(batches)
        assert children()
    assert not children()


@pytest.mark.stack
@pytest.mark.parametrize("pack", [False, True])
def test_large_files_are_built_the_same_way(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: bool
) -> None:
    built = []
    for name, apart in (("here", 2**40), ("apart", 0)):
        monkeypatch.setattr(encoding, "APART", apart)
        path = tmp_path / f"{name}.mindrecord"
        meta = data.build(messages, path, **files_of, seq_length=96, labels="assistant", pack=pack)
        rows = [numpy.concatenate(list(row.values())) for row in data.read_rows(path)]
        built.append((numpy.array(rows), {key: meta[key] for key in ("rows", "tokens", "truncated", "label_share")}))
    assert numpy.array_equal(built[0][0], built[1][0]) and built[0][1] == built[1][1]
