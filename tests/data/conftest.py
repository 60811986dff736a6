"""A small vocabulary, trained once on the shipped sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from qwenlib.data.sample import sample_path
from qwenlib.data.texts import plain_texts


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json, merges.txt, tokenizer_config.json: 1,021 entries and three control tokens."""
    pytest.importorskip("tokenizers")
    from qwenlib.data.tokenizer import train_tokenizer

    return train_tokenizer(plain_texts(sample_path()), 1024, tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session")
def files_of(vocabulary: Path) -> Dict[str, Path]:
    """``vocab_file`` and ``merges_file``."""
    return {"vocab_file": vocabulary / "vocab.json", "merges_file": vocabulary / "merges.txt"}


@pytest.fixture(scope="session")
def tokenizer(files_of: Dict[str, Path]) -> Any:
    """The fast tokenizer of that vocabulary."""
    from qwenlib.data.tokenizer import load_tokenizer

    return load_tokenizer(**files_of)
