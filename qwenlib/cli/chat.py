"""``qwenlib chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, List, Mapping, Optional

import typer

from qwenlib.cli import model as models
from qwenlib.cli.predict import figures
from qwenlib.errors import QwenlibError, Refused

HELP = """\
/model [NAME]      which models there are; talk to another one from now on
/system [TEXT]     show or replace the system message ("" for none)
/set [KEY=VALUE …] show or change settings: max_new_tokens, do_sample, temperature, top_k, top_p,
                   repetition_penalty, seed
/see TEXT          what the model would see for TEXT, with its token count; nothing is asked
/again             answer the last question anew
/clear             forget the conversation
/save FILE         keep it: .json (all), .jsonl (a training record), .md (to read)
/quit              end (also Ctrl-D)
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer, not the program."""


def register(app: typer.Typer) -> None:
    """Mount ``qwenlib chat``."""
    app.command("chat")(chat)


def chat(
    run_dir: Optional[Path] = models.RUN_DIR,
    model: str = models.MODEL,
    load_checkpoint: Optional[Path] = models.LOAD_CHECKPOINT,
    torch_ckpt_dir: Optional[Path] = models.TORCH_CKPT_DIR,
    vocab_file: Optional[Path] = models.VOCAB_FILE,
    merges_file: Optional[Path] = models.MERGES_FILE,
    profile: str = models.PROFILE,
    lora: bool = models.LORA,
    system: Optional[str] = models.SYSTEM,
    max_new_tokens: Optional[int] = models.LENGTH,
    do_sample: Optional[bool] = models.DO_SAMPLE,
    temperature: Optional[float] = models.TEMPERATURE,
    top_k: Optional[int] = models.TOP_K,
    top_p: Optional[float] = models.TOP_P,
    repetition_penalty: Optional[float] = models.PENALTY,
    seed: Optional[int] = models.SEED,
    setting: Optional[List[str]] = models.SETTING,
    rank_table: Optional[Path] = models.RANK_TABLE,
) -> None:
    """Talk to a model: answers stream in, Ctrl-C stops one, /help tells the commands.

    Example: qwenlib chat --run_dir runs/smoke

    Example: qwenlib chat --load_checkpoint model_dir --torch_ckpt_dir Qwen1.5-7B-Chat --profile infer_7b_910a
    """
    settings = models.answering(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    found = models.chosen(
        run_dir, model, load_checkpoint, torch_ckpt_dir, vocab_file, merges_file, profile, lora, setting
    )
    found = {name: replace(item, rank_table=rank_table) for name, item in found.items()}
    with (
        tempfile.TemporaryDirectory(prefix="qwenlib-chat-") as folder,
        contextlib.ExitStack() as last,  # a closed terminal is the end of the input and a signal, which may strike
        contextlib.ExitStack() as stack,  # as this one begins to close
    ):
        terminal = Terminal(found, Path(folder), models.system_message(system), settings, stack)
        last.callback(terminal.close)
        terminal.switch(list(found)[-1])
        terminal.run()


class Terminal:
    """Reads lines, answers them or obeys them; one model is loaded at a time."""

    def __init__(
        self,
        choices: Mapping[str, Any],
        folder: Path,
        system: str,
        settings: Dict[str, Any],
        stack: contextlib.ExitStack,
    ):
        from qwenlib.infer.talk import Talk

        self.choices, self.folder, self.settings = choices, folder, settings
        self.talk = Talk(system)
        self.session: Any = None
        stack.callback(self.close)
        self.interactive = sys.stdin.isatty()
        self.commands: Dict[str, Callable[[str], None]] = {
            "help": lambda _rest: typer.echo(HELP),
            "model": self._model,
            "system": self._system,
            "set": self._set,
            "see": self._see,
            "again": lambda _rest: self.answer(self.talk.again()),
            "clear": self._clear,
            "save": self._save,
        }

    def switch(self, name: str) -> None:
        """Load the model ``name``, after giving the memory of the one before back."""
        from qwenlib.infer import choose

        choice = choose.pick(self.choices, name)
        self.close()
        _note(f"loading {choice.name}: {choice.checkpoint} …")
        self.session = choice.open(self.folder / f"model_{len(list(self.folder.iterdir()))}")
        self.session.wait_ready()
        how = "plain text, continued as it stands (a base model)" if choice.raw else "ChatML"
        _note(f"{choice.name} is ready. It sees {how}. /help tells the commands.")

    def run(self) -> None:
        """Until /quit or the end of the input."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (input() edits its line and remembers the earlier ones)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins without it
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except KeyboardInterrupt:  # at the prompt, while something is told, or too late to stop an answer
                if not self.interactive or not self.session.alive:
                    raise
                _note("\n/quit or Ctrl-D ends.")

    def _turn(self) -> bool:
        """Read a line and do what it says; False: it was the last."""
        try:
            line = self._read()
            if line in ("/quit", "/exit"):
                return False
            self.obey(line)
        except EOFError:
            return False
        except QwenlibError as error:
            if not self.interactive or not self.session.alive:
                raise
            _note(f"{error.heading}: {error}")
        return True

    def _read(self) -> str:
        mark = "> " if self.interactive else ""
        lines = [input(mark)]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("… " if self.interactive else ""))
        return "\n".join(lines).strip()

    def obey(self, line: str) -> None:
        """A command when it begins with a slash, else a question."""
        if not line:
            return
        if not line.startswith("/"):
            self.answer(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            raise Refused(f"there is no command /{name}; /help tells them.")
        self.commands[name](rest.strip())

    def answer(self, question: str) -> None:
        """Stream the answer; Ctrl-C stops it."""
        stop = threading.Event()

        def interrupted(_number: int, _frame: Optional[FrameType]) -> None:
            stop.set()

        before = signal.signal(signal.SIGINT, interrupted)
        try:
            done = self.talk.ask(self.session, question, on_text=_print, stopped=stop.is_set, **self.settings)
        finally:
            signal.signal(signal.SIGINT, before)
        sys.stdout.write("\n")
        sys.stdout.flush()
        _note(f"[{figures(done)}]")

    def _model(self, name: str) -> None:
        if name:
            self.switch(name)
            return
        for item in self.choices.values():
            _note(f"{'*' if item.name == self.session.name else ' '} {item.name}: {item.checkpoint}")

    def _system(self, text: str) -> None:
        if text:
            self.talk.system = "" if text in ('""', "''") else text
        _note(f"system message: {self.talk.system or '(none)'}")

    def _set(self, text: str) -> None:
        import yaml

        from qwenlib.infer.settings import checked

        new: Dict[str, Any] = {}
        try:
            parts = shlex.split(text)
        except ValueError as error:
            raise Refused(f"/set {text}: {error}.") from None
        for part in parts:
            key, equals, value = part.partition("=")
            if not equals:
                raise Refused(f"/set wants KEY=VALUE, found {part!r}.")
            try:
                new[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                new[key] = value
        self.settings = checked(**{**self.settings, **new})
        now = self.session.settings(**self.settings)
        _note(", ".join(f"{key}={value}" for key, value in now.items()))

    def _see(self, text: str) -> None:
        from qwenlib.infer.prompt import left_out

        if not text:
            raise Refused("/see wants a text.")
        seen = self.talk.sees(self.session, text, **self.settings)
        typer.echo(models.printable(seen.prompt))
        context = self.session.profile.data.seq_length
        told = f"{seen.tokens} tokens of {context}, room for an answer of {seen.room}"
        lacks = left_out(seen.dropped_turns, seen.cut_tokens)
        _note(f"[{told}, {lacks}]" if lacks else f"[{told}]")

    def _clear(self, _rest: str) -> None:
        self.talk.turns.clear()
        _note("the conversation begins anew.")

    def _save(self, path: str) -> None:
        if not path:
            raise Refused("/save wants a file name.")
        _note(f"saved: {self.talk.save(path)}")

    def close(self) -> None:
        """End the process of the model; harmless when it has ended."""
        if self.session is not None:
            self.session.close()


def _print(piece: str) -> None:
    sys.stdout.write(models.printable(piece))
    sys.stdout.flush()


def _note(text: str) -> None:
    """What is not the model's goes to stderr, so that a piped stdout holds answers alone."""
    typer.echo(text, err=True)
