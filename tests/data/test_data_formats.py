"""Kinds of record: what is told apart, what becomes of each, and what happens to bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlib import data
from qwenlib.data import chatml
from qwenlib.data.tokenizer import SPECIAL_TOKENS
from qwenlib.errors import Refused

SYSTEM = {"role": "system", "content": chatml.SYSTEM}


def save(path: Path, records: List[Any], lines: bool = False) -> Path:
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    path.write_text(text, encoding="utf-8")
    return path


def converted(folder: Path, records: List[Any], **options: Any) -> List[List[Dict[str, str]]]:
    data.convert(save(folder / "in.json", records), folder / "out.jsonl", **options)
    return [json.loads(line)["messages"] for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def turns(*texts: str) -> List[Dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def test_a_records_own_system_and_history_come_first(tmp_path: Path) -> None:
    record = {"instruction": "c.", "input": "x", "output": "d", "system": "Be brief.", "history": [["a", "b"]]}
    (found,) = converted(tmp_path, [record])
    assert found == [{"role": "system", "content": "Be brief."}, *turns("a", "b", "c: x", "d")]
    (plain,) = converted(tmp_path, [{**record, "system": None, "history": None}])
    assert plain == [SYSTEM, *turns("c: x", "d")]
    (bare,) = converted(tmp_path, [{**record, "system": "", "history": []}], system="")
    assert bare == turns("c: x", "d")


def test_sharegpt_speakers_become_roles(tmp_path: Path) -> None:
    conversation = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "user", "value": "c"}]
    opened = [{"from": "system", "value": "S"}, *conversation]
    found = converted(
        tmp_path,
        [{"conversations": conversation}, {"conversations": opened}, {"conversations": conversation, "system": "T"}],
    )
    assert [messages[0]["content"] for messages in found] == [chatml.SYSTEM, "S", "T"]
    assert all(messages[1:] == turns("a", "b", "c") for messages in found)


def test_ready_made_messages_stay_as_they_are(tmp_path: Path) -> None:
    assert converted(tmp_path, [{"messages": turns("a", "b"), "id": 3}]) == [turns("a", "b")]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "a"}], "id": "x"}, "sharegpt"),
        ({"messages": turns("a")}, "messages"),
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_the_format_is_told_by_the_first_record_with_a_reason(
    tmp_path: Path, record: Dict[str, Any], name: str, lines: bool
) -> None:
    counts = data.convert(save(tmp_path / "in.json", [record] * 2, lines), tmp_path / "out.jsonl")
    assert (counts["format"], counts["records"]) == (name, 2)
    assert "the first record has the key" in counts["format_reason"]
    named = data.convert(tmp_path / "in.json", tmp_path / "out.jsonl", format=name)
    assert named["format_reason"] == "named"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"question": "a"},
            "no key tells the format (looked for 'messages', 'conversations', 'instruction'); it has 'que",
        ),
        ({"conversations": []}, "conversations must be an array of"),
        ({"conversations": "x"}, "found a string"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "conversations[0]: from must be one of system, human"),
        ({"conversations": [{"from": "human"}]}, "conversations[0]: value must be a string, found null"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "found keys 'role', 'content'"),
        ({"conversations": [{"from": [1], "value": "x"}]}, "found '[1]'"),
        (
            {"instruction": "a", "output": "b", "history": ["x"]},
            "history[0] must be a [question, answer] pair, found a str",
        ),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "found an array of 1"),
        ({"instruction": "a", "output": "b", "history": [["x", 1]]}, "history[0][1] must be a string, found a number"),
        ({"instruction": "a", "output": "b", "history": "x"}, "history must be an array"),
        ({"instruction": "a", "output": "b", "system": 1}, "system must be a string, found a number"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role must be one of system, user, assistant"),
    ],
)
def test_a_bad_record_is_told_with_place_field_and_finding(tmp_path: Path, record: Any, said: str) -> None:
    with pytest.raises(Refused) as caught:
        converted(tmp_path, [record])
    assert said in str(caught.value)
    assert "in.json, record 0 (line 1)" in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_of_two_formats_is_refused_at_the_second(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"record 1 .*no field 'instruction'"):
        converted(tmp_path, [{"instruction": "a", "output": "b"}, {"conversations": []}])


def test_skipped_records_go_to_a_side_file_with_their_reason(tmp_path: Path) -> None:
    good = '{"instruction": "a", "output": "b"}'
    bad = '{"instruction": "a\\ud83d", "output": "b"}'
    (tmp_path / "in.jsonl").write_text("\n".join([good, "{nonsense", bad, '{"output": 1}', good]), encoding="utf-8")
    target = tmp_path / "out.jsonl"
    counts = data.convert(tmp_path / "in.jsonl", target, on_error="skip")
    assert (counts["records"], counts["skipped"], counts["duplicates"]) == (2, 3, 1)
    side = Path(counts["skipped_path"])
    assert side.name == "out.jsonl.skipped.jsonl"
    entries = [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]
    assert [(entry["index"], entry["line"]) for entry in entries] == [(1, 2), (2, 3), (3, 4)]
    assert [entry["record"] for entry in entries] == ["{nonsense", json.loads(bad), {"output": 1}]
    assert [entry["reason"].split(" (")[0][:30] for entry in entries] == [
        "line 2, column 2: not JSON",
        "instruction holds half a chara",
        "no field 'instruction'; it has",
    ]
    again = data.convert(save(tmp_path / "good.json", [json.loads(good)]), target, on_error="skip")
    assert (again["skipped"], again["skipped_path"], side.exists()) == (0, "", False)


def test_stop_is_the_default_and_leaves_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"instruction": "a", "output": "b"}, {"output": "b"}], lines=True)
    with pytest.raises(Refused, match=r"record 1 .* Correct it, or have bad records skipped: --on-error skip\.$"):
        data.convert(source, tmp_path / "out" / "m.jsonl")
    source.write_text('{"instruction": "a", "output": "b"}\n{"instr', encoding="utf-8")
    with pytest.raises(Refused, match=r"line 2, .* --on-error skip\.$"):
        data.convert(source, tmp_path / "out" / "m.jsonl")
    assert not list((tmp_path / "out").iterdir())


def test_records_under_a_key_and_unknown_keys_are_told_apart(tmp_path: Path) -> None:
    for value, told in (
        ({"data": [{"instruction": "a", "output": "b"}]}, r"stand under the key 'data'; give that array alone\.$"),
        (
            {"问题": "a", "回答": "b"},
            r"it has '问题', '回答'\. Rename its fields, or name the format with --format .*\.$",
        ),
    ):
        with pytest.raises(Refused, match=told):
            data.convert(save(tmp_path / "in.json", [value], lines=True), tmp_path / "m.jsonl")


@pytest.mark.parametrize("text", ['{"a": 1}\n{"b": 2}', "x\ny", '[{"a": 1}]'])
def test_when_every_record_is_bad_nothing_is_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "in.json").write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=r"none of its .* is good; the first: .*in\.json"):
        data.convert(tmp_path / "in.json", tmp_path / "out" / "m.jsonl", on_error="skip")
    assert not list((tmp_path / "out").iterdir())


def test_a_broken_array_ends_the_reading_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('[{"instruction": "a", "output": "b"}, {"instr', encoding="utf-8")
    with pytest.raises(Refused, match="not JSON"):
        data.convert(tmp_path / "in.json", tmp_path / "m.jsonl", on_error="skip")
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_spelled_control_tokens_are_taken_apart_unless_kept(tmp_path: Path, token: str) -> None:
    records = [{"instruction": f"What does {token} mean?", "output": "An end."}]
    ((_, user, _),) = converted(tmp_path, records)
    assert user["content"] == f"What does <| {token[2:-2]} |> mean?"
    ((_, kept, _),) = converted(tmp_path, records, special_tokens="keep")
    assert token in kept["content"]


spellings = st.lists(st.sampled_from(["<", "|", ">", "im_end", "<|im_end|>", "<|endoftext|>", "a"])).map("".join)


@given(spellings)
def test_no_spelling_survives_escaping(content: str) -> None:
    (message,) = chatml.escape([{"role": "user", "content": content}])
    assert not chatml.special_in([message])
    if not chatml.special_in([{"role": "user", "content": content}]):
        assert message["content"] == content


def test_answers_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    source = save(
        tmp_path / "in.json", [{"messages": turns("a")}, {"messages": turns("a", "")}, {"messages": turns("a", "b")}]
    )
    counts = data.convert(source, tmp_path / "out.jsonl")
    assert (counts["without_answer"], counts["empty_answers"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "csv"}, "format must be auto, alpaca, sharegpt or messages, found 'csv'"),
        ({"on_error": "ignore"}, "on_error must be stop or skip, found 'ignore'"),
        ({"special_tokens": "x"}, "special_tokens must be escape or keep"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: Dict[str, str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        converted(tmp_path, [{"instruction": "a", "output": "b"}], **options)


def test_a_large_file_is_converted_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    source = tmp_path / "large.jsonl"
    line = json.dumps({"instruction": "a", "output": "x" * 2000}) + "\n"
    source.write_text(line * 10_000, encoding="utf-8")
    tracemalloc.start()
    try:
        assert data.convert(source, tmp_path / "out.jsonl")["duplicates"] == 9_999
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < source.stat().st_size / 3
