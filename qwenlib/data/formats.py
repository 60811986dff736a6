"""The kinds of record that ``convert`` understands, and the conversation that each of them holds."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from qwenlib.data import alpaca, chatml
from qwenlib.data.chatml import Message
from qwenlib.data.reader import Item
from qwenlib.errors import Refused

FORMATS = ("alpaca", "sharegpt", "messages")
_MARKS = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca"}
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""ShareGPT's ``from``, as its many descendants spell it, and the role it stands for."""


def detect(value: Any) -> Tuple[str, str]:
    """``(format, reason)`` of a record; the format is "" when no key tells it."""
    if not isinstance(value, dict):
        return "", f"a record must be an object, found {alpaca.kind(value)}"
    for key, name in _MARKS.items():
        if key in value:
            return name, f"the first record has the key {key!r}"
    keys = ", ".join(map(repr, value)) or "none"
    inner = [key for key, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
    if len(inner) == 1:
        return "", f"the file's records seem to stand under the key {inner[0]!r}; give that array alone"
    return "", (
        f"no key tells the format (looked for {', '.join(map(repr, _MARKS))}); it has {keys}. Rename its fields, or "
        f"name the format with --format {'|'.join(FORMATS)}"
    )


def to_conversation(item: Item, where: str, name: str, system: str) -> Tuple[List[Message], bool]:
    """``(messages, with_input)`` of a record in format ``name``.

    ``system`` begins a conversation that brings no system message of its own ("": none); ready-made messages stay as
    they are. ``with_input``: an alpaca record with an input.

    Raises:
        Refused: the record is not of that format: with its place, the field and what was found.
    """
    if name == "messages":
        return chatml.to_checked(item.value, where), False
    if name == "sharegpt":
        return _sharegpt(item.value, where, system), False
    record = alpaca.to_record(item, where)
    return chatml.to_messages(record, system), bool(record.input)


def _sharegpt(value: Any, where: str, system: str) -> List[Message]:
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(turns, list) or not turns:
        found = "no field 'conversations'" if turns is None else alpaca.kind(turns)
        found = "an empty array" if turns == [] else found
        raise Refused(f'{where}: conversations must be an array of {{"from": …, "value": …}}, found {found}.')
    messages = [_turn(turn, f"{where}: conversations[{place}]") for place, turn in enumerate(turns)]
    own = value.get("system")
    if own is not None:
        alpaca.check_text(own, f"{where}: system")
    if messages[0]["role"] != "system" and (own or system):
        messages.insert(0, {"role": "system", "content": own or system})
    return messages


def _turn(turn: Any, where: str) -> Dict[str, str]:
    if not isinstance(turn, dict) or "from" not in turn:
        found = f"keys {', '.join(map(repr, turn))}" if isinstance(turn, dict) else alpaca.kind(turn)
        raise Refused(f'{where} must be {{"from": …, "value": …}}, found {found}.')
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise Refused(f"{where}: from must be one of {', '.join(_SPEAKERS)}, found {str(speaker)[:40]!r}.")
    return {"role": _SPEAKERS[speaker], "content": alpaca.check_text(turn.get("value"), f"{where}: value")}
