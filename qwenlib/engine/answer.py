"""One answer from a loaded network, by MindFormers' own generation, token by token."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple


class Stopped(Exception):
    """Raised inside generation when the asker wants no more tokens."""


@dataclass(frozen=True)
class Request:
    """A question to the engine. ``prompt`` is the finished text, control tokens included."""

    prompt: str
    max_new_tokens: int = 512
    stop: Tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    send_seconds: float = 0.01
    """Text is sent on at most this often (a reader sees no difference); 0: with each token."""


class _Streamer:
    """What MindFormers' ``generate(streamer=…)`` feeds: the prompt once, then each new id."""

    def __init__(self, stops: List[int], on_token: Callable[[int], None]):
        self.stops, self.on_token = stops, on_token
        self.ids: List[int] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take the next token; ends the generation at any stop token (MindFormers itself knows one only)."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        token = int(value[0])
        if token in self.stops:
            raise Stopped
        self.ids.append(token)
        self.on_token(token)

    def end(self) -> None:
        """Nothing is left to do."""


def answer(
    network: Any, tokenizer: Any, request: Request, on_text: Optional[Callable[[str], None]] = None
) -> Dict[str, Any]:
    """Answer ``request``; ``on_text(piece)`` gets the text as it grows, never half a character.

    It is called for each token, with "" while a character is not whole; there, too, it may raise :class:`Stopped`.

    A prompt that does not fit loses its beginning (``cut_tokens`` says how many); at most ``seq_length`` tokens, the
    prompt included, come out.

    Returns:
        ``{"text", "prompt_tokens", "cut_tokens", "answer_tokens", "first_token_seconds", "seconds", "finish"}``;
        ``finish`` is ``stop`` (a stop token), ``length`` or ``asked`` (``on_text`` raised :class:`Stopped`).

    Raises:
        ValueError: a prompt that is empty or ends with the padding token, ``max_new_tokens`` below 1, or a stop text
            that is no token.
    """
    import numpy

    fast = tokenizer.fast
    ids = fast.encode(request.prompt, add_special_tokens=False).ids
    seq_length = int(network.config.seq_length)
    kept = ids[-(seq_length - 1) :]
    if not kept:
        raise ValueError("the prompt is empty")
    if kept[-1] == network.config.pad_token_id:
        raise ValueError(f"the prompt ends with {fast.id_to_token(kept[-1])}, which MindFormers takes for padding")
    if request.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {request.max_new_tokens}")
    limit = min(request.max_new_tokens, seq_length - len(kept))
    said, times, asked = 0, [time.monotonic()], False
    pending: List[int] = []  # tokens whose last character is not whole yet; what came before need not be decoded again

    def on_token(token: int) -> None:
        nonlocal said, asked
        if len(times) == 1:
            times.append(time.monotonic())
        if on_text is None:
            return
        pending.append(token)
        piece = fast.decode(pending, skip_special_tokens=False)
        if piece.endswith("\ufffd"):
            piece = ""
        else:
            pending.clear()
        said += len(piece)
        try:
            on_text(piece)
        except Stopped:
            asked = True
            raise

    streamer = _Streamer([_stop_id(fast, text) for text in request.stop], on_token)
    finish = "length"
    try:
        network.generate(
            numpy.asarray([kept], dtype=numpy.int32),
            streamer=streamer,
            max_new_tokens=limit,
            do_sample=request.do_sample,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,  # without it, generate() seeds with 0 each time
            eos_token_id=streamer.stops[0] if streamer.stops else -1,
        )
    except Stopped:
        finish = "asked" if asked else "stop"
    seconds = time.monotonic() - times[0]
    text = fast.decode(streamer.ids, skip_special_tokens=False)
    if on_text is not None and len(text) > said and not asked:
        with contextlib.suppress(Stopped):  # too late: this was the end
            on_text(text[said:])
    return {
        "text": text,
        "prompt_tokens": len(ids),
        "cut_tokens": len(ids) - len(kept),
        "answer_tokens": len(streamer.ids),
        "first_token_seconds": round(times[-1] - times[0], 4) if len(times) > 1 else None,
        "seconds": round(seconds, 4),
        "finish": finish,
    }


def _stop_id(fast: Any, text: str) -> int:
    found = fast.token_to_id(text)
    if found is None:
        raise ValueError(f"stop: {text!r} is not one token")
    return int(found)
