"""The chat panel without a browser: buttons are pressed by code, what would be shown is read.

What the browser and a real model do together is in tests/browser.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

pytest.importorskip("ipywidgets")
pytest.importorskip("markdown_it")
from qwenlib import profile as profiles
from qwenlib import ui
from qwenlib.data import chatml
from qwenlib.errors import Refused, WorkFailed
from qwenlib.infer.choose import Choice
from qwenlib.ui.chat import ChatPanel
from qwenlib.ui.sampling import Sampling
from qwenlib.ui.words import words

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
EN = words("en")


class Parrot:
    """A session whose answers and moments are chosen here: it waits for ``go``, may fail, ends as it is told."""

    def __init__(self, *pieces: str, finish: str = "stop", error: Optional[Exception] = None, go: bool = True):
        self.pieces, self.finish, self.error = pieces, finish, error
        self.go, self.asked = threading.Event(), threading.Event()
        self.heard: List[Any] = []
        self.settings: List[Dict[str, Any]] = []
        if go:
            self.go.set()

    def chat(
        self, messages: Any, *, on_text: Callable[[str], object] = len, stopped: Any = bool, **settings: Any
    ) -> Dict[str, Any]:
        self.heard.append(messages)
        self.settings.append(settings)
        self.asked.set()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        said, finish = "", self.finish
        for piece in self.pieces:
            if stopped():
                finish = "asked"
                break
            said += piece
            on_text(piece)
        figures = {"prompt": "seen", "prompt_tokens": 7, "cut_tokens": 0, "dropped_turns": 0, "finish": finish}
        return {"text": said, "answer_tokens": 5, "first_token_seconds": 0.25, "seconds": 0.5, **figures}


PROFILE = profiles.load("smoke")


class Parrots(Dict[str, Parrot]):
    @property
    def choices(self) -> Dict[str, Choice]:
        return {name: Choice(name, PROFILE, "", "", "") for name in self}


@pytest.fixture
def panel_of(tmp_path: Path) -> Iterator[Callable[..., ChatPanel]]:
    made: List[ChatPanel] = []

    def make(lang: str = "en", **parrots: Parrot) -> ChatPanel:
        models: Any = Parrots(parrots)
        made.append(ChatPanel(models, words(lang), tmp_path))
        return made[-1]

    yield make
    for panel in made:
        done(panel)


def done(panel: ChatPanel) -> None:
    if panel.thread.ident:
        panel.thread.join(10)
        assert not panel.thread.is_alive()


def say(panel: ChatPanel, text: str) -> None:
    panel.prompt.value = text
    panel.send.click()
    done(panel)


def pressable(panel: ChatPanel) -> str:
    names = ("send", "stop", "again", "clear", "json", "markdown")
    keep = [f"keep{place}" for place, button in enumerate(panel.keep) if not button.disabled]
    return " ".join([*(name for name in names if not getattr(panel, name).disabled), *keep])


def test_an_answer_comes_in_the_background_and_the_buttons_say_so(panel_of: Any) -> None:
    parrot = Parrot("po", "lly", go=False)
    panel = panel_of(base=parrot)
    assert pressable(panel) == "send"
    panel.prompt.value = "Who?"
    panel.send.click()
    assert parrot.asked.wait(10)
    assert pressable(panel) == "stop" and panel.prompt.value == "" and EN["loading"] in panel.live.value
    parrot.go.set()
    done(panel)
    assert pressable(panel) == "send again clear json markdown keep0"
    assert "polly" in panel.live.value and "5 tokens in 0.5 s, 10 tokens/s, the first after 0.25 s" in panel.live.value
    assert "What the model sees: 7 tokens" in panel.live.value


def test_enter_sends_what_the_script_puts_beside_the_box_even_the_same_again(panel_of: Any) -> None:
    parrot = Parrot("x")
    panel = panel_of(base=parrot)
    for number in (1, 2):
        panel.sent.value = f"a\nb\x1e{number}"
        done(panel)
    panel.sent.value = "no mark"
    assert [messages[-1]["content"] for messages in parrot.heard] == ["a\nb", "a\nb"]
    assert [message["role"] for message in parrot.heard[1]] == ["system", "user", "assistant", "user"]


def test_while_an_answer_comes_nothing_else_begins(panel_of: Any) -> None:
    parrot = Parrot("x", go=False)
    panel = panel_of(base=parrot)
    panel.say("a")
    first = panel.thread
    acts = (lambda: panel.say("b"), panel.answer_again, panel.forget, panel.json.click, panel.keep[0].click)
    for act in acts:
        panel.status.value = ""
        act()
        assert EN["busy"] in panel.status.value and panel.thread is first and len(panel.talk.turns) == 1
    parrot.go.set()


def test_stop_ends_this_answer_and_the_second_model_is_not_asked(panel_of: Any) -> None:
    one, two = Parrot("x", go=False), Parrot("y")
    panel = panel_of(one=one, two=two)
    panel.first.value, panel.second.value = "one", "two"
    panel.say("a")
    assert one.asked.wait(10)
    panel.stop.click()
    one.go.set()
    done(panel)
    assert not two.asked.is_set() and panel.live.value.count(EN["finish_asked"]) == 2
    panel.again.click()
    done(panel)
    assert two.asked.is_set() and len(panel.talk.turns) == 1, "the next question is asked of both again"


def test_two_models_have_histories_of_their_own_and_one_may_join_later(panel_of: Any) -> None:
    one, two = Parrot("1"), Parrot("2")
    panel = panel_of(one=one, two=two)
    assert (panel.first.value, panel.second.value) == ("two", "")
    say(panel, "a")
    panel.second.value = "one"
    say(panel, "b")
    assert [message["content"] for message in two.heard[-1][1:]] == ["a", "2", "b"]
    assert [message["content"] for message in one.heard[-1][1:]] == ["b"]
    panel.first.value = "one"
    say(panel, "c")
    assert len(one.heard) == 2 and len(two.heard) == 2, "the same model twice is asked once"


def test_clear_begins_anew(panel_of: Any) -> None:
    parrot = Parrot("x")
    panel = panel_of(base=parrot)
    say(panel, "a")
    panel.clear.click()
    assert panel.live.value == panel.past.value == "" and pressable(panel) == "send"
    say(panel, "b")
    assert [message["content"] for message in parrot.heard[-1][1:]] == ["b"]


def test_settings_begin_as_the_profile_says_and_are_what_the_model_gets(panel_of: Any) -> None:
    parrot = Parrot("x")
    panel = panel_of(base=parrot)
    fields, predict = panel.sampling.fields, PROFILE.predict
    assert predict is not None
    say(panel, "a")
    assert parrot.settings[-1] == {
        "max_new_tokens": predict.max_new_tokens,
        "do_sample": False,
        "repetition_penalty": predict.repetition_penalty,
    }
    assert fields["temperature"].disabled and fields["seed"].disabled
    fields["sample"].value, fields["top_k"].value, fields["seed"].value = True, 5, 17
    fields["system"].value = " Be brief. "
    assert not fields["temperature"].disabled
    say(panel, "b")
    assert parrot.settings[-1]["seed"] == 17 and parrot.settings[-1]["top_k"] == 5
    assert parrot.heard[-1][0] == {"role": "system", "content": "Be brief."} and "seed 17" in panel.live.value
    fields["seed"].value = 0
    say(panel, "c")
    assert parrot.settings[-1]["seed"] > 0 and f"seed {parrot.settings[-1]['seed']}" in panel.live.value
    panel.sampling.reset.click()
    assert {name: field.value for name, field in fields.items()} == panel.sampling.defaults


def test_every_slider_tells_its_default(panel_of: Any) -> None:
    for lang in ("en", "zh"):
        sampling = panel_of(lang, base=Parrot()).sampling
        for name in ("longest", "temperature", "top_k", "top_p", "repetition", "seed"):
            shown = words(lang)["default"].format(value=sampling.defaults[name])
            assert sampling.fields[name].description == words(lang)[name] + shown


def test_a_profile_beyond_the_usual_widens_the_sliders() -> None:
    odd = {"temperature": 3.0, "top_k": 500, "top_p": 0.01, "repetition_penalty": 0.9, "max_new_tokens": 10**6}
    profile = profiles.load("smoke", [f"predict.{key}={value}" for key, value in odd.items()])
    sampling = Sampling(profile, EN)
    shown = {name: field.value for name, field in sampling.fields.items()}
    assert shown == sampling.defaults and shown["longest"] == profile.data.seq_length - 1
    assert (shown["temperature"], shown["top_k"], shown["top_p"], shown["repetition"]) == (3.0, 500, 0.01, 0.9)


def test_without_a_question_nothing_is_asked(panel_of: Any) -> None:
    parrot = Parrot()
    panel = panel_of("zh", base=parrot)
    say(panel, " \n")
    assert words("zh")["empty"] in panel.status.value and not parrot.asked.is_set()
    for act in (panel.answer_again, panel.json.click, panel.keep[0].click):
        panel.status.value = ""
        act()
        assert words("zh")["nothing"] in panel.status.value


def test_nothing_that_a_model_its_name_or_a_user_says_becomes_html(panel_of: Any) -> None:
    panel = panel_of(**{f"m{HOSTILE}": Parrot(HOSTILE)})
    say(panel, HOSTILE)
    say(panel, "b")
    for shown in (panel.live.value, panel.past.value):
        assert "<script" not in shown and "<img" not in shown
    assert panel.past.value.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3


def test_a_model_that_fails_is_told_and_the_next_one_answers(panel_of: Any) -> None:
    broken, fine = Parrot(error=WorkFailed("rank 0 was killed <by> SIGKILL.")), Parrot("fine")
    panel = panel_of(broken=broken, fine=fine)
    panel.second.value = "broken"
    panel.first.value, panel.second.value = "broken", "fine"
    say(panel, "a")
    assert "rank 0 was killed &lt;by&gt; SIGKILL." in panel.live.value and "fine" in panel.live.value
    assert pressable(panel) == "send again clear json markdown keep0 keep1"
    panel.keep[0].click()
    assert "there is no answer of broken to keep" in panel.status.value


def test_what_was_cut_left_out_or_ended_early_is_said(panel_of: Any) -> None:
    panel = panel_of(base=Parrot("x", finish="length"))
    say(panel, "a")
    assert EN["finish_length"] in panel.live.value
    found = {**panel.talk.turns[-1].answers["base"].figures, "dropped_turns": 3, "cut_tokens": 4}
    note = panel._note(found, {})
    assert "left out, as they no longer fit: 3" in note and "cut off at the beginning of the prompt: 4" in note
    assert panel._note({**found, "answer_tokens": 0, "finish": "stop"}, {}).startswith(EN["nothing_said"] + " · ")
    panel.keep[0].click()
    assert "teach the model to break off" in panel.status.value and not panel.records.exists()


def test_good_answers_and_conversations_are_kept(panel_of: Any, tmp_path: Path) -> None:
    panel = panel_of(base=Parrot("yes"))
    say(panel, "a")
    panel.keep[0].click()
    assert panel.keep[0].disabled and "good_answers.jsonl" in panel.status.value
    (record,) = chatml.read_messages(tmp_path / "good_answers.jsonl")
    assert [message["content"] for message in record[1:]] == ["a", "yes"]
    panel.json.click()
    panel.markdown.click()
    (saved,), (page,) = tmp_path.glob("chat-*.json"), tmp_path.glob("chat-*.md")
    assert json.loads(saved.read_text(encoding="utf-8")) == panel.talk.to_json()
    assert page.read_text(encoding="utf-8") == panel.talk.to_markdown(EN) and page.name in panel.status.value
    say(panel, "b")
    assert not panel.keep[0].disabled, "another answer, another record"
    panel.folder = saved / "below a file"
    panel.json.click()
    assert "cannot be written" in panel.status.value


def test_headless_the_answers_are_a_table(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setenv("QWENLIB_HEADLESS", "1")
    models: Any = Parrots(base=Parrot("b"), tuned=Parrot("good"))
    assert ui.chat_panel(models, "zh") is None
    assert capsys.readouterr().out.strip() == words("zh")["headless"]
    assert ui.chat_panel(models, prompts=["Who?", "Really?"]) is None
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("tokens/s", "Who?", "Really?", "tuned", "good"))
    assert len(printed.strip().splitlines()) == 4 and "<t" not in printed, "outside of a notebook no HTML"
    assert [message["content"] for message in models["tuned"].heard[-1][1:]] == ["Who?", "good", "Really?"]
    assert not models["base"].asked.is_set()
    table = ui.chat_table(models, ["q"], "zh", names=["base", "tuned"], max_new_tokens=3)
    assert list(table["模型"]) == ["base", "tuned"] and models["base"].settings == [{"max_new_tokens": 3}]


def test_no_model_and_no_such_language_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENLIB_HEADLESS", "0")
    empty: Any = Parrots()
    with pytest.raises(Refused, match="there is no model to chat with"):
        ui.chat_panel(empty)
    with pytest.raises(Refused, match="lang must be one of"):
        ui.chat_panel(empty, "de")


@pytest.mark.stack
def test_a_real_model_answers_in_the_panel_and_headless(
    micro: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from micro import SENTENCE

    from qwenlib import infer

    with infer.Models(micro.profile, {"speaker": (micro.speaker(), "")}, run_dir=tmp_path, **micro.files) as models:
        panel = ChatPanel(models, words("en"), tmp_path)
        panel.say("Hello")
        panel.thread.join(120)
        assert SENTENCE in panel.live.value and "10 tokens in" in panel.live.value
        panel.keep_answer(0)
        (record,) = chatml.read_messages(panel.records)
        assert record == [*infer.opened("Hello"), {"role": "assistant", "content": SENTENCE}]
        monkeypatch.setenv("QWENLIB_HEADLESS", "1")
        assert ui.chat_panel(models, prompts=["Hello"]) is None
        assert SENTENCE in capsys.readouterr().out
