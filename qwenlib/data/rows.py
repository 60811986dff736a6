"""A conversation as one training row: ids, targets and attention mask, ``seq_length + 1`` long.

The network sees ``row[:-1]`` and learns ``row[1:]`` (MindFormers shifts by itself), hence the one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Iterator, List, Sequence, Tuple

import numpy

from qwenlib.data.chatml import Message, special_in
from qwenlib.data.tokenizer import END_OF_TEXT, IM_END, IM_START, encode_plain, plain, special_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORE = -100
"""The target where nothing is learned."""

LABELS = ("all", "assistant")
COLUMNS = ("input_ids", "target_ids", "attention_mask")

Row = Dict[str, numpy.ndarray]


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens, not yet cut or padded. ``learned[i]`` says whether token i is learned."""

    ids: List[int]
    learned: List[bool]
    special_tokens: int
    """Control tokens that contents spelled; they are plain text in ``ids``."""


class Encoder:
    """Turns conversations into tokens.

    ``labels="all"``: every token is learned, as upstream does. ``"assistant"``: the tokens of each answer and the
    ``<|im_end|>`` that closes it; not the role line before, and not the newline behind, which is never generated.
    """

    def __init__(self, tokenizer: Tokenizer, labels: str = "all"):
        special = special_ids(tokenizer)
        self._plain, self._all = plain(tokenizer), labels == "all"
        self._start, self._end = special[IM_START], special[IM_END]
        self.pad = special[END_OF_TEXT]
        (self._newline,) = encode_plain(tokenizer, ["\n"])
        (self._answer_head,) = encode_plain(tokenizer, ["assistant\n"])

    def encode(self, conversations: Sequence[Sequence[Message]]) -> Iterator[Encoded]:
        """Encode many conversations at once (the tokenizer works in threads)."""
        texts = [f"{message['role']}\n{message['content']}" for messages in conversations for message in messages]
        turns = iter(self._plain.encode_batch(texts, add_special_tokens=False))
        for messages in conversations:
            ids: List[int] = []
            learned: List[bool] = []
            for message in messages:
                inner = next(turns).ids
                ids += [self._start, *inner, self._end, *self._newline]
                learned += self._mask(message["role"], inner)
            yield Encoded(ids, learned, special_in(messages))

    def _mask(self, role: str, inner: List[int]) -> List[bool]:
        if self._all:
            return [True] * (len(inner) + 2 + len(self._newline))
        if role != "assistant":
            return [False] * (len(inner) + 2 + len(self._newline))
        # An answer that begins with a newline may share a token with the role line: that token is learned.
        head = _common(self._answer_head, inner)
        return [False] * (1 + head) + [True] * (len(inner) - head + 1) + [False] * len(self._newline)


def to_row(encoded: Encoded, seq_length: int, pad: int) -> Row:
    """Cut at the right or pad at the right to ``seq_length + 1``; int32 arrays under the names of COLUMNS.

    Targets are the ids where they are learned, :data:`IGNORE` elsewhere; the attention mask is 0 on padding.
    """
    width = seq_length + 1
    used = min(len(encoded.ids), width)
    ids = numpy.full(width, pad, dtype=numpy.int32)
    ids[:used] = encoded.ids[:used]
    targets = numpy.full(width, IGNORE, dtype=numpy.int32)
    targets[:used] = numpy.where(encoded.learned[:used], ids[:used], IGNORE)
    mask = numpy.zeros(width, dtype=numpy.int32)
    mask[:used] = 1
    return dict(zip(COLUMNS, (ids, targets, mask)))


def _common(left: List[int], right: List[int]) -> int:
    pairs: Iterator[Tuple[int, int]] = zip(left, right)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count
