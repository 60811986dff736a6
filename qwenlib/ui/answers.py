"""The answers of several models side by side, as a table."""

from __future__ import annotations

import html
from typing import Any, List

from qwenlib.progress import in_kernel

_CELL = "padding:6px 10px;vertical-align:top;text-align:left;white-space:pre-wrap;border-bottom:1px solid #ddd"

_NOTHING = '<span style="color:#888">(empty)</span>'
"""A model may end its answer at once; a blank cell would look like a fault of the table."""


def answers_html(table: Any) -> str:
    """A DataFrame of :func:`qwenlib.infer.compare` as an HTML table; every text is escaped.

    Answers equal to the expected one are green, others are not coloured; a text of blanks alone is told as empty.
    """
    head = "".join(f'<th style="{_CELL}">{html.escape(str(name))}</th>' for name in table.columns)
    lines: List[str] = []
    for row in table.to_dict("records"):
        cells = ""
        for name, value in row.items():
            right = name not in ("prompt", "expected") and value and value == row.get("expected")
            colour = ";background:#d7f0d7;color:#063" if right else ""
            shown = html.escape(str(value)) if str(value).strip() else _NOTHING
            cells += f'<td style="{_CELL}{colour}">{shown}</td>'
        lines.append(f"<tr>{cells}</tr>")
    return (
        f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def show_answers(table: Any) -> None:
    """Display the side-by-side table (HTML in a notebook, plain text elsewhere)."""
    if not in_kernel():
        print(table.to_string(index=False))
        return
    from IPython.display import display

    display({"text/html": answers_html(table), "text/plain": table.to_string(index=False)}, raw=True)
