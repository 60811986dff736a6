"""Conversations that are kept out of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

pytest.importorskip("numpy")

from typer.testing import CliRunner

from qwenlib import data
from qwenlib.cli.main import app
from qwenlib.errors import Refused


def talk(question: str, answer: str = "a") -> Dict[str, Any]:
    return {
        "type": "chatml",
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def write(path: Path, talks: List[Dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in talks), encoding="utf-8")
    return path


def read(path: Path) -> List[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_sample_is_split_evenly_and_no_question_is_on_both_sides(tmp_path: Path) -> None:
    messages, held = tmp_path / "messages.jsonl", tmp_path / "held_out.jsonl"
    data.convert(data.sample_path(), messages)
    before = read(messages)
    counts = data.hold_out(messages, held, 24)
    train, kept = read(messages), read(held)
    assert counts == {"train": len(train), "held_out": len(kept)} and 24 <= len(kept) <= 30
    assert sorted(map(json.dumps, train + kept)) == sorted(map(json.dumps, before))
    assert [item for item in before if item in train] == train, "the order stays"

    def asked(items: List[Any]) -> set:
        return {item["messages"][1]["content"] for item in items}

    assert not asked(train) & asked(kept)
    places = [before.index(item) for item in kept]
    assert places[0] < 12 and places[-1] > 220 and max(b - a for a, b in zip(places, places[1:])) < 25


def test_conversations_with_the_same_question_go_together_and_the_choice_is_the_same_again(tmp_path: Path) -> None:
    talks = [talk(f"q{number % 4}", f"a{number}") for number in range(8)]
    results = []
    for name in ("one", "two"):
        messages = write(tmp_path / f"{name}.jsonl", talks)
        assert data.hold_out(messages, tmp_path / f"{name}.held", 1) == {"train": 6, "held_out": 2}
        results.append(read(tmp_path / f"{name}.held"))
    assert results[0] == results[1] == [talks[2], talks[6]]


def test_the_command_does_the_same(tmp_path: Path) -> None:
    messages = write(tmp_path / "m.jsonl", [talk(f"q{number}") for number in range(4)])
    command = ["data", "hold-out", "--messages", str(messages), "--held_out", str(tmp_path / "h.jsonl"), "--count", "2"]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 0 and json.loads(told.stdout) == {"train": 2, "held_out": 2}
    assert len(read(tmp_path / "h.jsonl")) == len(read(messages)) == 2


def test_none_is_held_out_and_an_older_file_goes(tmp_path: Path) -> None:
    messages = write(tmp_path / "m.jsonl", [talk("x")])
    held = write(tmp_path / "held.jsonl", [talk("old")])
    assert data.hold_out(messages, held, 0) == {"train": 1, "held_out": 0}
    assert not held.exists() and read(messages) == [talk("x")]


@pytest.mark.parametrize(
    ("count", "said"), [(-1, "at least 0, found -1"), (3, "hold_out 3 is too much: .* has 4 diff")]
)
def test_what_cannot_be_held_out_is_refused_and_nothing_is_written(tmp_path: Path, count: int, said: str) -> None:
    messages = write(tmp_path / "m.jsonl", [talk(f"q{number}") for number in range(4)])
    before = messages.read_bytes()
    with pytest.raises(Refused, match=said):
        data.hold_out(messages, tmp_path / "held.jsonl", count)
    assert messages.read_bytes() == before and not (tmp_path / "held.jsonl").exists()


@pytest.mark.parametrize("count", [0, 1])
def test_the_messages_themselves_are_no_place_for_what_is_held_out(tmp_path: Path, count: int) -> None:
    messages = write(tmp_path / "m.jsonl", [talk(f"q{number}") for number in range(4)])
    before = messages.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(messages)
    for target, said in (
        (messages, "is the messages file itself"),
        (tmp_path / "link.jsonl", "itself"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(Refused, match=said):
            data.hold_out(messages, target, count)
    assert messages.read_bytes() == before and (tmp_path / "link.jsonl").is_symlink()
