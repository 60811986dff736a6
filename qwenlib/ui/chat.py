"""A chat with one trained model, or with two beside each other; headless, a table of the same answers."""

from __future__ import annotations

import datetime
import html
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from qwenlib import files
from qwenlib.errors import QwenlibError, Refused
from qwenlib.infer import SYSTEM, Models
from qwenlib.progress import headless
from qwenlib.ui import chat_page
from qwenlib.ui.answers import show_answers
from qwenlib.ui.conversation import Answer, Conversation, Turn, append_record
from qwenlib.ui.sampling import Sampling
from qwenlib.ui.words import words

DRAW_SECONDS = 0.1
"""Between two pictures of a growing answer."""


def chat_panel(
    models: Models,
    lang: str = "en",
    *,
    folder: Union[str, Path] = ".",
    records: Union[str, Path, None] = None,
    prompts: Sequence[str] = (),
) -> Optional[ChatPanel]:
    """A panel to chat with ``models``, each loaded at its first question; headless, the answers to ``prompts``.

    ``folder``: where conversations are saved; ``records``: the .jsonl file that good answers are added to
    (default: ``good_answers.jsonl`` there).

    Returns:
        What shows the panel when left last in a cell. Headless None: the table of :func:`chat_table` is displayed.

    Raises:
        Refused: a language without labels, or no model.
    """
    label = words(lang)
    if not len(models):
        raise Refused("there is no model to chat with.")
    if headless():
        print(label["headless"])
        if prompts:
            show_answers(chat_table(models, prompts, lang))
        return None
    return ChatPanel(models, label, Path(folder), records)


def chat_table(
    models: Mapping[str, Any], prompts: Sequence[str], lang: str = "en", names: Sequence[str] = (), **settings: Any
) -> Any:
    """One conversation: ``prompts`` one after the other, answered by the model that the panel begins with.

    ``names``: other models; ``settings``: of :meth:`qwenlib.infer.Session.chat`, the profile's where not given.

    Returns:
        A DataFrame with one row a prompt and model: prompt, model, answer, tokens, seconds, tokens a second.
    """
    import pandas

    label, rows = words(lang), []
    for name in names or [list(models)[-1]]:
        talk = Conversation()
        for prompt in prompts:
            talk.turns.append(Turn(prompt, SYSTEM, dict(settings), {name: Answer()}))
            found = models[name].chat(talk.messages(name), **settings)
            talk.turns[-1].answers[name].text = found["text"]
            seconds = f"{found['seconds']:.2f}"
            rows.append((prompt, name, found["text"], found["answer_tokens"], seconds, f"{_speed(found):.0f}"))
    columns = ("prompt", "model", "answer", "tokens", "seconds", "speed")
    return pandas.DataFrame(rows, columns=[label[f"column_{name}"] for name in columns])


class ChatPanel:
    """The widgets of the chat and what they do. Answers come in a thread of their own: the page stays free."""

    def __init__(
        self, models: Models, label: Dict[str, str], folder: Path, records: Union[str, Path, None] = None
    ) -> None:
        import ipywidgets

        self.models, self.label, self.folder = models, label, folder
        self.records = Path(records) if records is not None else folder / "good_answers.jsonl"
        self.talk = Conversation()
        self.busy = False  # True while an answer is on its way
        self.thread = threading.Thread()
        self._stopping = threading.Event()
        self._drawn = 0.0

        def button(key: str, icon: str, act: Any, style: str = "") -> Any:
            made = ipywidgets.Button(
                description=label[key], icon=icon, button_style=style, layout=ipywidgets.Layout(width="auto")
            )
            made.on_click(lambda _button: act())
            return made

        wide, names = ipywidgets.Layout(width="98%"), list(models)
        auto, beside = {"description_width": "auto"}, ipywidgets.Layout(flex="0 0 auto")
        self.first = ipywidgets.Dropdown(options=names, value=names[-1], description=label["model"], style=auto)
        self.second = ipywidgets.Dropdown(
            options=[(label["nobody"], ""), *((name, name) for name in names)], description=label["compare"], style=auto
        )
        self.sampling = Sampling(models.choices[names[-1]].profile, label)
        settings = ipywidgets.Accordion([self.sampling.widget], titles=(label["settings"],), selected_index=None)
        self.past, self.live = ipywidgets.HTML(layout=wide), ipywidgets.HTML(layout=wide)
        # A box in reversed order stays scrolled to its end while what is in it grows.
        log = ipywidgets.Box([ipywidgets.VBox([self.past, self.live], layout=ipywidgets.Layout(flex="0 0 auto"))])
        log.layout.max_height, log.layout.overflow, log.layout.flex_flow = "30em", "auto", "column-reverse nowrap"
        self.prompt = ipywidgets.Textarea(placeholder=label["placeholder"], rows=3, layout=wide)
        self.sent = ipywidgets.Textarea()
        self.sent.observe(lambda change: self._on_sent(change["new"]), names="value")
        self.send = button("send", "paper-plane", lambda: self.say(self.prompt.value, clear=True), "primary")
        self.stop = button("stop", "stop", self._stopping.set)
        self.again = button("again", "refresh", self.answer_again)
        self.clear = button("clear", "trash", self.forget)
        self.json = button("json", "save", lambda: self.save("json"))
        self.markdown = button("markdown", "save", lambda: self.save("md"))
        self.keep = [button("keep", "thumbs-up", lambda place=place: self.keep_answer(place)) for place in (0, 1)]
        self.status = ipywidgets.HTML(layout=wide)
        self.gone = ipywidgets.HTML(chat_page.gone_html(label["gone"]))
        live = ipywidgets.VBox(
            [
                ipywidgets.HBox([self.prompt, ipywidgets.VBox([self.send, self.stop], layout=beside), self.sent]),
                ipywidgets.HBox([self.again, *self.keep, self.json, self.markdown, self.clear]),
                self.status,
            ]
        )
        live.children[1].layout.flex_flow = "row wrap"
        top = ipywidgets.VBox([ipywidgets.HBox([self.first, self.second]), settings])
        self.widget = ipywidgets.VBox([self.gone, top, log, live])
        for widget, name in (
            *((self.widget, "chat"), (self.gone, "gone"), (top, "live"), (live, "live")),
            *((self.prompt, "prompt"), (self.sent, "sent"), (self.send, "send"), (log, "log")),
        ):
            widget.add_class(f"qwenlib-{name}")
        self._buttons()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        notice = self.label["notice"]
        display({"text/html": chat_page.notice_html(notice), "text/plain": notice}, raw=True)
        display(self.widget)

    def say(self, text: str, clear: bool = False) -> None:
        """Ask the chosen models; refused with a sentence while an answer is on its way. ``clear``: the box, then."""
        if self.busy or not text.strip():
            self._tell(self.label["busy" if self.busy else "empty"])
            return
        if clear:
            self.prompt.value = ""
        self._begin(text.strip("\n"))

    def answer_again(self) -> None:
        """Ask the last question anew, with what is chosen and set now."""
        if self.busy or not self.talk.turns:
            self._tell(self.label["busy" if self.busy else "nothing"])
            return
        self._begin(self.talk.turns.pop().user)

    def forget(self) -> None:
        """Begin a new conversation."""
        if self.busy:
            self._tell(self.label["busy"])
            return
        self.talk = Conversation()
        self._draw_all()
        self._tell("")

    def keep_answer(self, place: int) -> None:
        """Add the last answer of the first (0) or second (1) model to the training records."""
        names = list(self.talk.turns[-1].answers) if self.talk.turns else []
        if self.busy or place >= len(names):
            self._tell(self.label["busy" if self.busy else "nothing"])
            return
        try:
            append_record(self.records, self.talk.record(names[place]))
        except QwenlibError as error:
            self._tell(str(error))
            return
        self.keep[place].disabled = True  # once is enough
        self._tell(self.label["kept"].format(path=self.records))

    def save(self, kind: str) -> Optional[Path]:
        """Write the conversation as ``json`` or ``md`` and say where it is."""
        if self.busy or not self.talk.turns:
            self._tell(self.label["busy" if self.busy else "nothing"])
            return None
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        path = self.folder / f"chat-{stamp}.{kind}"
        try:
            if kind == "json":
                files.write_json(path, self.talk.to_json())
            else:
                files.write_text(path, self.talk.to_markdown(self.label))
        except QwenlibError as error:
            self._tell(str(error))
            return None
        self._tell(self.label["saved"].format(path=path))
        return path

    # --- what happens in between ----------------------------------------------------------------------------------

    def _on_sent(self, value: str) -> None:
        text, mark, _ = value.rpartition(chat_page.SENT)
        if mark:
            self.say(text)

    def _begin(self, question: str) -> None:
        names = dict.fromkeys(name for name in (self.first.value, self.second.value) if name)
        answers = {name: Answer(note=self.label["waiting"]) for name in names}
        self._stopping.clear()
        self.busy = True
        self.talk.turns.append(Turn(question, self.sampling.system.value.strip(), self.sampling.read(), answers))
        self._draw_all()
        self._tell("")
        self.thread = threading.Thread(target=self._answer, args=(self.talk.turns[-1],), daemon=True)
        self.thread.start()

    def _answer(self, turn: Turn) -> None:
        try:
            for name, answer in turn.answers.items():
                if self._stopping.is_set():
                    answer.note = self.label["finish_asked"]
                    continue
                self._answer_one(name, answer, turn)
        finally:
            self.busy = False
            self._draw()
            self._buttons()

    def _answer_one(self, name: str, answer: Answer, turn: Turn) -> None:
        def on_text(piece: str) -> None:
            answer.text += piece
            answer.note = self.label["answering"]
            if time.monotonic() - self._drawn > DRAW_SECONDS:
                self._draw()

        answer.note = self.label["loading"]
        self._draw()
        try:
            found = self.models[name].chat(
                self.talk.messages(name), on_text=on_text, stopped=self._stopping.is_set, **turn.settings
            )
        except (QwenlibError, OSError) as error:
            answer.note = str(error)
        else:
            answer.text, answer.figures = found["text"], {key: found[key] for key in found if key != "text"}
            answer.note = self._note(found, turn.settings)
        self._draw()

    def _note(self, found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
        """The figures of a whole answer, and what the reader should know about it."""
        label = self.label
        first = found["first_token_seconds"]
        parts = [label["figures"].format(**{**found, "speed": _speed(found), "first": first or 0.0})]
        if not found["answer_tokens"]:
            parts = [label["nothing_said"]]
        if "seed" in settings:
            parts.append(label["seed_was"].format(seed=settings["seed"]))
        if found["finish"] in ("length", "asked"):
            parts.append(label[f"finish_{found['finish']}"])
        if found["dropped_turns"]:
            parts.append(label["dropped"].format(turns=found["dropped_turns"]))
        if found["cut_tokens"]:
            parts.append(label["cut"].format(tokens=found["cut_tokens"]))
        return " · ".join(parts)

    def _draw(self) -> None:
        """The last turn."""
        self._drawn = time.monotonic()
        self.live.value = chat_page.turn_html(self.talk.turns[-1], self.label) if self.talk.turns else ""

    def _draw_all(self) -> None:
        self._buttons()
        self.past.value = "".join(chat_page.turn_html(turn, self.label) for turn in self.talk.turns[:-1])
        self._draw()

    def _buttons(self) -> None:
        """What can be pressed now; the buttons to keep an answer bear the names of those who answered."""
        busy = self.busy
        names: List[str] = list(self.talk.turns[-1].answers) if self.talk.turns else []
        self.stop.disabled = not busy
        self.send.disabled = busy
        for button in (self.again, self.clear, self.json, self.markdown):
            button.disabled = busy or not names
        for place, button in enumerate(self.keep):
            there = place < len(names)
            button.layout.display = None if there else "none"
            button.disabled = busy or not there
            if there:
                button.description = self.label["keep"].format(name=names[place])
                button.tooltip = self.label["keep_hint"].format(path=self.records)

    def _tell(self, sentence: str) -> None:
        self.status.value = f'<div role="status">{html.escape(sentence)}</div>' if sentence else ""


def _speed(found: Mapping[str, Any]) -> float:
    return float(found["answer_tokens"]) / max(float(found["seconds"]), 1e-9)
