"""From alpaca records to MindRecord: read, render as ChatML, tokenize, build, look at it.

convert(alpaca file) -> messages, JSON Lines -> build(vocabulary, seq_length) -> MindRecord -> read_rows
"""

from qwenlib.data.build import build
from qwenlib.data.convert import convert, convert_file
from qwenlib.data.hold_out import hold_out
from qwenlib.data.meta import check_fit, read_meta
from qwenlib.data.mindrecord import count_rows, read_rows
from qwenlib.data.prompts import prompts
from qwenlib.data.sample import sample_path
from qwenlib.data.texts import plain_texts

__all__ = [
    "build",
    "check_fit",
    "convert",
    "convert_file",
    "count_rows",
    "hold_out",
    "plain_texts",
    "prompts",
    "read_meta",
    "read_rows",
    "sample_path",
]
