"""A long text is tokenized in pieces, with the ids of the whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenlib.data import chatml, rows
from qwenlib.data import pieces as room
from qwenlib.data.pieces import groups, pieces
from qwenlib.data.rows import Encoder
from qwenlib.data.tokenizer import plain
from qwenlib.errors import Refused

pytest.importorskip("tokenizers")

# What the pattern tells apart, and what a cut could spoil: contractions, spaces before words, runs of line breaks.
marks = [
    "a",
    "'",
    '"',
    "_",
    "“",
    "》",
    "'s",
    "'S",
    "ſ",
    "é",
    "字",
    "，",
    "。",
    "7",
    "٣",
    "²",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u3000",
    ".",
    "=",
    "-",
    "(",
    "\u0301",
]
text = st.lists(st.sampled_from(marks) | st.characters(exclude_categories=("Cs",)), max_size=60).map("".join)


@settings(deadline=None, max_examples=300)
@example(text="a  5 b", size=2)
@example(text="x \n\n  y's\n z", size=2)
@given(text=text, size=st.integers(2, 12))
def test_pieces_have_the_ids_of_the_whole(tokenizer: Any, text: str, size: int) -> None:
    whole = plain(tokenizer, normalize=False)
    found = list(pieces(text, size))
    assert "".join(found) == text
    ids = [number for piece in found for number in whole.encode(piece, add_special_tokens=False).ids]
    assert ids == whole.encode(text, add_special_tokens=False).ids


def test_every_kind_of_prose_is_cut() -> None:
    for prose in ("one word. " * 100, "一句话，" * 100, "12345678" * 100, "line\n" * 100, 'key": "value", ' * 100):
        found = list(pieces(prose, 64))
        assert max(map(len, found)) <= 64 and min(map(len, found[:-1])) >= 32


def test_groups_keep_the_order_and_their_size() -> None:
    texts = ["a" * 5, "b" * 5, "c" * 20, "d", "e" * 9]
    assert list(groups(texts, most=10, size=10)) == [["a" * 5, "b" * 5], ["c" * 20], ["d", "e" * 9]]
    assert list(groups([], 10)) == []


def test_a_long_conversation_has_the_rows_of_the_whole_one(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What do they say, it's 5 o'clock?\n" * 40},
        {"role": "assistant", "content": "\n 一句话，7 words.\r\n" * 60},
    ]
    whole = list(Encoder(tokenizer, "assistant").encode([conversation, conversation[1:]]))
    sizes: List[int] = []
    cut = pieces

    def counted(text: str) -> Any:
        for piece in cut(text, 50):
            sizes.append(len(piece))
            yield piece

    for name, value in (("PIECE", 100), ("TOGETHER", 200), ("pieces", counted)):
        monkeypatch.setattr(rows, name, value)
    found = list(Encoder(tokenizer, "assistant").encode([conversation, conversation[1:]]))
    assert len(sizes) > 50 and max(sizes) <= 50
    for one, other in zip(whole, found):
        assert one.ids.tolist() == other.ids.tolist() and one.learned.tolist() == other.learned.tolist()
        assert one.answers == other.answers and one.ends == other.ends


def test_a_text_that_cannot_be_cut_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_of: Dict[str, Path]
) -> None:
    monkeypatch.setattr(room, "PIECE", 50)
    monkeypatch.setattr(room, "LONGEST", 100)
    monkeypatch.setattr(room.pieces, "__defaults__", (50,))
    path = tmp_path / "messages.jsonl"
    good = {"messages": [{"role": "user", "content": "abc " * 100}]}
    bad = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes: " + "字" * 101}]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n", encoding="utf-8")
    told = f"{path}, record 1 (line 2), message 1: content holds 106 characters, from number 0 on ('Yes: 字"
    with pytest.raises(Refused, match=re.escape(told)):
        list(chatml.read_messages(path))
