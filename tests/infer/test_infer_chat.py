"""``qwenlib chat`` in a real terminal (a pty), and through pipes; real MindFormers behind it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List

import psutil
import pytest
from micro import SENTENCE, Micro
from typer.testing import CliRunner

from qwenlib.cli.main import app
from qwenlib.cli.model import printable

pytestmark = pytest.mark.stack

SECONDS = 90


def environment() -> Dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "TERM": "dumb", "COLUMNS": "200"}


class Silent(AssertionError):
    pass


class Screen:
    """A program on a terminal of its own: what it shows, and a keyboard."""

    def __init__(self, arguments: List[str]):
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-m", "qwenlib", *arguments], environment())
        self.text = ""
        self._read_to = 0

    def type(self, keys: str) -> None:
        os.write(self.handle, keys.encode())

    def press(self, keys: str, pattern: str) -> str:
        """Type ``keys`` until ``pattern`` comes: a Ctrl-C takes away what waits in the terminal, in both directions."""
        for _ in range(SECONDS // 10):
            self.type(keys)
            with contextlib.suppress(Silent):
                return self.wait_for(pattern, 10)
        raise Silent(f"{pattern!r} never came; the screen: {self.text[-2000:]}")

    def wait_for(self, pattern: str, seconds: float = SECONDS) -> str:
        """Read until ``pattern`` comes, behind what was waited for before; everything up to it."""
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.text[self._read_to :])
            if found:
                seen = self.text[self._read_to : self._read_to + found.end()]
                self._read_to += found.end()
                return seen
            if time.monotonic() > deadline:
                raise Silent(f"{pattern!r} never came; the screen: {self.text[-2000:]}")
            if select.select([self.handle], [], [], 0.2)[0]:
                try:
                    block = os.read(self.handle, 65536)
                except OSError:  # Linux: the other end is closed
                    block = b""
                assert block, f"it ended before {pattern!r}; the screen: {self.text[-2000:]}"
                self.text += block.decode("utf-8", "replace").replace("\r\n", "\n")

    def ended(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if select.select([self.handle], [], [], 0.1)[0]:
                    os.read(self.handle, 65536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it did not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.handle)


@pytest.fixture(scope="module")
def run_dir(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every answer is known: base and fine-tuned are the speaker."""
    return micro.run(tmp_path_factory.mktemp("chat") / "run", base=micro.speaker(), finetune=micro.speaker())


@pytest.fixture
def screen(run_dir: Path) -> Iterator[Screen]:
    found = Screen(["chat", "--run_dir", str(run_dir), "--max_new_tokens", "40"])
    yield found
    found.close()


def engines(screen: Screen) -> List[psutil.Process]:
    """The processes of the program that hold a model."""
    found = psutil.Process(screen.pid).children(recursive=True)
    holders = []
    for process in found:
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "qwenlib.engine.rank" in process.cmdline():
                holders.append(process)
    return holders


def test_a_conversation_at_the_terminal(screen: Screen, tmp_path: Path) -> None:
    screen.wait_for("finetune is ready. It sees ChatML")
    screen.type("Hello\r")
    screen.wait_for(re.escape(SENTENCE) + r"\n\[prompt \d+ tokens, answer 10, .* tokens/s, ended by itself\]")
    screen.type("/see And\\\r")
    screen.type("now?\r")
    seen = screen.wait_for(r"\[\d+ tokens of 128, room for an answer of 40.*\]")
    assert "user\nAnd\nnow?<|im_end|>\n<|im_start|>assistant" in seen
    for line, said in (
        ("/nothing", "refused: there is no command /nothing"),
        ("/set temperature=0", "refused: temperature must be above 0"),
        ('/set "x', 'refused: /set "x: No closing quotation'),
        ("/set max_new_tokens=120", "max_new_tokens=120"),
        ("/save talk.txt", r"refused: talk.txt: the name must end in"),
        (f"/save {tmp_path / 'talk.json'}", "saved: "),
        (f"/save {tmp_path / 'talk.md'}", "saved: "),
        (f"/save {tmp_path / 'talk.jsonl'}", "saved: "),
        ("/model", r"\* finetune: "),
        ("/model lora", "refused: there is no model 'lora' in this run"),
        ("/again", re.escape(SENTENCE) + r"\n\[prompt"),
        ("/system S", "system message: S"),
        ("/clear", "begins anew"),
        ("/again", "refused: nothing was asked yet"),
    ):
        screen.type(line + "\r")
        screen.wait_for(said)
    kept = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [(turn["user"], turn["assistant"], turn["model"]) for turn in kept["turns"]] == [
        ("Hello", SENTENCE, "finetune")
    ]
    record = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))
    assert [message["role"] for message in record["messages"]] == ["system", "user", "assistant"]
    assert f"```text\n{SENTENCE}\n```" in (tmp_path / "talk.md").read_text(encoding="utf-8")

    screen.press("\x03", "/quit or Ctrl-D ends")
    screen.type("/model base\r")
    screen.wait_for("base is ready. It sees plain text")
    holders = engines(screen)
    assert len(holders) == 1, "the memory of the other model was given back"
    for _ in range(20):  # an answer takes a fifth of a second: on a busy machine it may end before the key is heard
        screen.press("/clear\r", "begins anew")
        screen.press("x\r", "yxyx")
        told = screen.press("\x03", r"stopped\]|/quit or Ctrl-D ends|cut at its longest\]")
        if told.endswith("stopped]"):
            break
        screen.press("\x03", "/quit or Ctrl-D ends")
    assert 4 <= int(re.findall(r"answer (\d+), [^]]*stopped", told)[-1]) < 120
    screen.type("/clear\r/set max_new_tokens=4\r")
    screen.wait_for("max_new_tokens=4")
    screen.type("x\r")
    screen.wait_for(r"yxyx\n\[prompt 1 tokens, answer 4, .*cut at its longest\]")
    screen.wait_for("> ")  # before the prompt stands, the terminal itself takes the key
    screen.type("\x04")
    assert screen.ended() == 0
    assert not psutil.wait_procs(holders, timeout=15)[1]


def test_through_pipes_stdout_holds_the_answers_alone(run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qwenlib", "chat", "--run_dir", str(run_dir)],
        input="Hello\n\nBye\n/nothing\nnever read\n",
        capture_output=True,
        text=True,
        env=environment(),
        timeout=SECONDS,
    )
    assert done.stdout == f"{SENTENCE}\n{SENTENCE}\n"
    assert done.returncode == 2 and "qwenlib: refused: there is no command /nothing" in done.stderr
    assert "Traceback" not in done.stderr


def no_model(*_: object) -> None:
    raise AssertionError("a model was loaded")


def test_predict_answers_a_file_once_and_goes_on_where_it_was_cut_off(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, answers = tmp_path / "q.txt", tmp_path / "a.jsonl"
    questions.write_text("One\nTwo\nThree\n")
    command = ["predict", "--run_dir", str(run_dir), "--input_file", str(questions), "--output_file", str(answers)]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 0, told.output
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["question"], row["answer"]) for row in rows] == [
        ("1", "One", SENTENCE),
        ("2", "Two", SENTENCE),
        ("3", "Three", SENTENCE),
    ]
    for row in rows:
        assert row["finish"] == "stop" and row["answer_tokens"] == 10 and row["prompt_tokens"] > 10
        assert 0 < row["first_token_seconds"] <= row["seconds"] < 30
        assert row["tokens_per_second"] == pytest.approx(10 / row["seconds"], rel=0.01)
    whole = answers.read_bytes()
    answers.write_bytes(whole[: whole.index(b"Three") + 2])  # as a kill leaves it
    told = CliRunner().invoke(app, [*command, "--json"])
    summary = json.loads(told.stdout[told.stdout.index("{") :])
    assert (summary["questions"], summary["already"], summary["answered"]) == (3, 2, 1)
    again = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert again[:2] == rows[:2] and again[2]["answer"] == SENTENCE
    monkeypatch.setattr("qwenlib.launch.start", no_model)
    told = CliRunner().invoke(app, command)
    assert "0 answered, 3 were already" in told.output
    told = CliRunner().invoke(app, [*command, "--max_new_tokens", "3"])
    assert "or with other settings" in str(told.exception) and len(answers.read_bytes().splitlines()) == 3


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\tc\nd\x07\x9b2J\x7f") == "a\ufffd[31mb\tc\nd\ufffd\ufffd2J\ufffd"


def test_a_closed_terminal_ends_the_model_and_leaves_nothing(screen: Screen) -> None:
    screen.wait_for("finetune is ready")
    (engine,) = engines(screen)
    folder = Path(engine.cmdline()[-1]).parents[1]
    assert folder.name.startswith("qwenlib-chat-") and folder.is_dir()
    os.close(screen.handle)
    screen.handle = os.open(os.devnull, os.O_RDONLY)
    assert screen.ended() in (0, 1, 129)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert not folder.exists()
