"""A fixed set of training prompts with their answers, to count how many a model has learned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from qwenlib.data.chatml import Message, read_messages
from qwenlib.errors import Refused

_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


def prompts(messages_file: Union[str, Path], count: int = 24) -> List[Dict[str, Any]]:
    """Choose ``count`` records: evenly spaced, half of them with Chinese text where there is enough of both.

    Only conversations of one question and one answer are taken, and of equal questions none (two answers would both
    be right). Same file, same choice; fewer than ``count`` when the file has no more.

    Returns:
        ``[{"prompt": the user's text, "answer": the assistant's, "messages": all of it, "index": place in the file}]``.

    Raises:
        Refused: ``count`` below 1, the file is malformed, or no record fits.
    """
    if count < 1:
        raise Refused(f"count must be at least 1, found {count}.")
    fitting: Dict[str, Tuple[int, List[Message]]] = {}
    twice = set()
    for index, messages in enumerate(read_messages(messages_file)):
        roles = [message["role"] for message in messages if message["role"] != "system"]
        question = messages[-2]["content"] if roles == ["user", "assistant"] else ""
        if not question or not messages[-1]["content"].strip():
            continue
        if question in fitting:
            twice.add(question)
        fitting.setdefault(question, (index, messages))
    usable = [item for question, item in fitting.items() if question not in twice]
    if not usable:
        raise Refused(f"{messages_file} has no conversation of one question and one answer to ask.")
    chinese = [item for item in usable if _CHINESE.search(item[1][-2]["content"])]
    other = [item for item in usable if not _CHINESE.search(item[1][-2]["content"])]
    part = max(count - len(other), min(count // 2, len(chinese)))
    chosen = _spread(chinese, part) + _spread(other, count - part)
    return [
        {"prompt": messages[-2]["content"], "answer": messages[-1]["content"], "messages": messages, "index": index}
        for index, messages in sorted(chosen, key=lambda item: item[0])
    ]


def _spread(items: List[Any], count: int) -> List[Any]:
    count = min(count, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]
