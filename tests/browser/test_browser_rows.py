"""The row viewer of 03_data in a real JupyterLab."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.stack]


def test_the_row_viewer_pages_through_a_mindrecord(open_notebook: Any, micro: Any) -> None:
    notebook = open_notebook(
        f"""from qwenlib import ui
from qwenlib.data.tokenizer import load_tokenizer
tokenizer = load_tokenizer({str(micro.files["vocab_file"])!r}, {str(micro.files["merges_file"])!r})
ui.row_viewer({str(micro.mindrecord)!r}, tokenizer, row=1, lang="zh")"""
    )
    notebook.run_all()
    page = notebook.page
    shown = page.locator(".jp-OutputArea-output .widget-html-content").first
    shown.wait_for()
    before = shown.inner_text()
    assert "<|im_start|>" in before
    number = page.locator(".jp-OutputArea-output input[type=number]")
    number.fill("3")
    number.press("Enter")
    page.wait_for_function("([node, before]) => node.innerText !== before", arg=[shown.element_handle(), before])
    page.get_by_label("逐个词元").check()
    page.locator(".jp-OutputArea-output .widget-html-content td").first.wait_for()
    notebook.shot("rows_zh", ".jp-OutputArea-executeResult")
    assert notebook.complaints == []
