"""Questions from a file, answers into a file that survives being cut off."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

pytest.importorskip("numpy")

from qwenlib.errors import Refused
from qwenlib.infer import batch
from qwenlib.infer.answers import FIELDS, AnswersFile


def row(key: str, **values: Any) -> Dict[str, Any]:
    usual: Dict[str, Any] = dict.fromkeys(FIELDS, "")
    usual.update(prompt_tokens=3, cut_tokens=0, dropped_turns=0, answer_tokens=2, seconds=0.5)
    usual.update(first_token_seconds=None, tokens_per_second=4.0, made_by="m")
    return {**usual, "id": key, "question": f"q{key}", **values}


def test_questions_are_read_from_lines_and_from_records(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\ufeffFirst?\n\n  第二？ \r\n", encoding="utf-8")
    assert [(item["id"], item["messages"][-1]["content"]) for item in batch.read_prompts(text)] == [
        ("1", "First?"),
        ("3", "第二？"),
    ]
    records = [
        {"prompt": "P", "answer": "A", "id": 7},
        {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "S"},
        {"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "V"}]},
        {"question": "Q"},
    ]
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(item) + "\n" for item in records))
    found = batch.read_prompts(lines, system="")
    assert [item["id"] for item in found] == ["7", "2", "3", "4"]
    assert [item["expected"] for item in found] == ["A", "3", "V", ""]
    assert [item["messages"] for item in found] == [
        [{"role": "user", "content": "P"}],
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Add: 1, 2"}],
        [{"role": "user", "content": "U"}],
        [{"role": "user", "content": "Q"}],
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "\n \n", "holds no question"),
        ("a.jsonl", '{"text": "x"}\n', r"record 0 \(line 1\): a record needs a prompt"),
        ("a.jsonl", '{"prompt": "  "}\n', "a record needs a prompt"),
        ("a.jsonl", '{"prompt": "x"}\n["x"]\n', r"record 1 \(line 2\): expected an object"),
        (
            "a.jsonl",
            '{"prompt": "x", "id": 1}\n{"prompt": "y", "id": "1"}\n',
            "id '1' is given to question 1 and again",
        ),
        ("a.jsonl", '{"prompt": "x", "answer": 5}\n', "the expected answer must be text, found 5"),
        ("a.jsonl", '{"messages": [{"role": "system", "content": "x"}]}\n', "the last message must be the user's"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "half of a surrogate pair"),
    ],
)
def test_a_file_of_questions_that_is_none_is_refused_with_its_place(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(Refused, match=said):
        batch.read_prompts(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_cut_off_at_any_byte_is_gone_on_with(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    answers = ['plain, with "quotes"', "two\nlines\r\nand\rmore", "你好 🙂", ""]
    rows = [row(str(number), answer=text) for number, text in enumerate(answers)]
    with AnswersFile(path) as file:
        for item in rows:
            file.add(item)
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with AnswersFile(path) as file:
            kept = len(file.rows)
            assert list(file.rows.values()) == rows[:kept]
            for item in rows[kept:]:
                file.add(item)
        assert path.read_bytes() == whole
    with AnswersFile(path, overwrite=True) as file:
        assert file.rows == {}


def test_a_csv_is_what_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with AnswersFile(path) as file:
        file.add(row("1", answer="a\0b\nc"))
    with open(path, encoding="utf-8", newline="") as stream:
        found: List[Dict[str, str]] = list(csv.DictReader(stream))
    assert [item["answer"] for item in found] == ["a\ufffdb\nc"] and tuple(found[0]) == FIELDS


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", "my notes"), ("a.csv", "my,notes\n1,2\n"), ("a.jsonl", '{"id": "1"}\n'), ("a.csv", "\n")],
)
def test_somebody_elses_file_is_refused_and_stays(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(Refused, match="not written by qwenlib predict"), AnswersFile(path):
        pass
    assert path.read_text() == text


def test_other_questions_models_or_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with AnswersFile(path) as file:
        file.add(row("1"))
    with AnswersFile(path) as file:
        file.require({"1": "q1", "2": "q2"}, "m")
        for questions, made_by, said in (
            ({"2": "q2"}, "m", "a question '1' that is not asked"),
            ({"1": "other"}, "m", "its question '1' is another"),
            ({"1": "q1"}, "n", "another checkpoint .* or with other settings"),
        ):
            with pytest.raises(Refused, match=said):
                file.require(questions, made_by)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with AnswersFile(path), pytest.raises(Refused, match="another process is writing"), AnswersFile(path):
        pass
    with pytest.raises(Refused, match=r"must end in \.jsonl or \.csv"):
        AnswersFile(tmp_path / "a.xlsx")


@pytest.mark.parametrize(("name", "found"), [("none.txt", "nothing"), ("none.json", "nothing"), (".", "a folder")])
def test_a_file_of_questions_that_is_none_is_refused(tmp_path, name, found):
    with pytest.raises(Refused, match=rf"there is no file of questions .* \(found {found}\)\. Give a \.txt"):
        batch.read_prompts(tmp_path / name)
