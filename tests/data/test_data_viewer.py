"""The viewer over a built MindRecord, with and without a front end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from qwenlib import data
from qwenlib.data.preview import text
from qwenlib.errors import Refused
from qwenlib.ui import row_html, row_viewer
from qwenlib.ui.rows import RowViewer

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def built(files_of: Dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    data.convert(data.sample_path(), folder / "m.jsonl")
    data.build(folder / "m.jsonl", folder / "t.mindrecord", seq_length=200, labels="assistant", pack=True, **files_of)
    return folder / "t.mindrecord"


def test_any_row_is_the_one_that_reading_in_order_gives(built: Path, tokenizer: Any) -> None:
    from qwenlib.data.mindrecord import row_at

    rows = list(data.read_rows(built))
    for number in (0, 7, len(rows) - 1):
        assert text(row_at(built, number), tokenizer) == text(rows[number], tokenizer)


def test_the_widget_pages_and_lists_tokens(built: Path, tokenizer: Any) -> None:
    pytest.importorskip("ipywidgets")
    viewer = RowViewer(built, tokenizer, row=2)
    assert viewer.out.value == row_html(built, tokenizer, 2)
    viewer.slider.value = 5
    assert viewer.row.value == 5
    assert viewer.out.value == row_html(built, tokenizer, 5) != row_html(built, tokenizer, 2)
    assert "<th" not in viewer.out.value
    viewer.tokens.value = True
    assert "-100" in viewer.out.value
    viewer.row.value = 10**6
    assert viewer.row.value == data.count_rows(built) - 1


def test_headless_it_is_one_row(built: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    monkeypatch.setenv("QWENLIB_HEADLESS", "1")
    shown = row_viewer(built, tokenizer, 3)
    assert shown.data == row_html(built, tokenizer, 3)
    with pytest.raises(Refused, match="there is no row"):
        row_viewer(built, tokenizer, 10**6)
