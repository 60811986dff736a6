"""The chat panel in a real JupyterLab, over real models whose words are known (tests/micro.py)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from micro import SENTENCE, SETTINGS, Micro

from qwenlib.data import chatml
from qwenlib.ui.words import words

pytestmark = [pytest.mark.browser, pytest.mark.stack, pytest.mark.slow]

EVIL = "<svg OnloAd=hack()>"
"""What a model says: every token comes once, so that a speaker can say it."""
USER_EVIL = "<script>hack()</script><img src=x onerror=hack()> ![p](http://127.0.0.1:9/p.png)"
CONTEXT = 1024


class Chat:
    """The panel as a user has it: by mouse and keyboard."""

    def __init__(self, notebook: Any, folder: Path, lang: str = "en", place: int = 0):
        self.notebook, self.page, self.folder, self.label = notebook, notebook.page, folder, words(lang)
        self.panel = self.page.locator(".qwenlib-chat").nth(place)
        self.panel.wait_for()
        self.box = self.panel.locator(".qwenlib-prompt textarea")
        self.answers = self.panel.locator(".qwenlib-answer")

    def button(self, key: str, **values: str) -> Any:
        return self.panel.locator("button", has_text=self.label[key].format(**values))

    def choose(self, first: str, second: str = "") -> None:
        self.panel.locator("select").nth(0).select_option(first)
        self.panel.locator("select").nth(1).select_option(second or self.label["nobody"])

    def wait_answered(self, seconds: float = 90.0) -> None:
        """Until an answer can be asked for again."""
        self.page.wait_for_function(
            "button => !button.disabled", arg=self.button("again").element_handle(), timeout=seconds * 1e3
        )

    def ask(self, text: str) -> List[str]:
        """Type ``text``, press Enter, wait; the texts of the new answers."""
        before = self.answers.count()
        self.box.fill(text)
        self.box.press("Enter")
        self.page.wait_for_function(
            "([panel, before]) => panel.querySelectorAll('.qwenlib-answer').length > before",
            arg=[self.panel.element_handle(), before],
        )
        self.wait_answered()
        return [text.strip() for text in self.answers.all_inner_texts()[before:]]


@pytest.fixture(scope="module")
def chat(open_notebook: Any, micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    folder = tmp_path_factory.mktemp("chat")
    speakers = {
        "looper": (str(micro.speaker("lamp ", ends=False)), ""),
        "evil": (str(micro.speaker(EVIL)), ""),
        "speaker": (str(micro.speaker()), ""),
    }
    settings = [*SETTINGS, f"model.max_position_embedding={CONTEXT}", f"data.seq_length={CONTEXT}"]
    settings += [f"predict.max_new_tokens={CONTEXT - 200}"]
    notebook = open_notebook(
        f"""from qwenlib import infer, ui
from qwenlib import profile as profiles
models = infer.Models(
    profiles.load("smoke", {settings!r}),
    {speakers!r},
    run_dir={str(folder)!r},
    vocab_file={str(micro.files["vocab_file"])!r},
    merges_file={str(micro.files["merges_file"])!r},
)""",
        f"ui.chat_panel(models, folder={str(folder)!r})",
        f"ui.chat_panel(models, folder={str(folder)!r}, lang='zh')",
    )
    notebook.page.evaluate("() => { window.hacked = 0; window.hack = () => { window.hacked += 1 } }")
    notebook.run_all()
    yield Chat(notebook, folder)


def harmless(chat: Chat) -> None:
    """Nothing of a text became an element, loaded something, or ran."""
    assert chat.panel.locator(".qwenlib-log").locator("script, img, svg, iframe, [onload], [onerror]").count() == 0
    assert chat.page.evaluate("window.hacked") == 0


def test_enter_sends_and_shift_enter_begins_a_new_line(chat: Chat) -> None:
    runs = chat.page.locator(".jp-InputArea-prompt").all_inner_texts()
    chat.box.click()
    chat.page.keyboard.type("two")
    chat.page.keyboard.press("Shift+Enter")
    chat.page.keyboard.type("lines")
    composing = (
        "box => box.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"
    )
    chat.box.evaluate(composing)  # Enter that chooses a Chinese word
    assert chat.box.input_value() == "two\nlines" and chat.answers.count() == 0
    chat.page.keyboard.press("Enter")
    chat.answers.first.wait_for()
    assert chat.box.input_value() == ""
    chat.wait_answered()
    assert chat.panel.locator(".qwenlib-user").inner_text() == "two\nlines"
    answer = chat.answers.inner_text()
    assert SENTENCE in answer and "10 tokens in" in answer and "tokens/s, the first after" in answer
    chat.panel.locator("summary").click()
    seen = chat.panel.locator("details pre").inner_text()
    assert seen.endswith("<|im_start|>user\ntwo\nlines<|im_end|>\n<|im_start|>assistant\n")
    assert chat.page.locator(".jp-InputArea-prompt").all_inner_texts() == runs, "no cell was run by Shift+Enter"


def test_an_answer_streams_in_and_can_be_stopped(chat: Chat) -> None:
    from playwright.sync_api import TimeoutError as PressedTooLate

    chat.choose("looper")
    chat.box.fill("Light?")
    grown = "() => [...document.querySelectorAll('.qwenlib-answer p')].pop().innerText.length"
    status = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
    begin, answer = chat.button("send"), ""
    for _ in range(10):  # on a machine that stood still the answer may end before its button is pressed
        begin.click()
        begin = chat.button("again")
        for characters in (20, 60, 120):
            chat.page.wait_for_function(f"() => ({grown})() > {characters}", timeout=90_000)
        at_work = begin.is_disabled() and chat.page.evaluate(status) == "idle"
        with contextlib.suppress(PressedTooLate):  # it cannot be pressed any more
            chat.button("stop").click(timeout=5_000)
        chat.wait_answered()
        answer = chat.answers.last.inner_text()
        if at_work and chat.label["finish_asked"] in answer:
            break
    assert chat.label["finish_asked"] in answer and "lamp lamp lamp" in answer
    length = chat.page.evaluate(grown)
    chat.page.wait_for_timeout(300)
    assert chat.page.evaluate(grown) == length < (CONTEXT - 200), "it really stopped"


def test_two_models_answer_beside_each_other_and_hostile_texts_stay_texts(chat: Chat) -> None:
    chat.choose("speaker", "evil")
    said = chat.ask(USER_EVIL)
    assert len(said) == 2 and said[0].startswith("speaker") and said[1].startswith("evil")
    assert SENTENCE in said[0] and EVIL in said[1]
    left, right = (chat.answers.nth(place).bounding_box() for place in (-2, -1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert chat.panel.locator(".qwenlib-user").last.inner_text() == USER_EVIL
    chat.page.wait_for_timeout(200)  # an image that fails does so later
    harmless(chat)
    chat.notebook.shot("chat_en", ".qwenlib-chat")
    chat.page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", USER_EVIL)
    chat.page.wait_for_function("window.hacked > 0")  # as HTML it would have run, and been seen to


def test_a_good_answer_and_the_conversation_are_saved(chat: Chat) -> None:
    chat.button("keep", name="evil").click()
    chat.panel.get_by_text("qwenlib data build").wait_for()
    (record,) = chatml.read_messages(chat.folder / "good_answers.jsonl")
    assert record[-1] == {"role": "assistant", "content": EVIL} and record[-2]["content"] == USER_EVIL
    for key, kind in (("json", "json"), ("markdown", "md")):
        chat.button(key).click()
        chat.panel.get_by_text(f".{kind}").wait_for()
    (saved,) = chat.folder.glob("chat-*.json")
    turns = json.loads(saved.read_text(encoding="utf-8"))["turns"]
    assert [list(turn["answers"]) for turn in turns] == [["speaker"], ["looper"], ["speaker", "evil"]]
    assert turns[-1]["answers"]["evil"]["text"] == EVIL
    (page,) = chat.folder.glob("chat-*.md")
    assert f"```text\n{EVIL}\n```" in page.read_text(encoding="utf-8")


def test_in_chinese_with_settings_of_its_own(chat: Chat) -> None:
    zh = Chat(chat.notebook, chat.folder, "zh", place=1)
    zh.panel.get_by_text(zh.label["settings"]).click()
    longest = zh.panel.get_by_text(zh.label["longest"])
    longest.wait_for()
    assert zh.label["default"].format(value=CONTEXT - 200) in longest.inner_text()
    zh.panel.get_by_label(zh.label["system"]).fill("请简短回答。")
    readout = zh.panel.locator(".widget-readout").first
    readout.fill("4")
    readout.press("Enter")
    (said,) = zh.ask("你好？")
    assert zh.label["finish_length"] in said and "4 个词元" in said
    zh.panel.locator("summary").click()
    assert zh.panel.locator("details pre").inner_text().startswith("<|im_start|>system\n请简短回答。<|im_end|>\n")
    zh.notebook.shot("chat_zh", ".qwenlib-chat >> nth=1")


def test_a_restarted_kernel_leaves_a_sentence(chat: Chat) -> None:
    gone, label = chat.panel.locator(".qwenlib-gone"), chat.label
    notice = chat.page.get_by_text(label["notice"])
    assert not gone.is_visible() and not notice.is_visible()
    chat.notebook.restart_kernel()
    gone.wait_for()
    assert gone.inner_text() == label["gone"] and not chat.box.is_visible()
    assert SENTENCE in chat.answers.first.inner_text(), "it can still be read"
    chat.notebook.shot("chat_restarted", ".qwenlib-chat")
    chat.notebook.command("docmanager:save")
    chat.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    chat.page.reload()
    chat.notebook.wait_idle()
    notice.wait_for()
    chat.page.get_by_text(words("zh")["notice"]).wait_for()
    chat.page.wait_for_timeout(500)
    shown = [text.strip() for text in chat.page.locator(".jp-OutputArea").all_inner_texts() if text.strip()]
    assert shown == [label["notice"], words("zh")["notice"]], "neither a dead panel nor 'Loading widget'"
    chat.notebook.shot("chat_reloaded", ".jp-Notebook")
    assert chat.notebook.complaints == []


def test_a_kernel_that_was_shut_down_leaves_the_same_sentence(chat: Chat) -> None:
    chat.notebook.run_all()
    chat.box.wait_for()
    gone = chat.panel.locator(".qwenlib-gone")
    assert not gone.is_visible()
    chat.notebook.command("kernelmenu:shutdown")
    gone.wait_for()
    assert gone.inner_text() == chat.label["gone"] and not chat.box.is_visible()
    chat.notebook.shot("chat_shut_down", ".qwenlib-chat")
