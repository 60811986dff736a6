"""A conversation with one model at a time: its messages, what was said last, and the file it is kept in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

from qwenlib.errors import Refused
from qwenlib.files import write_text
from qwenlib.infer.prompt import SYSTEM, Message, Seen
from qwenlib.infer.session import Session

SUFFIXES = (".json", ".jsonl", ".md")


class Talk:
    """``talk.ask(session, "…")`` and again; the history goes to whichever session is asked next."""

    def __init__(self, system: str = SYSTEM):
        self.system = system
        self.turns: List[Dict[str, Any]] = []
        """``{"user", "assistant", "model", "figures"}`` each."""

    def messages(self, question: Optional[str] = None) -> List[Message]:
        """All that was said, behind the system message; with ``question`` behind it."""
        found: List[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            found.append({"role": "user", "content": turn["user"]})
            found.append({"role": "assistant", "content": turn["assistant"]})
        return found if question is None else [*found, {"role": "user", "content": question}]

    def ask(
        self,
        session: Session,
        question: str,
        on_text: Optional[Callable[[str], object]] = None,
        stopped: Optional[Callable[[], bool]] = None,
        **settings: Any,
    ) -> Dict[str, Any]:
        """Answer ``question`` and keep both; an answer that was stopped before its first word is not kept.

        Returns and raises as :meth:`qwenlib.infer.Session.chat`.
        """
        done = session.chat(self.messages(question), on_text=on_text, stopped=stopped, **settings)
        if done["text"]:
            figures = {key: value for key, value in done.items() if key not in ("text", "prompt")}
            self.turns.append({"user": question, "assistant": done["text"], "model": session.name, "figures": figures})
        return done

    def again(self) -> str:
        """Forget the last answer and return its question.

        Raises:
            Refused: nothing was asked yet.
        """
        if not self.turns:
            raise Refused("nothing was asked yet.")
        return str(self.turns.pop()["user"])

    def sees(self, session: Session, question: str, **settings: Any) -> Seen:
        """The prompt that ``question`` would become."""
        return session.sees(self.messages(question), max_new_tokens=settings.get("max_new_tokens"))

    def save(self, path: Union[str, Path]) -> Path:
        """Write the conversation: all of it as .json, as a training record (.jsonl, messages), or to read (.md).

        Raises:
            Refused: nothing was said yet, or the name ends otherwise.
        """
        path = Path(path).expanduser()
        if path.suffix not in SUFFIXES:
            raise Refused(f"{path}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
        if not self.turns:
            raise Refused("nothing was said yet.")
        if path.suffix == ".json":
            text = json.dumps({"system": self.system, "turns": self.turns}, indent=2, ensure_ascii=False) + "\n"
        elif path.suffix == ".jsonl":
            text = json.dumps({"messages": self.messages()}, ensure_ascii=False) + "\n"
        else:
            parts = [f"**{message['role']}**\n\n{fenced(message['content'])}" for message in self.messages()]
            text = "\n\n".join(parts) + "\n"
        write_text(path, text)
        return path


def fenced(text: str) -> str:
    """``text`` as a Markdown block in which nothing of it is markup."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
