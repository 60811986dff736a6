"""Widgets without a browser: buttons are pressed by code, what would be shown is read."""

from __future__ import annotations

import string
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping

import pytest

from qwenlib.errors import Refused, WorkFailed
from qwenlib.ui.words import WORDS, words

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


def placeholders(text: str) -> List[str]:
    return [f"{name}:{form}" for _, name, form, _ in string.Formatter().parse(text) if name is not None]


@pytest.mark.parametrize("lang", WORDS)
def test_every_language_has_the_same_labels(lang: str) -> None:
    assert set(words(lang)) == set(words("en"))
    for key, text in words(lang).items():
        assert text.strip() == text != "", key
        assert placeholders(text) == placeholders(words("en")[key]), key


def test_the_languages_of_the_issue_are_there_and_others_are_refused() -> None:
    assert {"en", "zh"} <= set(WORDS)
    with pytest.raises(Refused, match="lang must be one of en, zh, found 'de'"):
        words("de")


@pytest.fixture
def table() -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(
        {"prompt": [HOSTILE, "b"], "expected": ["yes", ""], "base": ["no", ""], f"tuned {HOSTILE}": ["yes", HOSTILE]}
    )


@pytest.fixture
def ui() -> Any:
    pytest.importorskip("numpy")
    from qwenlib import ui

    return ui


def test_no_text_of_a_table_becomes_html(ui: Any, table: Any) -> None:
    found = ui.answers_html(table)
    assert "<script" not in found and "<img" not in found
    assert found.count("&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&amp;&quot;") == 3
    assert found.count("<tr>") == 3 and found.count("<td") == 8 and found.count("<th ") == 4


def test_only_a_right_answer_is_marked(ui: Any, table: Any) -> None:
    cells = ui.answers_html(table).split("<td")[1:]
    marked = [cell.split(">", 1)[1].split("<", 1)[0] for cell in cells if "#d7f0d7" in cell]
    assert marked == ["yes"], "not the expected answer itself, not an empty one"


def test_headless_the_panel_is_a_sentence(ui: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("QWENLIB_HEADLESS", "1")
    assert ui.prompt_panel({}, lang="zh") is None
    assert capsys.readouterr().out.strip() == words("zh")["headless"]


class Parrot:
    """A session that answers when it is allowed to."""

    def __init__(self, pieces: List[str]):
        self.pieces, self.go, self.asked = pieces, threading.Event(), threading.Event()
        self.error: Any = None

    def ask(self, text: str, on_text: Callable[[str], None], stopped: Callable[[], bool]) -> Dict[str, Any]:
        self.asked.set()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        said = ""
        for piece in self.pieces:
            if stopped():
                break
            said += piece
            on_text(piece)
        return {"text": said, "answer_tokens": len(said), "seconds": 0.5}


@pytest.fixture
def panel_of(ui: Any) -> Iterator[Callable[[Mapping[str, Any]], Any]]:
    pytest.importorskip("ipywidgets")
    from qwenlib.ui.prompts import Panel

    made: List[Any] = []

    def make(models: Mapping[str, Any], lang: str = "en") -> Any:
        made.append(Panel(models, words(lang)))
        return made[-1]

    yield make
    for panel in made:
        panel.thread.join(10) if panel.thread.ident else None


def test_a_click_answers_in_the_background_and_the_buttons_say_so(panel_of: Any) -> None:
    parrot = Parrot(["po", "lly"])
    panel = panel_of({"base": parrot})
    assert (panel.ask.disabled, panel.stop.disabled) == (False, True)
    panel.prompt.value = " Who? "
    panel.ask.click()
    assert parrot.asked.wait(10)
    assert (panel.ask.disabled, panel.stop.disabled) == (True, False)
    assert words("en")["loading"] in panel.out.value
    parrot.go.set()
    panel.thread.join(10)
    assert (panel.ask.disabled, panel.stop.disabled) == (False, True)
    assert "polly" in panel.out.value and "5 tokens in 0.5 s, 10 tokens/s" in panel.out.value


def test_a_second_click_starts_no_second_answer(panel_of: Any) -> None:
    parrot = Parrot(["x"])
    panel = panel_of({"base": parrot})
    panel.prompt.value = "a"
    panel.ask.click()
    first = panel.thread
    panel.ask.click()
    assert panel.thread is first
    parrot.go.set()


def test_stop_ends_this_answer_and_leaves_the_other_models_out(panel_of: Any) -> None:
    one, two = Parrot(["x"] * 50), Parrot(["y"])
    panel = panel_of({"one": one, "two": two})
    panel.prompt.value = "a"
    panel.ask.click()
    assert one.asked.wait(10)
    panel.stop.click()
    one.go.set()
    panel.thread.join(10)
    assert not two.asked.is_set()
    assert "x" not in panel.out.value.split("<b>one</b>")[1].split("<div")[0]
    two.go.set()
    panel.ask.click()
    panel.thread.join(10)
    assert two.asked.is_set(), "the next question is asked of all again"


def test_only_the_chosen_models_are_asked(panel_of: Any) -> None:
    one, two = Parrot(["x"]), Parrot(["y"])
    one.go.set()
    two.go.set()
    panel = panel_of({"one": one, "two": two})
    panel.prompt.value, panel.choice.value = "a", ("two",)
    panel.ask.click()
    panel.thread.join(10)
    assert two.asked.is_set() and not one.asked.is_set()


@pytest.mark.parametrize(("prompt", "chosen", "said"), [("  ", ("one",), "empty"), ("a", (), "choose")])
def test_without_question_or_model_nothing_is_asked(panel_of: Any, prompt: str, chosen: Any, said: str) -> None:
    parrot = Parrot([])
    panel = panel_of({"one": parrot}, "zh")
    panel.prompt.value, panel.choice.value = prompt, chosen
    panel.ask.click()
    assert panel.out.value == words("zh")[said] and not parrot.asked.is_set()


def test_nothing_that_a_model_or_its_name_says_becomes_html(panel_of: Any) -> None:
    parrot = Parrot([HOSTILE])
    parrot.go.set()
    panel = panel_of({f"m{HOSTILE}": parrot})
    panel.prompt.value = "a"
    panel.ask.click()
    panel.thread.join(10)
    assert "<script" not in panel.out.value and "<img" not in panel.out.value
    assert panel.out.value.count("&lt;script&gt;") == 2


def test_a_model_that_fails_is_told_and_the_next_one_answers(panel_of: Any) -> None:
    broken, fine = Parrot([]), Parrot(["fine"])
    broken.error = WorkFailed("rank 0 was killed <by> SIGKILL.")
    broken.go.set()
    fine.go.set()
    panel = panel_of({"broken": broken, "fine": fine})
    panel.prompt.value = "a"
    panel.ask.click()
    panel.thread.join(10)
    assert "rank 0 was killed &lt;by&gt; SIGKILL." in panel.out.value and "fine" in panel.out.value
    assert (panel.ask.disabled, panel.stop.disabled) == (False, True)


@pytest.mark.stack
def test_a_real_model_answers_in_the_panel(panel_of: Any, micro: Any, tmp_path: Path) -> None:
    from micro import SENTENCE

    from qwenlib import infer

    with infer.Models(micro.profile, {"speaker": (micro.speaker(), "")}, run_dir=tmp_path, **micro.files) as models:
        assert models["speaker"].alive
        models.close()  # as 06_infer does after its table; what is asked again is loaded anew
        panel = panel_of(models)
        panel.prompt.value = "Hello"
        panel.ask.click()
        panel.thread.join(120)
        assert SENTENCE in panel.out.value and "10 tokens in" in panel.out.value
