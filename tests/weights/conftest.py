"""Small Qwen1.5 folders for every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
from weights_kit import make_folder


@pytest.fixture()
def hf(tmp_path: Path) -> Callable[..., Path]:
    """``hf(dtype="bfloat16", shards=3)`` -> a folder."""

    def make(name: str = "hf", **options: Any) -> Path:
        return make_folder(tmp_path / name, **options)

    return make
