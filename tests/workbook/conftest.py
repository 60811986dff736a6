"""Fixtures of the workbook tests; what they are made of is in workbook_tools.py."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator, List

import psutil
import pytest
from workbook_tools import Command, make_book


@pytest.fixture
def book(tmp_path: Path) -> Callable[..., Path]:
    """``book("ok", "next")``: a folder with the stages 01_env, 02_weights, … made of these fixtures."""
    return lambda *names: make_book(tmp_path / "notebooks", *names)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """``command(notebooks, "--resume")`` starts a :class:`Command` in ``tmp_path/run``."""
    started: List[Command] = []

    def start(notebooks: Path, *more: str) -> Command:
        started.append(Command(notebooks, tmp_path / "run", *more))
        return started[-1]

    yield start
    for each in started:
        for process in [*each.alive(), each.process]:
            try:
                process.kill()
            except (psutil.Error, OSError):
                continue
        each.process.wait(timeout=10)
