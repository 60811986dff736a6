"""Prompts, the choice of models and the counting of answers; no process is started."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Dict

import pytest

from qwenlib import infer
from qwenlib import profile as profiles
from qwenlib.errors import Refused, WorkFailed
from qwenlib.infer import session


def test_a_chat_prompt_is_what_a_tuned_model_was_trained_on() -> None:
    pytest.importorskip("numpy")
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    opened = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert infer.chat_prompt("你好") == system + opened
    assert infer.chat_prompt("你好", system="") == opened


def test_a_session_that_cannot_begin_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Refused, match=r"there is no (checkpoint|file) "):
        infer.Session(
            profiles.load("smoke"),
            load_checkpoint=tmp_path / "none",
            vocab_file=tmp_path / "vocab.json",
            merges_file=tmp_path / "merges.txt",
            run_dir=tmp_path / "run",
        )
    assert list(tmp_path.iterdir()) == []


def test_an_end_that_the_supervisor_tells_late_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stood still for a minute between two looks: the second one counts none the less."""
    states, clock = iter(["running", "failed"]), [0.0]

    class Ended:
        def poll(self) -> Dict[str, str]:
            return {"state": next(states)}

        def wait(self) -> None:
            raise WorkFailed("rank 0 was killed by SIGKILL")

    def sleep(_seconds: float) -> None:
        clock[0] += 60

    found: Any = infer.Session.__new__(infer.Session)
    found.profile, found.name, found.raw = profiles.load("smoke"), "model", False
    found._open, found._run = True, Ended()
    monkeypatch.setattr(found, "_converse", lambda *_: iter(()), raising=False)
    monkeypatch.setattr(session.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(session.time, "sleep", sleep)
    with pytest.raises(WorkFailed, match="rank 0 was killed by SIGKILL"):
        found.ask("x")


def test_models_are_known_by_name_and_opened_by_look_up_only(tmp_path: Path) -> None:
    files = {"vocab_file": tmp_path / "v", "merges_file": tmp_path / "m", "run_dir": tmp_path / "run"}
    with infer.Models(profiles.load("smoke"), {"base": ("x", ""), "lora": ("y", "lora")}, **files) as models:
        assert (list(models), len(models), "base" in models, "full" in models) == (["base", "lora"], 2, True, False)
        with pytest.raises(Refused, match="there is no model 'full' in this run; it has: base, lora"):
            models["full"]
        with pytest.raises(Refused, match=r"there is no (checkpoint|file) "):
            models["base"]
    assert list(tmp_path.iterdir()) == []


def test_only_expected_answers_are_counted_and_only_exact_ones_are_right() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {
            "prompt": ["1", "2", "3", "4"],
            "expected": ["one", "two", "three", ""],
            "base": ["One", "two ", "", ""],
            "finetune": ["one", "two", "drei", "anything"],
        }
    )
    assert infer.exact_match(table) == {
        "base": {"right": 0, "of": 3, "share": 0.0},
        "finetune": {"right": 2, "of": 3, "share": 2 / 3},
    }
    nothing = infer.exact_match(table[table["expected"] == ""])
    assert nothing["base"] == {"right": 0, "of": 0, "share": 0.0}
