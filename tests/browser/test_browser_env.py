"""01_env in a real JupyterLab, on a fake ModelArts root with eight cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from fake_root import fake_root

pytestmark = [pytest.mark.browser, pytest.mark.stack]

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_env" / "01_env.ipynb"


def test_the_report_and_the_topology_are_shown(open_notebook: Any, tmp_path: Path) -> None:
    root = fake_root(tmp_path, table="v1_guide_eight_cards")
    parameters, *cells = [
        cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    ]
    chosen = {"output": str(tmp_path / "run"), "profile": "lora_7b_910a", "root": str(root)}
    chosen.update(probe_imports=False, strict=False)
    given = "\n".join(f"{name} = {value!r}" for name, value in chosen.items())
    notebook = open_notebook(parameters, given, *cells, name="env")
    notebook.run_all()
    page = notebook.page
    said = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stdout']")
    said.filter(has_text="01_env took").wait_for()
    report = said.filter(has_text="profile lora_7b_910a (Ascend) on a notebook").inner_text()
    assert "[OK]   chips: 8 x 910PremiumA" in report and " FAIL, " in report
    assert max(map(len, report.splitlines())) <= 120 + len(str(root)), "a report as wide as a page"
    assert page.locator(".jp-OutputArea-output table tbody tr").count() == 16, "eight ranks, and their environments"
    picture = page.locator(".jp-OutputArea-output img")
    assert picture.get_attribute("alt") == "topology: 8 ranks on 10.0.0.1"
    page.wait_for_function("image => image.complete && image.naturalWidth > 800", arg=picture.element_handle())
    assert page.evaluate(
        "image => image.clientWidth <= image.closest('.jp-Cell').clientWidth", picture.element_handle()
    )
    notebook.shot("env_topology", ".jp-OutputArea-output img")
    assert notebook.complaints == []
