"""Errors that are told in a sentence, at the prompt and in a notebook."""

from __future__ import annotations

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
