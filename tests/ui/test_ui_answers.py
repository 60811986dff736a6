"""Labels, and the table of answers: what would be shown is read."""

from __future__ import annotations

import string
from typing import Any, List

import pytest

from qwenlib.errors import Refused
from qwenlib.ui.words import WORDS, words

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


def placeholders(text: str) -> List[str]:
    return [f"{name}:{form}" for _, name, form, _ in string.Formatter().parse(text) if name is not None]


@pytest.mark.parametrize("lang", WORDS)
def test_every_language_has_the_same_labels(lang: str) -> None:
    assert set(words(lang)) == set(words("en"))
    for key, text in words(lang).items():
        assert text.strip() == text != "", key
        assert placeholders(text) == placeholders(words("en")[key]), key


def test_the_languages_of_the_issue_are_there_and_others_are_refused() -> None:
    assert {"en", "zh"} <= set(WORDS)
    with pytest.raises(Refused, match="lang must be one of en, zh, found 'de'"):
        words("de")


@pytest.fixture
def table() -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(
        {"prompt": [HOSTILE, "b"], "expected": ["yes", ""], "base": ["no", ""], f"tuned {HOSTILE}": ["yes", HOSTILE]}
    )


@pytest.fixture
def ui() -> Any:
    pytest.importorskip("numpy")
    from qwenlib import ui

    return ui


def test_no_text_of_a_table_becomes_html(ui: Any, table: Any) -> None:
    found = ui.answers_html(table)
    assert "<script" not in found and "<img" not in found
    assert found.count("&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&amp;&quot;") == 3
    assert found.count("<tr>") == 3 and found.count("<td") == 8 and found.count("<th ") == 4


def test_only_a_right_answer_is_marked(ui: Any, table: Any) -> None:
    cells = ui.answers_html(table).split("<td")[1:]
    marked = [cell.split(">", 1)[1].split("<", 1)[0] for cell in cells if "#d7f0d7" in cell]
    assert marked == ["yes"], "not the expected answer itself, not an empty one"
