"""Paging through a built MindRecord: any row, as the model will really see it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from qwenlib.data import count_rows
from qwenlib.data.mindrecord import row_at
from qwenlib.data.preview import to_html, tokens_html
from qwenlib.errors import QwenlibError
from qwenlib.progress import headless
from qwenlib.ui.words import words

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def row_html(mindrecord: Union[str, Path], tokenizer: Tokenizer, row: int, tokens: bool = False) -> str:
    """Row ``row`` decoded, learned text on green, and with ``tokens`` each token with its id and target; escaped.

    Raises:
        Refused: there is no such row or file.
    """
    found = row_at(mindrecord, row)
    page = to_html(found, tokenizer)
    return page + tokens_html(found, tokenizer) if tokens else page


def row_viewer(mindrecord: Union[str, Path], tokenizer: Tokenizer, row: int = 0, lang: str = "en") -> Any:
    """A widget that shows any row of a MindRecord; headless, the row ``row`` alone, as HTML.

    Returns:
        Something to leave last in a cell: the widget, or ``IPython.display.HTML``.

    Raises:
        Refused: there is no such row or file.
    """
    if headless():
        from IPython.display import HTML

        return HTML(row_html(mindrecord, tokenizer, row))
    return RowViewer(mindrecord, tokenizer, row, lang).widget


class RowViewer:
    """The widgets of the viewer and what happens on a change."""

    def __init__(self, mindrecord: Union[str, Path], tokenizer: Tokenizer, row: int = 0, lang: str = "en"):
        import ipywidgets

        label = words(lang)
        self.mindrecord, self.tokenizer = mindrecord, tokenizer
        last = count_rows(mindrecord) - 1
        self.row = ipywidgets.BoundedIntText(value=row, min=0, max=last, description=label["row"])
        self.slider = ipywidgets.IntSlider(
            value=row, min=0, max=last, readout=False, continuous_update=False, layout=ipywidgets.Layout(width="50%")
        )
        self.tokens = ipywidgets.Checkbox(value=False, description=label["tokens"], indent=False)
        self.out = ipywidgets.HTML()
        ipywidgets.link((self.row, "value"), (self.slider, "value"))
        for widget in (self.row, self.tokens):
            widget.observe(lambda _change: self.draw(), names="value")
        self.widget = ipywidgets.VBox([ipywidgets.HBox([self.row, self.slider, self.tokens]), self.out])
        self.draw()

    def draw(self) -> None:
        """Show the chosen row."""
        try:
            self.out.value = row_html(self.mindrecord, self.tokenizer, self.row.value, self.tokens.value)
        except QwenlibError as error:
            self.out.value = html.escape(str(error))
