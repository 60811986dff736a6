"""Parameters are read from the cell as Python would, and held to their types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlib.errors import Refused
from qwenlib.workbook import parameters
from qwenlib.workbook.parameters import Kind, Parameter

CELL = """\
# settings
epochs: int = 3  # how often
rate: float = 1  # how fast
shuffle = True
prompt: str = "a # b"  # a text with a hash
sizes: List[int] = [1, 2]
names: "dict[str, float]" = {"a": 1.5}
limit: Optional[int] = None  # None: no limit
"""


def test_cell_gives_names_types_defaults_and_help() -> None:
    found = parameters.read(CELL, "here")
    assert [(p.name, str(p.kind), p.default, p.help) for p in found.values()] == [
        ("epochs", "int", 3, "how often"),
        ("rate", "float", 1, "how fast"),
        ("shuffle", "bool", True, ""),
        ("prompt", "str", "a # b", "a text with a hash"),
        ("sizes", "list[int]", [1, 2], ""),
        ("names", "dict[str, float]", {"a": 1.5}, ""),
        ("limit", "Optional[int]", None, "None: no limit"),
    ]


def test_papermill_sees_the_same_names_but_cuts_a_text_at_its_hash() -> None:
    translators = pytest.importorskip("papermill.translators")
    cell = pytest.importorskip("nbformat").v4.new_code_cell(CELL)
    papermills = {each.name: each.default for each in translators.PythonTranslator.inspect(cell)}
    assert list(papermills) == list(parameters.read(CELL, "here"))
    assert papermills["prompt"] == '"a', "papermill reads the cell right now: its inspector could be used instead"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("epochs: int = 'three'", "epochs is annotated int"),
        ("half: float = 3 / 2", "not a literal"),
        ("import os", "only lines like"),
        ("a = b = 1", "only lines like"),
        ("x: torch.Tensor = 1", "the type 'torch.Tensor'"),
        ("x: list[int, int] = []", "the type"),
        ("x = None", "says no type"),
        ("x: int = ", "not Python"),
        ("flag: int = True", "annotated int"),
    ],
)
def test_unfit_cell_is_refused_with_its_line(source: str, words: str) -> None:
    with pytest.raises(Refused, match="line 1") as refusal:
        parameters.read(source, "nb.ipynb")
    assert words in str(refusal.value)


def parameter(kind: Kind) -> Parameter:
    return Parameter("p", kind, None, "the meaning")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "-3", -3),
        ("int", "1_000", 1000),
        ("float", "1e-4", 1e-4),
        ("float", "2", 2.0),
        ("bool", "true", True),
        ("bool", "False", False),
        ("str", "", ""),
        ("str", '"quoted" 中文 \\n', '"quoted" 中文 \\n'),
        ("list", "[1, 'a']", [1, "a"]),
        ("list", '["a", null]', ["a", None]),
        ("dict", "{'a': 1}", {"a": 1}),
    ],
)
def test_text_becomes_a_typed_value(kind: str, text: str, value: Any) -> None:
    found = parameters.parse(text, parameter(Kind(kind)), "stage 04_lora")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind("int"), "3.5"),
        (Kind("int"), "three"),
        (Kind("int"), ""),
        (Kind("int"), "True"),
        (Kind("int"), "None"),
        (Kind("float"), "nan"),
        (Kind("float"), "fast"),
        (Kind("bool"), "1"),
        (Kind("bool"), "yes"),
        (Kind("list"), "1, 2"),
        (Kind("list"), "{}"),
        (Kind("list", (Kind("int"),)), "[1, 'a']"),
        (Kind("dict"), "{1: 2}"),
        (Kind("list"), "__import__('os').getcwd()"),
        (Kind("list"), "[" * 10000),
    ],
)
def test_text_of_another_type_is_refused_with_what_was_expected(kind: Kind, text: str) -> None:
    with pytest.raises(Refused, match="stage 04_lora: p must be") as refusal:
        parameters.parse(text, parameter(kind), "stage 04_lora")
    assert "the meaning" in str(refusal.value)


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    for kind in (Kind("int"), Kind("float"), Kind("bool"), Kind("list"), Kind("dict"), Kind("int", (), True)):
        try:
            value = parameters.parse(text, parameter(kind), "here")
        except Refused:
            continue
        assert kind.accepts(value)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_json_of_a_dict_is_that_dict(value: Any) -> None:
    assert parameters.parse(json.dumps(value), parameter(Kind("dict")), "here") == value


@pytest.mark.parametrize("value", [True, "3", 3.0, None, [3]])
def test_python_value_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(Refused):
        parameters.check(value, parameter(Kind("int")), "here")


@pytest.mark.parametrize("text", ["epochs", "=3", "04_lora.=3", ".epochs=3", "a b=3", ""])
def test_assignment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="name=value"):
        parameters.split([text])


def test_assignment_keeps_what_follows_the_first_equals_sign() -> None:
    assert parameters.split(["04_lora.s=a=b.c", "x=1"]) == [("04_lora", "s", "a=b.c"), (None, "x", "1")]


def test_fixture_notebooks_are_what_make_writes() -> None:
    nbformat = pytest.importorskip("nbformat")
    folder = Path(__file__).parent.parent / "notebooks"
    scope: dict = {"__name__": "make", "__file__": str(folder / "make.py")}
    exec(compile((folder / "make.py").read_text(encoding="utf-8"), "make.py", "exec"), scope)
    for name in scope["CODE"]:
        assert nbformat.read(str(folder / f"{name}.ipynb"), 4) == scope["notebook"](name), f"run {folder}/make.py"
    assert {path.stem for path in folder.glob("*.ipynb")} == set(scope["CODE"])
