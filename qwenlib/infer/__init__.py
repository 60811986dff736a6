"""Asking trained models: a session is one loaded model in a background process."""

from qwenlib.infer.compare import compare, exact_match
from qwenlib.infer.models import Models
from qwenlib.infer.session import Session, chat_prompt

__all__ = ["Models", "Session", "chat_prompt", "compare", "exact_match"]
