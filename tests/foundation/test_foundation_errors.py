"""Errors that are told in a sentence, at the prompt and in a notebook."""

from __future__ import annotations

import os
import signal
import tempfile
import time

import pytest

from qwenlib.errors import LAB_WIDTH, QwenlibError, Refused, WorkFailed


@pytest.mark.parametrize(("kind", "code", "heading"), [(Refused, 2, "refused"), (WorkFailed, 1, "failed")])
def test_each_end_has_its_exit_code_and_heading(kind: type, code: int, heading: str) -> None:
    error = kind("the file is gone.")
    assert isinstance(error, QwenlibError)
    assert (error.exit_code, error.heading) == (code, heading)


def test_a_notebook_shows_the_sentence_and_no_stack() -> None:
    InteractiveShell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    shell = InteractiveShell()
    try:
        raise Refused("there is no profile 'smoek'. Did you mean smoke?")
    except Refused as error:
        assert error._render_traceback_() == ["qwenlib refused: there is no profile 'smoek'. Did you mean smoke?"]
    shown = []
    shell._showtraceback = lambda kind, value, stack: shown.extend(stack)
    shell.run_cell("from qwenlib.errors import WorkFailed\nraise WorkFailed('rank 1 of 2 failed.')")
    assert shown == ["qwenlib failed: rank 1 of 2 failed."]


def test_a_long_sentence_is_folded_between_words_in_a_notebook() -> None:
    path = "/home/ma-user/work/" + "a-long-folder/" * 10
    error = Refused(f"{path} is none of the {'very ' * 40}many folders.")
    (shown,) = error._render_traceback_()
    assert " ".join(shown.split()) == f"qwenlib refused: {error}", "nothing is lost, no word and no path is cut"
    assert all(len(line) <= LAB_WIDTH for line in shown.splitlines() if path not in line) and "\n" in shown


def test_several_points_are_a_paragraph_at_the_prompt_and_lines_in_a_notebook() -> None:
    error = WorkFailed.listing("2 FAIL", ["4 Python: 3.12", "5 disk: full"])
    assert isinstance(error, WorkFailed) and str(error) == "2 FAIL: 4 Python: 3.12; 5 disk: full."
    assert error._render_traceback_() == ["qwenlib failed: 2 FAIL:\n  4 Python: 3.12\n  5 disk: full"]


def test_an_error_of_the_disk_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from qwenlib.cli import main as cli

    def broken(**_: object) -> None:
        raise OSError(28, "No space left on device", "/full/x")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "qwenlib: failed: /full/x: No space left on device.\n"


def test_the_interrupt_key_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from qwenlib import profile
    from qwenlib.cli import main as cli

    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, "load", pressed)
    monkeypatch.setattr("sys.argv", ["qwenlib", "config", "show"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr().err.strip() == "qwenlib: interrupted."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_begun_is_put_in_order_before_a_signal_ends_the_command(number, monkeypatch, capsys, tmp_path) -> None:
    from qwenlib.cli import main as cli

    before = signal.signal(number, signal.SIG_DFL)

    def work(**_: object) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(cli, "app", work)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == f"qwenlib: ended by {number.name}.\n"
