"""Asking trained models: a session is one loaded model in a background process."""

from qwenlib.infer.compare import compare, exact_match
from qwenlib.infer.models import Models
from qwenlib.infer.prompt import SYSTEM, chat_prompt, opened
from qwenlib.infer.session import Session

__all__ = ["SYSTEM", "Models", "Session", "chat_prompt", "compare", "exact_match", "opened"]
