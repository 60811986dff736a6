"""Conversations that are longer than a row: cut, left out, or spread over several rows."""

from __future__ import annotations

from typing import List

import numpy

from qwenlib.data.rows import Encoded

TOO_LONG = ("truncate", "drop", "split")


def fit(sample: Encoded, width: int, too_long: str, end_token: int) -> List[Encoded]:
    """The pieces of ``sample`` that go into rows of ``width`` tokens: itself when it is short enough.

    ``truncate``: its beginning, as upstream; where the cut falls into an answer, the last token becomes the
    ``<|im_end|>`` (``end_token``) that closes it, so that stopping is still learned. ``drop``: none. ``split``: all of
    it, each token in exactly one piece, cut behind a message where one ends in the second half of the room.
    """
    if len(sample.ids) <= width:
        return [sample]
    if too_long == "drop":
        return []
    if too_long == "truncate":
        return [_truncated(sample, width, end_token)]
    pieces: List[Encoded] = []
    start = 0
    while start < len(sample.ids):
        end = min(start + width, len(sample.ids))
        if end < len(sample.ids):
            end = max((place for place in sample.ends if start + width // 2 < place <= end), default=end)
        pieces.append(sample.part(start, end))
        start = end
    return pieces


def _truncated(sample: Encoded, width: int, end_token: int) -> Encoded:
    cut = sample.part(0, width)
    last = width - 1
    for first, end in sample.answers:
        # At least one token of the answer stays: an empty answer is nothing to learn.
        if first < last < end:
            ids, learned = numpy.array(cut.ids), numpy.array(cut.learned)
            ids[last], learned[last] = end_token, True
            return Encoded(ids, learned)
    return cut
