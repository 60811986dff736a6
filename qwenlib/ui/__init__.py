"""Widgets; each is built from plain functions that work headless, too."""

from qwenlib.ui.answers import answers_html, show_answers
from qwenlib.ui.chat import chat_panel, chat_table
from qwenlib.ui.facts import facts
from qwenlib.ui.rows import row_html, row_viewer

__all__ = ["answers_html", "chat_panel", "chat_table", "facts", "row_html", "row_viewer", "show_answers"]
