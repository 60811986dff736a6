"""What the models are told, and what is kept of a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import pytest

pytest.importorskip("markdown_it")
from qwenlib.data import chatml
from qwenlib.errors import Refused
from qwenlib.ui.conversation import Answer, Conversation, Turn, append_record
from qwenlib.ui.words import words

RECORD = {"messages": [{"role": "user", "content": "好?"}, {"role": "assistant", "content": "好。\n\u2028<|im_end|>"}]}


def turn(user: str, system: str = "S", **answers: Any) -> Turn:
    made: Dict[str, Answer] = {}
    for name, given in answers.items():
        text, finish = given if isinstance(given, tuple) else (given, "stop")
        made[name] = Answer(text, "1 token", {"finish": finish, "prompt": "p"})
    return Turn(user, system, {"max_new_tokens": 3}, made)


@pytest.fixture
def talk() -> Conversation:
    found = Conversation()
    found.turns = [turn("q1", a="A1", b="B1"), turn("q2", b="B2"), turn("q3", a=""), turn("q4", "T", a="A4", b="B4")]
    return found


def test_each_model_has_its_own_history_behind_the_system_prompt_of_now(talk: Conversation) -> None:
    assert talk.messages("a") == [
        {"role": "system", "content": "T"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "q4"},
    ], "not the question that it was not asked, not the one that it did not answer"
    assert [message["content"] for message in talk.messages("b")] == ["T", "q1", "B1", "q2", "B2", "q4"]
    talk.turns[-1].system = ""
    assert talk.messages("c") == [{"role": "user", "content": "q4"}]


def test_a_record_is_what_data_build_reads(talk: Conversation, tmp_path: Path) -> None:
    talk.turns[-1].answers["a"].text = "ends <|im_end|> here"
    record = talk.record("a")
    path = tmp_path / "new" / "good.jsonl"
    append_record(path, record)
    append_record(path, talk.record("b"))
    first, second = chatml.read_messages(path)
    assert first == [*chatml.escape(talk.messages("a")), {"role": "assistant", "content": "ends <| im_end |> here"}]
    assert second[-1]["content"] == "B4"
    assert [file.name for file in path.parent.iterdir()] == ["good.jsonl"]


@pytest.mark.parametrize(("finish", "text"), [("length", "A"), ("asked", "A"), ("stop", " ")])
def test_a_broken_off_or_empty_answer_is_no_record(finish: str, text: str) -> None:
    talk = Conversation()
    with pytest.raises(Refused, match="there is no answer of a to keep"):
        talk.record("a")
    talk.turns = [turn("q", a=(text, finish))]
    with pytest.raises(Refused, match="did not come to its end" if text.strip() else "there is no answer"):
        talk.record("a")


def test_a_last_line_without_its_end_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    old = json.dumps(RECORD)
    path.write_text(old, encoding="utf-8")
    size = append_record(path, RECORD)
    assert path.stat().st_size == size and path.read_text(encoding="utf-8").startswith(old + "\n")
    assert list(chatml.read_messages(path)) == [RECORD["messages"]] * 2


@pytest.mark.parametrize("content", ['[{"messages": []}]', '{"instruction": "a"}\n', "text\n", "\xff\xfe"])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(Refused, match="does not hold messages records, one a line, so nothing was added"):
        append_record(path, RECORD)
    assert path.read_text(encoding="latin-1") == content and len(list(tmp_path.iterdir())) == 1


def test_a_folder_a_bad_record_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is a folder"):
        append_record(tmp_path, RECORD)
    with pytest.raises(Refused, match="the new record"):
        append_record(tmp_path / "a.jsonl", {"messages": []})
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be written"):
        append_record(tmp_path / "file" / "a.jsonl", RECORD)
    assert append_record(tmp_path / "file", RECORD) > 0, "an empty file is as good as none"


def test_the_conversation_as_json_is_whole(talk: Conversation) -> None:
    found = json.loads(json.dumps(talk.to_json()))
    assert found["turns"][0] == {
        "user": "q1",
        "system": "S",
        "settings": {"max_new_tokens": 3},
        "answers": {
            "a": {"text": "A1", "note": "1 token", "figures": {"finish": "stop", "prompt": "p"}},
            "b": {"text": "B1", "note": "1 token", "figures": {"finish": "stop", "prompt": "p"}},
        },
    }


def test_the_conversation_as_markdown_holds_no_html_of_a_model_and_loses_nothing(talk: Conversation) -> None:
    from markdown_it import MarkdownIt

    talk.turns[0].answers["a"].text = "<script>alert(1)</script>\n````\n<b>"
    talk.turns[1].answers["b"].text = "```python\nnever closed"
    page = talk.to_markdown(words("en"))
    tokens = MarkdownIt("commonmark", {"html": True}).parse(page)
    kinds = {child.type for token in tokens for child in [token, *(token.children or [])]}
    assert kinds.isdisjoint({"html_block", "html_inline", "image"})
    titles = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert titles == [
        *("Conversation", "System prompt", "You", "a", "b", "You", "b", "You", "a"),
        *("System prompt", "You", "a", "b"),
    ]
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences == ["<script>alert(1)</script>\n````\n<b>\n", "```python\nnever closed\n"]
