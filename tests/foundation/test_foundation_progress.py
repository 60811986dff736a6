"""Progress: plain lines where nobody looks, a bar where somebody does."""

from __future__ import annotations

import re
import sys
import types

import pytest

from qwenlib import progress
from qwenlib.progress import Progress


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No front end, and a clock that stands still: a machine that is slow prints no other lines."""
    monkeypatch.setenv("QWENLIB_HEADLESS", "1")
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: 7.0))


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, value: str, wanted: bool) -> None:
    monkeypatch.setenv("QWENLIB_HEADLESS", value)
    assert progress.headless() is wanted


@pytest.mark.parametrize("terminal", [True, False])
def test_without_it_a_terminal_decides(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.delenv("QWENLIB_HEADLESS", raising=False)
    monkeypatch.setattr(progress, "in_kernel", lambda: False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert progress.headless() is not terminal


def test_headless_work_ends_with_one_line_on_stderr(headless: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("convert", 4, "tensors") as bar:
        for _ in range(4):
            bar.advance()
    out, err = capsys.readouterr()
    assert out == "", "stdout belongs to --json"
    assert err == "convert: 4/4 (100 %) tensors 0 s\n"


def test_in_a_kernel_a_line_is_no_error(
    headless: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "in_kernel", lambda: True)
    with Progress("convert", 4, "tensors") as bar:
        bar.advance(4)
    assert capsys.readouterr() == ("convert: 4/4 (100 %) tensors 0 s\n", ""), "front ends show stderr on red"


def test_long_headless_work_says_where_it_is(headless: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("score", 3, "rows", seconds=0.0) as bar:
        bar.advance(note="loss 2.5")
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "score: 1/3 (33 %) rows 0 s loss 2.5",
        "score: 3/3 (100 %) rows 0 s",
        "score: 3/3 (100 %) rows 0 s",
    ]


def test_work_of_unknown_length_tells_what_is_done(headless: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("build", unit="records") as bar:
        bar.advance(7)
    assert capsys.readouterr().err == "build: 7 records 0 s\n"


def test_large_numbers_are_written_out(headless: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("convert", 15_442_649_088, "bytes") as bar:
        bar.advance(12_345_678_901)
    assert capsys.readouterr().err == "convert: 12345678901/15442649088 (80 %) bytes 0 s\n"


def test_a_measure_is_rounded(headless: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("diagnose", 1637.26810741, "MiB") as bar:
        bar.advance(204.658509254)
    assert capsys.readouterr().err == "diagnose: 204.7/1637.3 (12 %) MiB 0 s\n"


def test_work_that_broke_off_does_not_claim_an_end(headless: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), Progress("convert", 4, "tensors") as bar:
        bar.advance()
        raise ValueError
    assert capsys.readouterr().err == ""


def test_a_rank_s_lines_are_passed_on_to_the_caller(headless: None, capsys: pytest.CaptureFixture[str]) -> None:
    from qwenlib.engine import single

    with Progress("score base", 1_250_000, "rows") as bar:
        bar.advance(1_250_000)
    assert single._PROGRESS.match(capsys.readouterr().err), "engine.single knows a progress line by its form"


def test_somebody_who_looks_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setenv("QWENLIB_HEADLESS", "0")
    monkeypatch.setattr(progress, "in_kernel", lambda: False)
    with Progress("convert", 4, "tensors") as bar:
        bar.advance(3, note="lm_head.weight")
        bar.advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"convert: 100%\|.+\| 4/4", err)
