"""Asking trained models: a session is one loaded model in a background process."""

from qwenlib.infer.choose import sight
from qwenlib.infer.compare import compare, exact_match
from qwenlib.infer.evaluate import EVAL, evaluate, evaluation_table, held_out_figures
from qwenlib.infer.models import Models
from qwenlib.infer.prompt import SYSTEM, chat_prompt, opened, question
from qwenlib.infer.session import Session

__all__ = [
    "EVAL",
    "SYSTEM",
    "Models",
    "Session",
    "chat_prompt",
    "compare",
    "evaluate",
    "evaluation_table",
    "exact_match",
    "held_out_figures",
    "opened",
    "question",
    "sight",
]
