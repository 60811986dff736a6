"""Widgets; each is built from plain functions that work headless, too."""

from qwenlib.ui.prompts import answers_html, prompt_panel, show_answers

__all__ = ["answers_html", "prompt_panel", "show_answers"]
