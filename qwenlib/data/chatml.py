"""Messages and their ChatML text.

Rules of upstream (MindFormers r1.0.a): ``alpaca_converter.py`` for the user's sentence, the tokenizer's chat template
for the rendering. No system message is added where there is none, nothing stands before the first or behind the last.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Union

from qwenlib.data.alpaca import Record, check_text
from qwenlib.data.pieces import check_pieces
from qwenlib.data.reader import read_items
from qwenlib.data.tokenizer import IM_END, IM_START, SPECIAL_TOKENS
from qwenlib.errors import Refused

SYSTEM = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")
_RECORDS = {"instruction", "conversations"}

Message = Dict[str, str]

_SPELLED = re.compile(r"<\|(" + "|".join(re.escape(token[2:-2]) for token in SPECIAL_TOKENS) + r")\|>")


def user_text(instruction: str, input: str) -> str:
    """The guide's sentence: the instruction alone, or with one final "." replaced by ": " and the input."""
    if not input:
        return instruction
    return f"{instruction[:-1] if instruction.endswith('.') else instruction}: {input}"


def to_messages(record: Record, system: str = SYSTEM) -> List[Message]:
    """System, (earlier turns,) user and assistant message of an alpaca record.

    The record's own system message goes before ``system``; "" in both: none.
    """
    opening = record.system or system
    turns = [*record.history, (user_text(record.instruction, record.input), record.output)]
    found: List[Message] = [{"role": "system", "content": opening}] if opening else []
    for question, answer in turns:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return found


def render(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """ChatML: ``<|im_start|>role\\ncontent<|im_end|>\\n`` each, then, if asked, the opened assistant turn."""
    turns = [f"{IM_START}{message['role']}\n{message['content']}{IM_END}\n" for message in messages]
    return "".join(turns) + (f"{IM_START}assistant\n" if add_generation_prompt else "")


def special_in(messages: Sequence[Message]) -> int:
    """How many times contents spell a control token."""
    contents = [message["content"] for message in messages if "<|" in message["content"]]
    return sum(content.count(token) for content in contents for token in SPECIAL_TOKENS)


def escape(messages: Sequence[Message]) -> List[Message]:
    """The messages with every spelled control token taken apart: ``<|im_end|>`` becomes ``<| im_end |>``.

    So no tokenizer, upstream's included, makes a control token of what somebody wrote.
    """
    return [{"role": message["role"], "content": _SPELLED.sub(r"<| \1 |>", message["content"])} for message in messages]


def read_messages(path: Union[str, Path]) -> Iterator[List[Message]]:
    """Yield the messages of each line of a file that ``convert`` (or upstream's converter) wrote.

    Raises:
        Refused: not JSON, no ``messages``, an unknown role, a content that is no text, or one that cannot be cut into
            pieces for the tokenizer (:mod:`qwenlib.data.pieces`): with index and line.
    """
    path = Path(path)
    for item in read_items(path):
        value = item.value
        if isinstance(value, dict) and "messages" not in value and not _RECORDS.isdisjoint(value):
            keys = ", ".join(map(repr, value))
            raise Refused(
                f"{item.where(path)}: a record with {keys}, not messages. Convert the file first: "
                f"qwenlib data convert --data_path {shlex.quote(str(path))} --output_path messages.jsonl"
            )
        messages = to_checked(value, item.where(path))
        for place, message in enumerate(messages):
            check_pieces(message["content"], f"{item.where(path)}, message {place}: content")
        yield messages


def to_checked(value: Any, where: str) -> List[Message]:
    """The messages of ``{"messages": [{"role": …, "content": …}, …]}``; ``where`` is its place, for errors.

    Raises:
        Refused: no messages, an unknown role, or a content that is no text.
    """
    found = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(found, list) or not found:
        raise Refused(f'{where}: expected {{"messages": [{{"role": …, "content": …}}, …]}}.')
    for place, message in enumerate(found):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise Refused(
                f"{where}, message {place}: role must be one of {', '.join(ROLES)}, found {str(role)[:40]!r}."
            )
        check_text(message.get("content"), f"{where}, message {place}: content")
    return [{"role": message["role"], "content": message["content"]} for message in found]
