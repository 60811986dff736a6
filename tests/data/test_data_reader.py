"""Alpaca files: what is read, and where an error is said to be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenlib.data import alpaca, reader
from qwenlib.errors import Refused

RECORD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}


def write(folder: Path, text: Any) -> Path:
    path = folder / "records.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def as_array(records: List[Any]) -> str:
    return json.dumps(records, ensure_ascii=False, indent=2)


def as_lines(records: List[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        list(alpaca.read(path))
    return str(caught.value)


@pytest.mark.parametrize("form", [as_array, as_lines])
def test_an_array_and_json_lines_give_the_same_records(tmp_path: Path, form: Any) -> None:
    records = [RECORD, {"instruction": "译成英文。", "input": "你好", "output": "Hello.\u2028"}, {**RECORD, "id": 7}]
    found = list(alpaca.read(write(tmp_path, form(records))))
    assert [(one.instruction, one.input, one.output) for one in found] == [
        (one["instruction"], one["input"], one["output"]) for one in records
    ]
    assert [one.index for one in found] == [0, 1, 2]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    assert [one.line for one in alpaca.read(write(tmp_path, as_array([RECORD] * 3)))] == [2, 7, 12]
    assert [one.line for one in alpaca.read(write(tmp_path, "\n" + as_lines([RECORD, RECORD])))] == [2, 3]


def test_an_absent_and_a_null_input_are_empty(tmp_path: Path) -> None:
    bare = {"instruction": "a", "output": "b"}
    assert [one.input for one in alpaca.read(write(tmp_path, as_array([bare, {**bare, "input": None}])))] == ["", ""]


def test_a_byte_order_mark_and_windows_line_ends_are_no_harm(tmp_path: Path) -> None:
    text = as_lines([RECORD, RECORD]).replace("\n", "\r\n")
    assert len(list(alpaca.read(write(tmp_path, b"\xef\xbb\xbf" + text.encode())))) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("[]", "holds no records"),
        ("hello", "line 1, column 1: not JSON"),
        ('[{"instruction": "a", "output": "b"}', "not closed by ]"),
        ('[{"instruction": "a",\n "output": b}]', "line 2, column 12: not JSON"),
        ('[{"instruction": "a", "output": "b"} {}]', "expected , or ] after record 0, found '{'"),
        (
            '[{"instruction": "a", "output": "b"},]',
            "column 38: not JSON (a comma before ], with no record between). Take",
        ),
        ('[{"instruction": "a", "output": "b"}] x', "something follows behind the array"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a" "output": "b"}\n', "line 2, column 21: not JSON"),
        ('{\n "instruction": "a"}', "line 1, column 2: not JSON"),
        ('{\n "instruction": "a"}', "The line ends within an object: records that go over several lines must stand in"),
        ("instruction,output\na,b\n", "Give a JSON array or JSON Lines of records."),
        (b'[{"instruction": "a",\n"output": "\xff"}]', "line 2: not UTF-8 text (byte 0xff)"),
        (b'[{"instruction": "\xe4\xbd', "line 1: the file ends within a character; it may have been cut off"),
        ("[" * 100_000, "nested too deeply"),
        ("[[1, 2]]", "record 0 (line 1): a record must be an object with instruction and output, found an array"),
        ('{"messages": []}', "these are messages already"),
        ('[{"output": "b"}]', "record 0 (line 1): no field 'instruction'; it has 'output'"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a"}', "record 1 (line 2): no field 'output'"),
        ('[{"instruction": 5, "output": "b"}]', "record 0 (line 1): instruction must be a string, found a number"),
        ('[{"instruction": "a", "output": null}]', "output must be a string, found null"),
        ('[{"instruction": "a", "input": ["x"], "output": "b"}]', "input must be a string, found an array"),
        ('[{"instruction": "", "input": "x", "output": "b"}]', "instruction is empty"),
        ('[{"instruction": "a\\ud83d", "output": "b"}]', "instruction holds half a character (\\ud83d at 1)"),
    ],
)
def test_bad_input_is_told_with_its_place(tmp_path: Path, text: Any, said: str) -> None:
    path = write(tmp_path, text)
    message = refusal(path)
    assert said in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"[]"), "not UTF-8 text (byte 0x8b). It is compressed with gzip: gunzip it first."),
        ('[{"instruction": "给我三条保持健康的建议。"}]'.encode("gb18030"), "It reads as GBK: convert it with iconv"),
        ("[]".encode("utf-16"), "It is UTF-16: convert it with iconv -f UTF-16 -t UTF-8."),
        (b'[{"instruction": "caf\xe9"}]', "line 1: not UTF-8 text (byte 0xe9)."),
        (b'[{"instruction": "\xc3\x28"}]', "line 1: not UTF-8 text (byte 0xc3)."),
        (bytes(range(255, 0, -1)), "line 1: not UTF-8 text (byte 0xff)."),
    ],
)
def test_another_encoding_is_named_with_what_to_do(tmp_path: Path, content: bytes, said: str) -> None:
    found = refusal(write(tmp_path, content))
    assert said in found and ("GBK" in found) == ("GBK" in said)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert "found nothing" in refusal(tmp_path / "none.json")
    assert "found a folder" in refusal(tmp_path)


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
records = st.lists(
    st.fixed_dictionaries({"instruction": text.filter(bool), "output": text}, optional={"input": text}), min_size=1
)


@settings(deadline=None)
@given(records, st.sampled_from([as_array, as_lines]), st.integers(1, 40))
@example([{"instruction": "[\\", "output": '"]'}], as_array, 1)
def test_what_is_written_is_read_whatever_the_block(
    tmp_path_factory: pytest.TempPathFactory, records: List[Dict[str, str]], form: Any, block: int
) -> None:
    path = write(tmp_path_factory.mktemp("reader"), form(records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BLOCK", block)
        patch.setattr(reader._Text.fill, "__defaults__", (block,))
        found = [
            {"instruction": one.instruction, "output": one.output, "input": one.input} for one in alpaca.read(path)
        ]
    assert found == [{"input": "", **one} for one in records]


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
@example(b"[1" + b"0" * 5000 + b"]")
@example(b'{"instruction": "a", "output": "b"}')
@example(b"\xef\xbb\xbf")
@example(b"[NaN]")
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, blob: bytes) -> None:
    path = write(tmp_path_factory.mktemp("any"), blob)
    try:
        assert list(alpaca.read(path))
    except Refused as error:
        assert str(path) in str(error)


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["instruction", "input", "output", "x"]), inner)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = write(tmp_path_factory.mktemp("any"), json.dumps(value))
    try:
        assert list(alpaca.read(path))
    except Refused as error:
        assert str(path) in str(error)


def test_a_large_array_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "large.json"
    record = json.dumps({**RECORD, "output": "x" * 1000})
    path.write_text("[" + ",\n".join([record] * 20_000) + "]", encoding="utf-8")
    tracemalloc.start()
    try:
        assert sum(1 for _ in alpaca.read(path)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2
