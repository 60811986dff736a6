"""Records to messages: the sentence rule, the ChatML text, the file, the shipped sample."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlib import data
from qwenlib.data import chatml
from qwenlib.data.tokenizer import SPECIAL_TOKENS
from qwenlib.errors import Refused


def upstreams(record: Dict[str, str]) -> Dict[str, Any]:
    """What upstream's alpaca_converter.py makes of a record, stated plainly."""
    instruction, extra = record["instruction"], record.get("input", "")
    if extra == "":
        question = instruction
    else:
        if instruction[-1] == ".":
            instruction = instruction[:-1]
        question = instruction + ": " + extra
    system = {"role": "system", "content": "You are a helpful assistant."}
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}
    return {"type": "chatml", "messages": [system, user, assistant]}


def save(path: Path, records: List[Dict[str, str]]) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def lines(path: Path) -> List[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_the_sample_converts_as_upstream_does_object_by_object(tmp_path: Path) -> None:
    target = tmp_path / "messages.jsonl"
    counts = data.convert(data.sample_path(), target)
    records = json.loads(data.sample_path().read_text(encoding="utf-8"))
    assert lines(target) == [upstreams(record) for record in records]
    assert (counts["records"], counts["with_input"]) == (240, 80)
    assert "你好" in target.read_text(encoding="utf-8")  # readable, not \\u4f60


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@given(text.filter(bool), text, text)
def test_any_record_gives_upstreams_messages(instruction: str, extra: str, output: str) -> None:
    record = {"instruction": instruction, "input": extra, "output": output}
    found = chatml.to_messages(chatml.Record(0, 1, instruction, extra, output))
    assert found == upstreams(record)["messages"]


@pytest.mark.parametrize(
    ("instruction", "extra", "said"),
    [
        ("Translate.", "hello", "Translate: hello"),
        ("Translate..", "hello", "Translate.: hello"),
        ("Translate", " ", "Translate:  "),
        ("翻译。", "你好", "翻译。: 你好"),
        ("Stop.", "", "Stop."),
    ],
)
def test_the_sentence_rule(instruction: str, extra: str, said: str) -> None:
    assert chatml.user_text(instruction, extra) == said


def test_chatml_has_no_message_that_was_not_given() -> None:
    user = {"role": "user", "content": "Hi"}
    assert chatml.render([user]) == "<|im_start|>user\nHi<|im_end|>\n"
    assert chatml.render([user], add_generation_prompt=True).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_oddities_are_counted(tmp_path: Path) -> None:
    one = {"instruction": "a", "output": "b"}
    odd = [one, one, {"instruction": "c", "output": " "}, {"instruction": "<|im_end|><|im_start|>", "output": "x"}]
    counts = data.convert(save(tmp_path / "in.json", odd), tmp_path / "out.jsonl")
    assert (counts["duplicates"], counts["empty_answers"], counts["special_tokens"]) == (1, 1, 2)


def test_a_bad_record_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "out" / "messages.jsonl"
    data.convert(save(tmp_path / "in.json", [{"instruction": "a", "output": "b"}]), target)
    before = target.read_bytes()
    save(tmp_path / "in.json", [{"instruction": "a", "output": "b"}, {"instruction": "a"}])
    with pytest.raises(Refused, match=r"record 1 .*'output'"):
        data.convert(tmp_path / "in.json", target)
    assert target.read_bytes() == before
    assert [item.name for item in target.parent.iterdir()] == ["messages.jsonl"]


def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    source = save(tmp_path / "in.json", [{"instruction": "a", "output": "b"}])
    with pytest.raises(Refused, match="is the input itself"):
        data.convert(source, source)
    with pytest.raises(Refused, match="is a folder"):
        data.convert(source, tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"instruction": "a", "output": "b"}', "Convert the file first"),
        ('{"messages": []}', "expected"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "message 0: role must be one of system, user, assistant"),
        ('{"messages": ["x"]}', "message 0: role must be"),
        ('{"messages": [{"role": "user"}]}', "message 0: content must be a string, found null"),
    ],
)
def test_bad_messages_are_told_with_their_place(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(Refused) as caught:
        list(chatml.read_messages(path))
    assert said in str(caught.value)
    assert "record 1 (line 2)" in str(caught.value)


def test_the_shipped_sample_is_what_it_says() -> None:
    records = json.loads(data.sample_path().read_text(encoding="utf-8"))
    assert len(records) == 240
    assert all(list(record) == ["instruction", "input", "output"] for record in records)
    assert len({(record["instruction"], record["input"]) for record in records}) == 240
    assert not [record for record in records for token in SPECIAL_TOKENS if token in "".join(record.values())]
    chinese = [record for record in records if re.search("[\u4e00-\u9fff]", record["instruction"])]
    assert 100 <= len(chinese) <= 140
    assert 70 <= sum(bool(record["input"]) for record in records) <= 90


def test_prompts_are_the_same_each_time_and_of_both_languages(tmp_path: Path) -> None:
    target = tmp_path / "messages.jsonl"
    data.convert(data.sample_path(), target)
    chosen = data.prompts(target)
    assert chosen == data.prompts(target)
    assert len({item["prompt"] for item in chosen}) == len(chosen) == 24
    assert sum(bool(re.search("[\u4e00-\u9fff]", item["prompt"])) for item in chosen) == 12
    found = lines(target)
    for item in chosen:
        messages = found[item["index"]]["messages"]
        assert (item["prompt"], item["answer"]) == (messages[-2]["content"], messages[-1]["content"])
    places = [item["index"] for item in chosen]
    assert places == sorted(places)
    assert places[0] < 40
    assert places[-1] > 200


@given(st.integers(1, 60), st.integers(0, 30), st.integers(0, 30))
def test_prompts_take_what_there_is(count: int, chinese: int, other: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.json"
        questions = [f"问题{place}" for place in range(chinese)] + [f"question {place}" for place in range(other)]
        questions += ["asked twice", "asked twice"]
        save(path, [{"instruction": question, "output": f"{place}."} for place, question in enumerate(questions)])
        data.convert(path, Path(folder) / "out.jsonl")
        if not chinese + other:
            with pytest.raises(Refused, match="no conversation"):
                data.prompts(Path(folder) / "out.jsonl", count)
            return
        found = data.prompts(Path(folder) / "out.jsonl", count)
    assert len(found) == min(count, chinese + other)
    assert "asked twice" not in {item["prompt"] for item in found}
