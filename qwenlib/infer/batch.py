"""Many prompts from a file, their answers into a file; it can be broken off and gone on with at any time."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from qwenlib.data import chatml
from qwenlib.data.reader import read_items
from qwenlib.errors import Refused
from qwenlib.infer.answers import AnswersFile
from qwenlib.infer.choose import Choice
from qwenlib.infer.prompt import SYSTEM, Message, exchanges, opened
from qwenlib.infer.session import Session
from qwenlib.progress import Progress

_QUESTION = ("prompt", "question", "instruction")


def read_prompts(path: Union[str, Path], system: str = SYSTEM) -> List[Dict[str, Any]]:
    """The questions of a file: ``.txt``, one a line (blank lines are passed over); else JSON Lines, or a JSON array.

    A JSON record is ``{"messages": […]}``, or has a ``prompt`` (or ``question``; or an alpaca record's ``instruction``
    and ``input``); ``id``, ``system`` and ``answer`` (the expected one; alpaca's ``output``) may stand beside it. An
    assistant's message at the end is the expected answer, too.

    Returns:
        ``[{"id": text, "messages": …, "expected": text or ""}]``; without an ``id`` it is the record's number, from 1.

    Raises:
        Refused: no such file, no question in it, a record without one, or an id that is given twice.
    """
    path = Path(path)
    if not path.is_file():
        there = "a folder" if path.is_dir() else "nothing"
        raise Refused(f"there is no file of questions {path} (found {there}). Give a .txt, JSON Lines or JSON file.")
    if path.suffix == ".txt":
        found: List[Dict[str, Any]] = [
            {"id": str(number), "messages": opened(line.strip(), system), "expected": ""}
            for number, line in enumerate(_text(path).splitlines(), start=1)
            if line.strip()
        ]
    else:
        found = [_record(item.value, item.index + 1, item.where(path), system) for item in read_items(path)]
    if not found:
        raise Refused(f"{path} holds no question.")
    seen: Dict[str, int] = {}
    for place, item in enumerate(found, start=1):
        if seen.setdefault(item["id"], place) != place:
            raise Refused(f"{path}: id {item['id']!r} is given to question {seen[item['id']]} and again to {place}.")
    return found


def run(
    choice: Choice,
    questions: Sequence[Mapping[str, Any]],
    output_file: Union[str, Path],
    *,
    folder: Union[str, Path],
    raw: Optional[bool] = None,
    overwrite: bool = False,
    session: Optional[Session] = None,
    **settings: Any,
) -> Dict[str, Any]:
    """Answer what ``output_file`` (.jsonl or .csv) has no answer to yet; each answer is on the disk when it is given.

    Columns are :data:`qwenlib.infer.answers.FIELDS`. The model is loaded in ``folder`` (unless ``session`` is given)
    only when a question is left.

    Args:
        questions: as :func:`read_prompts` gives them.
        raw: as for :meth:`qwenlib.infer.Session.chat`.
        overwrite: begin anew.
        settings: of the answers.

    Returns:
        ``{"output_file", "questions", "answered", "already", "answer_tokens", "seconds", "tokens_per_second",
        "first_token_seconds"}``: those of this call, ``first_token_seconds`` the median; ``"right", "expected"`` of
        all in the file that have an expected answer.

    Raises:
        Refused: the file is somebody else's, was made from other questions, another model or other settings, or
            another process writes it.
        WorkFailed: the model could not answer; what was answered before is in the file.
    """
    raw = choice.raw if raw is None else raw
    made_by = mark(choice, raw, settings)
    with contextlib.ExitStack() as stack:
        answers = stack.enter_context(AnswersFile(output_file, overwrite))
        answers.require({item["id"]: _asked(item["messages"]) for item in questions}, made_by)
        left = [item for item in questions if item["id"] not in answers.rows]
        new: List[Dict[str, Any]] = []
        if left:
            asked = session or stack.enter_context(choice.open(folder))
            bar = stack.enter_context(Progress(f"answer {choice.name}", len(left), "questions"))
            for item in left:
                done = asked.chat(item["messages"], raw=raw, **settings)
                row = _row(item, done, choice.name, made_by)
                answers.add(row)
                new.append(row)
                bar.advance(note=f"{row['tokens_per_second'] or 0:.0f} tokens/s")
        rows = [answers.rows[item["id"]] for item in questions]
    tokens, seconds = sum(row["answer_tokens"] for row in new), sum(row["seconds"] for row in new)
    firsts = [row["first_token_seconds"] for row in new if row["first_token_seconds"] is not None]
    judged = [row for row in rows if row["expected"]]
    return {
        "output_file": str(output_file),
        "questions": len(questions),
        "answered": len(new),
        "already": len(questions) - len(new),
        "answer_tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
        "first_token_seconds": median(firsts) if firsts else None,
        "right": sum(row["answer"] == row["expected"] for row in judged),
        "expected": len(judged),
    }


def mark(choice: Choice, raw: bool, settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that differ when the checkpoint or the settings do (the file's path, size and time)."""
    from qwenlib.weights import place

    file = place.locate(choice.checkpoint).resolve()
    status = file.stat()
    told = [str(file), status.st_size, status.st_mtime_ns, raw, sorted(settings.items())]
    told.append(repr(choice.profile.predict) + str(choice.profile.data.seq_length))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _row(item: Mapping[str, Any], done: Mapping[str, Any], model: str, made_by: str) -> Dict[str, Any]:
    figures = ("finish", "prompt_tokens", "cut_tokens", "dropped_turns", "answer_tokens", "first_token_seconds")
    return {
        "id": item["id"],
        "question": _asked(item["messages"]),
        "answer": done["text"],
        "expected": item["expected"],
        **{key: done[key] for key in (*figures, "seconds")},
        "tokens_per_second": round(done["answer_tokens"] / done["seconds"], 2) if done["seconds"] else None,
        "model": model,
        "made_by": made_by,
    }


def _asked(messages: Sequence[Message]) -> str:
    """A question as one text: what the user said, or the whole conversation as JSON when there is more to it."""
    told = [message for message in messages if message != {"role": "system", "content": SYSTEM}]
    if len(told) == 1:
        return told[0]["content"]
    return json.dumps(told, ensure_ascii=False)


def _record(value: Any, number: int, where: str, system: str) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f'{where}: expected an object such as {{"prompt": "…"}}, found {type(value).__name__}.')
    expected = value.get("answer", value.get("output", ""))
    if "messages" in value:
        messages = chatml.to_checked(value, where)
        if messages[-1]["role"] == "assistant":
            expected = messages[-1]["content"]
            messages = messages[:-1]
    else:
        question = next((value[key] for key in _QUESTION if key in value), None)
        extra = value.get("input", "")
        if not isinstance(question, str) or not question.strip() or not isinstance(extra, str):
            raise Refused(f"{where}: a record needs a prompt that is text and not empty, or messages.")
        system = value.get("system", system)
        messages = opened(chatml.user_text(question, extra), str(system))
    try:
        exchanges(messages)
        "".join(message["content"] for message in messages).encode()
    except Refused as error:
        raise Refused(f"{where}: {error}") from None
    except UnicodeEncodeError:
        raise Refused(f"{where}: half of a surrogate pair, which is no character and cannot be asked.") from None
    if not isinstance(expected, str):
        raise Refused(f"{where}: the expected answer must be text, found {expected!r:.80}.")
    return {"id": str(value.get("id", number)), "messages": messages, "expected": expected}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text (byte {error.start}).") from None
