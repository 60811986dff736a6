"""What a file that is no JSON in UTF-8 may be instead, from its first bytes, and what to do about it."""

from __future__ import annotations

import codecs
from pathlib import Path

_KINDS = (
    (b"\x1f\x8b", "It is compressed with gzip: gunzip it first."),
    (b"BZh", "It is compressed with bzip2: bunzip2 it first."),
    (b"\xfd7zXZ", "It is compressed with xz: unxz it first."),
    (b"\x28\xb5\x2f\xfd", "It is compressed with zstd: unzstd it first."),
    (b"PK\x03\x04", "It is a zip archive (or an Excel sheet): unpack it first, or export the sheet as JSON."),
    (b"PAR1", "It is a Parquet table: write it as JSON Lines first (pandas: to_json, orient='records', lines=True)."),
    (codecs.BOM_UTF16_LE, "It is UTF-16: convert it with iconv -f UTF-16 -t UTF-8."),
    (codecs.BOM_UTF16_BE, "It is UTF-16: convert it with iconv -f UTF-16 -t UTF-8."),
)
_HEAD = 2**16


def advice(path: Path) -> str:
    """A sentence on what ``path`` seems to be, or "" when its bytes do not tell."""
    with open(path, "rb") as stream:
        head = stream.read(_HEAD)
    for mark, said in _KINDS:
        if head.startswith(mark):
            return said
    return "It reads as GBK: convert it with iconv -f GB18030 -t UTF-8." if _gbk(head) else ""


def _gbk(head: bytes) -> bool:
    """Whether ``head`` is text in GBK with Chinese in it: level-1 hanzi, for other bytes decode to rare ones."""
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(head)
    except UnicodeDecodeError:
        return False
    others = [sign for sign in text if ord(sign) > 127]
    common = sum(b"\xa1" <= sign.encode("gb18030")[:1] <= b"\xd7" for sign in others)
    return bool(others) and common >= 0.9 * len(others)
