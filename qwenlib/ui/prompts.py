"""Trying prompts: a panel with several models side by side, and the table that stands for it headless."""

from __future__ import annotations

import html
import threading
from typing import Any, Dict, List, Mapping

from qwenlib.errors import QwenlibError
from qwenlib.progress import headless
from qwenlib.ui.words import words

_CELL = "padding:6px 10px;vertical-align:top;text-align:left;white-space:pre-wrap;border-bottom:1px solid #ddd"


def answers_html(table: Any) -> str:
    """A DataFrame of :func:`qwenlib.infer.compare` as an HTML table; every text is escaped.

    Answers equal to the expected one are green, others are not coloured.
    """
    head = "".join(f'<th style="{_CELL}">{html.escape(str(name))}</th>' for name in table.columns)
    lines: List[str] = []
    for row in table.to_dict("records"):
        cells = ""
        for name, value in row.items():
            right = name not in ("prompt", "expected") and value and value == row.get("expected")
            colour = ";background:#d7f0d7;color:#063" if right else ""
            cells += f'<td style="{_CELL}{colour}">{html.escape(str(value))}</td>'
        lines.append(f"<tr>{cells}</tr>")
    return (
        f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def show_answers(table: Any) -> None:
    """Display the side-by-side table (HTML in a notebook, plain text elsewhere)."""
    from IPython.display import display

    display({"text/html": answers_html(table), "text/plain": table.to_string()}, raw=True)


def prompt_panel(models: Mapping[str, Any], lang: str = "en") -> Any:
    """A panel to ask one question of one or more models; headless, a sentence instead.

    ``models``: name -> session (:class:`qwenlib.infer.Models`: loaded at its first question). Answers stream in beside
    each other; what a model says is escaped, so none of it runs as HTML.

    Returns:
        The widget (display it by leaving it last in the cell), or None when headless.
    """
    label = words(lang)
    if headless():
        print(label["headless"])
        return None
    return Panel(models, label).widget


class Panel:
    """The widgets of the prompt panel and what happens on a click."""

    def __init__(self, models: Mapping[str, Any], label: Dict[str, str]):
        import ipywidgets

        self.models, self.label = models, label
        self._stopping = threading.Event()
        self._texts: Dict[str, str] = {}
        self._notes: Dict[str, str] = {}
        self.thread: threading.Thread = threading.Thread()
        wide = ipywidgets.Layout(width="100%")
        self.prompt = ipywidgets.Textarea(
            placeholder=label["placeholder"], description=label["prompt"], rows=3, layout=wide
        )
        self.choice = ipywidgets.SelectMultiple(
            options=list(models), value=tuple(models), description=label["models"], rows=len(models) + 1
        )
        self.ask = ipywidgets.Button(description=label["answer"], button_style="primary", icon="paper-plane")
        self.stop = ipywidgets.Button(description=label["stop"], icon="stop", disabled=True)
        self.out = ipywidgets.HTML(layout=wide)
        self.ask.on_click(lambda _button: self.start())
        self.stop.on_click(lambda _button: self._stopping.set())
        buttons = ipywidgets.VBox([self.ask, self.stop])
        self.widget = ipywidgets.VBox([self.prompt, ipywidgets.HBox([self.choice, buttons]), self.out])

    def start(self) -> None:
        """Answer in the background; the page stays free. Harmless while an answer is on its way."""
        if self.thread.is_alive():
            return
        question, chosen = self.prompt.value.strip(), list(self.choice.value)
        if not question or not chosen:
            self.out.value = html.escape(self.label["empty" if not question else "choose"])
            return
        self._stopping.clear()
        self._texts = dict.fromkeys(chosen, "")
        self._notes = dict.fromkeys(chosen, "")
        self.ask.disabled, self.stop.disabled = True, False
        self.thread = threading.Thread(target=self._answer, args=(question, chosen), daemon=True)
        self.thread.start()

    def _answer(self, question: str, chosen: List[str]) -> None:
        try:
            for name in chosen:
                if self._stopping.is_set():
                    break
                self._ask_one(name, question)
        finally:
            self.ask.disabled, self.stop.disabled = False, True

    def _ask_one(self, name: str, question: str) -> None:
        def on_text(piece: str) -> None:
            self._texts[name] += piece
            self._notes[name] = ""
            self._draw()

        self._notes[name] = self.label["loading"]
        self._draw()
        try:
            done = self.models[name].ask(question, on_text=on_text, stopped=self._stopping.is_set)
        except QwenlibError as error:
            self._notes[name] = str(error)
        else:
            self._texts[name] = done["text"]
            speed = done["answer_tokens"] / max(done["seconds"], 1e-9)
            self._notes[name] = self.label["figures"].format(**done, speed=speed)
        self._draw()

    def _draw(self) -> None:
        cells = ""
        for name, text in self._texts.items():
            note = f'<div style="color:#777;font-size:85%">{html.escape(self._notes[name])}</div>'
            cells += f'<td style="{_CELL};min-width:12em"><b>{html.escape(name)}</b>\n{html.escape(text)}{note}</td>'
        self.out.value = f'<table style="width:100%"><tr>{cells}</tr></table>'
