"""The program of a rank: what it says when it fails, and what it never loads on Ascend."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from qwenlib.engine import rank
from qwenlib.engine.job import Job
from qwenlib.errors import Refused, WorkFailed

ROOT = Path(__file__).resolve().parents[2]
UP_TO_THE_IMPORT = """
import importlib.abc, sys
from qwenlib.engine import job, rank

class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mindformers", "mindspore"):
            raise ImportError("as far as this test goes")

sys.meta_path.insert(0, Stop())
try:
    rank.prepare(job.load(sys.argv[1]))
except ImportError as error:
    assert str(error) == "as far as this test goes"
print(sorted(name for name in sys.modules if name.startswith("qwenlib.engine")))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rank's working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(folder: Path, device_target: str = "CPU") -> Path:
    return Job("score", device_target, {}, "/x.ckpt", str(folder / "r.json")).save(folder / "job.json")


@pytest.mark.parametrize(("device_target", "wanted"), [("Ascend", False), ("CPU", True)])
def test_the_cpu_patches_are_loaded_for_a_cpu_and_never_for_ascend(
    here: Path, device_target: str, wanted: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_THE_IMPORT, str(save(here, device_target))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert ("qwenlib.engine.compat" in ast.literal_eval(done.stdout)) is wanted


def test_only_one_line_of_the_package_imports_the_patches() -> None:
    found: List[Tuple[str, int]] = []
    for path in sorted((ROOT / "qwenlib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            module = getattr(node, "module", "") or ""
            if isinstance(node, (ast.Import, ast.ImportFrom)) and any("compat" in name for name in [module, *names]):
                found.append((path.name, node.lineno))
    assert [name for name, _ in found] == ["rank.py"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("shapes differ"), 1),
        (WorkFailed("the weights did not load."), 1),
        (Refused("there is no data."), 2),
        (KeyboardInterrupt(), 1),
        (MemoryError(), 1),
    ],
)
def test_a_failure_leaves_error_json_and_the_exit_code(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def run(job: Any) -> None:
        raise error

    monkeypatch.setattr(rank, "run", run)
    before = time.time()
    assert rank.main([str(save(here))]) == code
    found = json.loads((here / "error.json").read_text())
    assert set(found) == {"type", "message", "stack", "time", "exit_code"}
    assert found["type"] == type(error).__name__ and found["exit_code"] == code
    assert found["message"] == (str(error) or type(error).__name__)
    assert "in run" in found["stack"] and before <= found["time"] <= time.time()
    said = capsys.readouterr().err
    assert str(error) in said
    assert ("Traceback" in said) is (not isinstance(error, (Refused, WorkFailed)))


def test_success_takes_an_old_error_away(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "error.json").write_text("{}")
    monkeypatch.setattr(rank, "run", lambda job: None)
    assert rank.main([str(save(here))]) == 0
    assert not (here / "error.json").exists()


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_a_wrong_command_line_is_refused(here: Path, capsys: pytest.CaptureFixture[str], arguments: List[str]) -> None:
    assert rank.main(arguments) == 2
    assert "usage: python -m qwenlib.engine.rank JOB.json" in capsys.readouterr().err


def test_as_a_program_it_says_a_sentence_and_exits_with_2(here: Path) -> None:
    (here / "job.json").write_text('{"task": ')
    done = subprocess.run(
        [sys.executable, "-m", "qwenlib.engine.rank", "job.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qwenlib: refused: job.json, line 1, column 10: not JSON")
    assert json.loads((here / "error.json").read_text())["type"] == "Refused"


def test_an_error_that_finds_no_room_for_its_file_is_printed_all_the_same(tmp_path, monkeypatch, capsys) -> None:
    from qwenlib.errors import WorkFailed

    def full(*_: object) -> None:
        raise WorkFailed("no space left")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rank, "write_json", full)
    assert rank.main([str(tmp_path / "no-job.json")]) == 2
    assert "qwenlib: refused: there is no file" in capsys.readouterr().err
