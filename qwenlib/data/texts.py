"""The plain sentences of a data set, for a tokenizer or a little pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import List, Union

from qwenlib.data.alpaca import read


def plain_texts(data_path: Union[str, Path]) -> List[str]:
    """Every distinct instruction, input and output of an alpaca file, in order: sentences, no conversation.

    Raises:
        Refused: as :func:`qwenlib.data.alpaca.read`.
    """
    texts = (text for record in read(data_path) for text in (record.instruction, record.input, record.output))
    return list(dict.fromkeys(text for text in texts if text))
