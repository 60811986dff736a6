"""What a model sees: ChatML for a tuned model, plain text for a base model, and no more than fits its context."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.infer.settings import complete
from qwenlib.profile import Profile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SYSTEM = "You are a helpful assistant."

Message = Dict[str, str]


@dataclass(frozen=True)
class Seen:
    """A finished prompt. ``prompt`` is the text, control tokens included; ``tokens`` its exact length."""

    prompt: str
    tokens: int
    dropped_turns: int
    """How many of the oldest exchanges (a question and its answer) were left out."""
    cut_tokens: int
    """How many tokens at the beginning do not fit even so; the engine leaves them out."""
    room: int
    """Tokens that are left for the answer; less than ``max_new_tokens`` when nothing more could be dropped."""


def chat_prompt(text: str, system: str = SYSTEM) -> str:
    """What a ChatML-tuned model sees for one user message: system, user, and the opened assistant turn."""
    return render(opened(text, system))


def opened(text: str, system: str = SYSTEM) -> List[Message]:
    """The messages of a conversation that begins with ``text``; ``system`` "": without a system message."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def question(item: Mapping[str, Any]) -> List[Message]:
    """The conversation that a prompt of a fixed set opens: its ``messages`` up to the question, else its ``prompt``."""
    if "messages" not in item:
        return opened(item["prompt"])
    messages = [dict(message) for message in item["messages"]]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def render(messages: Sequence[Message], raw: bool = False) -> str:
    """The text of a conversation: ChatML with the assistant's turn opened, or (``raw``) as a base model reads it.

    A control token that somebody spelled is taken apart in ChatML (``<|im_end|>`` becomes ``<| im_end |>``), as in the
    training data: it cannot end a turn. Raw: what was said, a line each, without roles and system message.
    """
    from qwenlib.data import chatml

    if raw:
        return "\n".join(message["content"] for message in messages if message["role"] != "system")
    return chatml.render(chatml.escape(messages), add_generation_prompt=True)


def seen(
    profile: Profile,
    vocabulary: Tuple[Union[str, Path], Union[str, Path]],
    messages: Sequence[Message],
    raw: bool,
    max_new_tokens: Optional[int] = None,
) -> Seen:
    """:func:`fit` with the context and the longest answer of a profile; ``vocabulary``: vocab.json and merges.txt."""
    longest = complete(profile, max_new_tokens=max_new_tokens)["max_new_tokens"]
    return fit(messages, tokenizer_of(*vocabulary), profile.data.seq_length, longest, raw)


def fit(
    messages: Sequence[Message], tokenizer: Tokenizer, seq_length: int, max_new_tokens: int, raw: bool = False
) -> Seen:
    """The prompt of a conversation that ends with a question; the oldest exchanges go until an answer fits behind.

    The system message and the last question stay, whatever their length.

    Raises:
        Refused: the messages are no conversation, see :func:`exchanges`.
    """
    system, turns = exchanges(messages)

    def without(dropped: int) -> Tuple[str, int]:
        prompt = render([*system, *(message for turn in turns[dropped:] for message in turn)], raw)
        return prompt, count(prompt, tokenizer)

    dropped, most = 0, len(turns) - 1
    prompt, tokens = without(dropped)
    if tokens + max_new_tokens > seq_length:
        dropped = min(1, most)
        while dropped < most:  # the fewest that must go: the less is dropped, the longer the prompt
            middle = (dropped + most) // 2
            if without(middle)[1] + max_new_tokens <= seq_length:
                most = middle
            else:
                dropped = middle + 1
        prompt, tokens = without(dropped)
    cut = max(tokens - (seq_length - 1), 0)
    room = min(max_new_tokens, seq_length - tokens + cut)
    return Seen(prompt, tokens, dropped, cut, room)


def exchanges(messages: Sequence[Message]) -> Tuple[List[Message], List[List[Message]]]:
    """``(system message, or none; exchanges)``: each exchange begins with a user's message; the last one is open.

    Raises:
        Refused: unknown roles, contents that are no text, a system message in the middle, or no question at the end.
    """
    system: List[Message] = []
    turns: List[List[Message]] = []
    for place, message in enumerate(messages):
        role = message.get("role")
        if role not in ("system", "user", "assistant") or not isinstance(message.get("content"), str):
            raise Refused(
                f"message {place + 1}: expected a role (system, user or assistant) and a content that is text, "
                f"found {message!r:.120}."
            )
        if role == "system" and place == 0:
            system = [dict(message)]
        elif role == "user":
            turns.append([dict(message)])
        elif role == "assistant" and turns:
            turns[-1].append(dict(message))
        else:
            raise Refused(f"message {place + 1}: a conversation begins with one system message, or a user's.")
    if not turns or turns[-1][-1]["role"] != "user":
        raise Refused("the last message must be the user's: it is the question to be answered.")
    return system, turns


def count(prompt: str, tokenizer: Tokenizer) -> int:
    """Tokens of a finished prompt, counted as the engine reads it (control tokens are one each)."""
    return len(tokenizer.encode(prompt, add_special_tokens=False).ids)


def left_out(dropped_turns: int, cut_tokens: int) -> str:
    """What a prompt lacks, as a phrase; "" when it is whole."""
    parts = []
    if dropped_turns:
        oldest = "oldest exchange" if dropped_turns == 1 else f"{dropped_turns} oldest exchanges"
        parts.append(f"the {oldest} left out to fit")
    if cut_tokens:
        parts.append(f"its first {cut_tokens} tokens cut, which did not fit")
    return ", ".join(parts)


def tokenizer_of(vocab_file: Union[str, Path], merges_file: Union[str, Path]) -> Any:
    """The tokenizer of a pair of vocabulary files; read once.

    Raises:
        Refused: a file is missing or malformed.
    """
    return _tokenizer(str(Path(vocab_file).absolute()), str(Path(merges_file).absolute()))


@lru_cache(maxsize=4)
def _tokenizer(vocab_file: str, merges_file: str) -> Any:
    from qwenlib.data.tokenizer import load_tokenizer

    return load_tokenizer(vocab_file, merges_file)
