"""Conversations as training rows: ids, targets and attention mask, ``seq_length + 1`` long.

The network sees ``row[:-1]`` and learns ``row[1:]`` (MindFormers shifts by itself), hence the one more.
"""

from __future__ import annotations

import array
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Iterator, List, Sequence, Tuple

import numpy

from qwenlib.data.chatml import Message, special_in
from qwenlib.data.pieces import PIECE, groups, pieces
from qwenlib.data.tokenizer import END_OF_TEXT, IM_END, IM_START, plain, special_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORE = -100
"""The target where nothing is learned."""

LABELS = ("all", "assistant")
COLUMNS = ("input_ids", "target_ids", "attention_mask")

TOGETHER = 2**20
"""Characters that the tokenizer is given at a time, and a quarter of it of a long text: about 400 bytes each."""

Row = Dict[str, numpy.ndarray]


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens, not yet cut or padded."""

    ids: numpy.ndarray
    """int32 [tokens]"""
    learned: numpy.ndarray
    """bool [tokens]: which of them are learned."""
    answers: Sequence[Tuple[int, int]] = ()
    """Of each answer: where its first token stands, and where the ``<|im_end|>`` that closes it."""
    ends: Sequence[int] = ()
    """Where each message has ended, its newline included: the places to cut between messages."""
    special_tokens: int = 0
    """Control tokens that contents spelled; they are plain text in ``ids``."""

    def part(self, start: int, end: int) -> Encoded:
        """Tokens ``start`` to ``end`` (without it), labelled as in the whole."""
        return Encoded(self.ids[start:end], self.learned[start:end])


class Encoder:
    """Turns conversations into tokens.

    ``labels="all"``: every token is learned, as upstream does. ``"assistant"``: the tokens of each answer and the
    ``<|im_end|>`` that closes it; not the role line before, and not the newline behind, which is never generated.
    """

    def __init__(self, tokenizer: Tokenizer, labels: str = "all"):
        special = special_ids(tokenizer)
        # Normalized here, by Python as transformers' own class does it: quicker than in the tokenizer.
        self._plain, self._all = plain(tokenizer, normalize=False), labels == "all"
        self.start, self.end = special[IM_START], special[IM_END]
        self.pad = special[END_OF_TEXT]
        # One by one: the tokenizer's threads are only made when many are encoded, by the thread that does so.
        self._newline, self._answer_head = (
            self._plain.encode(text, add_special_tokens=False).ids for text in ("\n", "assistant\n")
        )
        self._system: Dict[str, Sequence[int]] = {}

    def encode(self, conversations: Sequence[Sequence[Message]]) -> Iterator[Encoded]:
        """Encode many conversations at once (the tokenizer works in threads)."""
        inner = iter(self._encode_texts(conversations))
        flat = array.array("i")  # 4 bytes an id, not 40
        spans: List[Tuple[int, int]] = []  # of answers, in the whole batch
        found: List[Tuple[int, int, List[Tuple[int, int]], List[int]]] = []
        for messages in conversations:
            begin = len(flat)
            answers: List[Tuple[int, int]] = []
            ends: List[int] = []
            for message in messages:
                ids = next(inner)
                if message["role"] == "assistant":
                    # An answer that begins with a newline may share a token with the role line: it is learned.
                    first = len(flat) + 1 + _common(self._answer_head, ids)
                    last = len(flat) + 1 + len(ids)
                    spans.append((first, last + 1))
                    answers.append((first - begin, last - begin))
                flat.append(self.start)
                flat.extend(ids)
                flat.append(self.end)
                flat.extend(self._newline)
                ends.append(len(flat) - begin)
            found.append((begin, len(flat), answers, ends))
        every = numpy.frombuffer(flat, dtype=numpy.int32)
        learned = numpy.full(len(every), self._all)
        for first, behind in spans:
            learned[first:behind] = True
        for messages, (begin, end, answers, ends) in zip(conversations, found):
            yield Encoded(every[begin:end], learned[begin:end], answers, ends, special_in(messages))

    def _encode_texts(self, conversations: Sequence[Sequence[Message]]) -> Iterator[Sequence[int]]:
        """Ids of each message's role line and content. Most system messages are alike, and encoded once."""
        texts = [
            unicodedata.normalize("NFC", f"{message['role']}\n{message['content']}")
            for messages in conversations
            for message in messages
        ]
        missing = self._encoded([text for text in texts if text not in self._system])
        known = dict(self._system)  # what this batch was split by
        for text in texts:
            ids = known.get(text)
            if ids is None:
                ids = next(missing)
                if text.startswith("system\n") and len(self._system) < 64 and len(text) < 4096:
                    self._system[text] = ids
            yield ids

    def _encoded(self, texts: List[str]) -> Iterator[Sequence[int]]:
        """Ids of each text, with no more than :data:`TOGETHER` characters in the tokenizer at a time."""
        for group in groups(texts, TOGETHER):
            if len(group[0]) > PIECE:
                ids = array.array("i")
                for part in groups(pieces(group[0]), TOGETHER // 4):
                    for encoding in self._plain.encode_batch(part, add_special_tokens=False):
                        ids.extend(encoding.ids)
                yield ids
            else:
                for encoding in self._plain.encode_batch(group, add_special_tokens=False):
                    yield encoding.ids


def to_row(encoded: Encoded, seq_length: int, pad: int) -> Row:
    """Cut at the right or pad at the right to ``seq_length + 1``; int32 arrays under the names of COLUMNS.

    Targets are the ids where they are learned, :data:`IGNORE` elsewhere; the attention mask is 0 on padding.
    """
    return _row([encoded], seq_length + 1, pad)


def to_packed_row(samples: Sequence[Encoded], seq_length: int, pad: int) -> Row:
    """Samples one behind the other in a row, as :func:`to_row`.

    The first token of a sample is never learned: it would be predicted from the sample before it.
    """
    row = _row(samples, seq_length + 1, pad)
    starts = numpy.cumsum([0] + [len(sample.ids) for sample in samples[:-1]])
    row["target_ids"][starts] = IGNORE
    return row


def _row(samples: Sequence[Encoded], width: int, pad: int) -> Row:
    ids, targets, mask = (numpy.empty(width, dtype=numpy.int32) for _ in COLUMNS)
    at = 0
    for sample in samples:
        end = min(at + len(sample.ids), width)
        ids[at:end] = sample.ids[: end - at]
        targets[at:end] = numpy.where(sample.learned[: end - at], ids[at:end], IGNORE)
        at = end
    ids[at:], targets[at:] = pad, IGNORE
    mask[:at], mask[at:] = 1, 0
    return dict(zip(COLUMNS, (ids, targets, mask)))


def _common(left: List[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    if list(right[: len(left)]) == left:
        return len(left)
    count = 0
    for one, other in zip(left, right):
        if one != other:
            break
        count += 1
    return count
