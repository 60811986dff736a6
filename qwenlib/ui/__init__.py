"""Widgets; each is built from plain functions that work headless, too."""

from qwenlib.ui.prompts import answers_html, prompt_panel, show_answers
from qwenlib.ui.rows import row_html, row_viewer

__all__ = ["answers_html", "prompt_panel", "row_html", "row_viewer", "show_answers"]
