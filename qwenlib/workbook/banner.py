"""What happened, at the top of the executed notebook.

papermill marks the cells of a notebook whose kernel died, timed out or was interrupted as completed; here the notebook
is set right and gets a banner that leads to the cell.
"""

from __future__ import annotations

import html
from typing import Any, Dict, List, Optional

TAG = "workbook-banner"
_PAPERMILLS = "papermill-error-cell-tag"
_STYLE = "border: 2px solid #c62828; border-radius: 4px; padding: 0.6em 1em; color: #c62828;"
_HEADINGS = {
    "cell": "This stage failed in {cell}.",
    "dead_kernel": "The kernel died in {cell}.",
    "timeout": "{Cell} ran out of time.",
    "interrupt": "This stage was interrupted in {cell}.",
    "missing_meta": "This stage ended without handing anything over.",
    "no_kernel": "No kernel could be started for this stage.",
    "runner": "This stage could not be carried out.",
}


def clean(notebook: Any) -> None:
    """Remove banners of earlier runs and papermill's own error marks, in place."""
    marks = {TAG, _PAPERMILLS}
    notebook.cells = [cell for cell in notebook.cells if not marks & set(cell.metadata.get("tags", []))]


def put(notebook: Any, error: Dict[str, Any], executed_index: Optional[int]) -> None:
    """Put the banner for ``error`` on top of ``notebook``, a mark before the cell, and true states on the cells.

    Args:
        notebook: the executed notebook, changed in place.
        error: as in run.json.
        executed_index: the cell's place in ``notebook`` (None: it happened in no cell).
    """
    for index, cell in enumerate(notebook.cells):
        state = cell.metadata.get("papermill")
        if state is not None and executed_index is not None and index >= executed_index:
            state["status"] = "failed" if index == executed_index else "pending"
            state["exception"] = True if index == executed_index else None
    if "papermill" in notebook.metadata:
        notebook.metadata.papermill["exception"] = True
    if executed_index is not None:
        notebook.cells.insert(executed_index, _markdown(f'<div id="workbook-failure" style="{_STYLE}">↓ here</div>'))
    notebook.cells.insert(0, _markdown(_banner(error)))


def sentence(error: Dict[str, Any]) -> str:
    """The error in one paragraph: our own errors as they are, others with their name."""
    if error["ename"] in ("Refused", "WorkFailed") or error["kind"] != "cell":
        return str(error["evalue"])
    return f"{error['ename']}: {error['evalue']}".rstrip(": ")


def place(error: Dict[str, Any]) -> str:
    """``cell 7 (`model = load(…)`)`` for people, counted from 1 over all cells of the source notebook; or ""."""
    if error["cell_index"] is None:
        return ""
    return f"cell {error['cell_index'] + 1} (`{error['cell_source']}`)"


def _banner(error: Dict[str, Any]) -> str:
    cell = html.escape(place(error)) or "no cell"
    heading = _HEADINGS[error["kind"]].format(cell=cell, Cell=cell[:1].upper() + cell[1:])
    lines: List[str] = [f"<b>{heading}</b>", html.escape(sentence(error))]
    if error["cell_index"] is not None:
        lines.append('<a href="#workbook-failure">Go to the cell</a>; the cells after it were not run.')
    return f'<div style="{_STYLE}">' + "<br>\n".join(lines) + "</div>"


def _markdown(text: str) -> Any:
    import nbformat

    return nbformat.v4.new_markdown_cell(text, metadata={"tags": [TAG]})
