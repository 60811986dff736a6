"""A conversation with one or two models: what each of them was told, and what is kept of it in files."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Union

from qwenlib import files
from qwenlib.data import chatml
from qwenlib.errors import Refused
from qwenlib.ui.markdown import is_plain


@dataclass
class Answer:
    """What a model said. ``figures``: as :meth:`qwenlib.infer.Session.chat` returned them, {} before it is whole."""

    text: str = ""
    note: str = ""
    figures: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Turn:
    """A question, and its answer from each model that was asked."""

    user: str
    system: str
    settings: Dict[str, Any]
    answers: Dict[str, Answer]


class Conversation:
    """The turns, oldest first. Each model has a history of its own: the questions that it was asked, its answers."""

    def __init__(self) -> None:
        self.turns: List[Turn] = []

    def messages(self, name: str) -> List[Dict[str, str]]:
        """What the model ``name`` is told for the last turn: its history and the question, behind the system prompt.

        An earlier turn without an answer from it (it failed, was not asked, or was stopped at once) is left out.
        """
        *earlier, last = self.turns
        found = [{"role": "system", "content": last.system}] if last.system else []
        for turn in earlier:
            answer = turn.answers.get(name)
            if answer is not None and answer.text:
                found += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": answer.text}]
        return [*found, {"role": "user", "content": last.user}]

    def record(self, name: str) -> Dict[str, Any]:
        """The last answer of ``name``, with what led to it, as a training record in the messages format.

        Control tokens that somebody spelled are taken apart, as ``qwenlib data convert`` does.

        Raises:
            Refused: there is no such answer, or it was broken off: a model would learn to break off.
        """
        answer = self.turns[-1].answers.get(name) if self.turns else None
        if answer is None or not answer.text.strip():
            raise Refused(f"there is no answer of {name} to keep.")
        if answer.figures.get("finish") != "stop":
            raise Refused(
                f"this answer of {name} did not come to its end; a record of it would teach the model to break off. "
                "Let it answer again, with a greater longest answer if need be."
            )
        messages = [*self.messages(name), {"role": "assistant", "content": answer.text}]
        return {"messages": chatml.escape(messages)}

    def to_json(self) -> Dict[str, Any]:
        """``{"turns": [{"user", "system", "settings", "answers": {name: {"text", "note", "figures"}}}]}``."""
        return {"turns": [asdict(turn) for turn in self.turns]}

    def to_markdown(self, label: Mapping[str, str]) -> str:
        """The conversation to read; a text that is not harmless Markdown stands in a block of code."""
        parts, system = [f"# {label['conversation']}"], ""
        for turn in self.turns:
            if turn.system != system:
                system = turn.system
                parts += [f"## {label['system']}", _quoted(system)]
            parts += [f"## {label['you']}", _quoted(turn.user)]
            for name, answer in turn.answers.items():
                parts += [f"## {name}", _quoted(answer.text)]
                parts += [f"*{answer.note}*"] if answer.note and is_plain(answer.note) else []
        return "\n\n".join(parts) + "\n"


def append_record(path: Union[str, Path], record: Mapping[str, Any]) -> int:
    """Add a line to a file of training records, or begin it; the file is the old or the new one at any instant.

    Returns:
        How many bytes the file has now.

    Raises:
        Refused: the file holds something else than messages records, a line each.
        WorkFailed: the place cannot be written to, or the disk is full; the file is as it was.
    """
    path = Path(path)
    chatml.to_checked(dict(record), "the new record")
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with files.atomic_path(path) as part:
        with open(part, "wb") as out:
            if path.exists():
                _check(path)
                with open(path, "rb") as old:
                    shutil.copyfileobj(old, out, 2**20)
                if out.tell() and not _ends_line(path):
                    out.write(b"\n")
            out.write(line)
        return part.stat().st_size


def _check(path: Path) -> None:
    if not path.is_file():
        raise Refused(f"{path} is a folder; name a .jsonl file for the training records.")
    if path.stat().st_size == 0:
        return
    with open(path, "rb") as stream:
        first = stream.readline(2**26)
    try:
        chatml.to_checked(json.loads(first), "its first line")
    except (ValueError, Refused) as error:
        raise Refused(
            f"{path} does not hold messages records, one a line, so nothing was added ({error}). Name another file."
        ) from error


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _quoted(text: str) -> str:
    if is_plain(text):
        return text
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
