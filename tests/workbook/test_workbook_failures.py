"""Each way a stage can fail is told as what it is, and leaves no process and no meta.json."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict

import psutil
import pytest

pytest.importorskip("papermill")

import nbformat
from workbook_tools import ENVIRON, lives, make_book

from qwenlib import workbook
from qwenlib.workbook import record

pytestmark = pytest.mark.notebook
Book = Callable[..., Path]


def children() -> list:
    return [each for each in psutil.Process().children(recursive=True) if lives(each)]


def run(notebooks: Path, tmp_path: Path, **more: Any) -> Dict[str, Any]:
    """Run, and check what holds for every failure."""
    run_dir = tmp_path / "run"
    content = workbook.run("smoke", run_dir, notebooks=notebooks, **more)
    assert children() == [], "no kernel may be left"
    if content["state"] == "failed":
        failed(content, run_dir)
    return content


def failed(content: Dict[str, Any], run_dir: Path, state: str = "failed") -> None:
    first = content["stages"]["01_env"]
    assert first["state"] == state and content["first_failure"] == {"stage": "01_env", **first["error"]}
    assert not (run_dir / "01_env" / "meta.json").exists()
    assert not (run_dir / ".lock").exists() and not (run_dir / ".work").exists()
    executed = nbformat.read(first["notebook"], as_version=4)
    nbformat.validate(executed)
    assert executed.cells[0].metadata.tags == ["workbook-banner"]
    assert "workbook-banner" not in str(executed.cells[-1])
    ran = [cell for cell in executed.cells if cell.metadata.get("papermill", {}).get("status") == "completed"]
    assert not any("stage.finish" in cell.source for cell in ran) or "too late" in str(executed.cells)
    page = Path(first["html"]).read_text(encoding="utf-8")
    assert "color: #c62828" in page


def banner(content: Dict[str, Any]) -> str:
    return str(nbformat.read(content["stages"]["01_env"]["notebook"], as_version=4).cells[0].source)


def test_failing_cell_is_named_and_ends_the_run(book: Book, tmp_path: Path) -> None:
    content = run(book("failing_cell", "next"), tmp_path)
    error = content["first_failure"]
    assert (error["kind"], error["ename"], error["evalue"]) == ("cell", "KeyError", "'<missing>'")
    assert (error["cell_index"], error["cell_source"]) == (3, 'found = {}["<missing>"]')
    assert content["stages"]["02_weights"]["state"] == "pending"
    assert "&lt;missing&gt;" in banner(content) and "<missing>" not in banner(content)
    assert "cell 4" in banner(content)


def test_refusal_of_a_stage_is_one_sentence_and_exit_code_2(book: Book, command: Any) -> None:
    code, out, err = command(book("refused")).end()
    last = err.strip().splitlines()[-1]
    assert code == 2 and "Traceback" not in err
    assert last.startswith("qwenlib: refused: stage 01_env, cell 4 (")
    assert "): the folder /w has no config.json; give one that has. (executed notebook: " in last
    assert "01_env  failed" in out


def test_failure_after_the_hand_over_takes_it_back(book: Book, tmp_path: Path) -> None:
    content = run(book("failing_after_finish"), tmp_path)
    assert content["first_failure"]["evalue"] == "too late"


def test_dead_kernel_is_told_as_one(book: Book, tmp_path: Path) -> None:
    content = run(book("dead_kernel"), tmp_path)
    error = content["first_failure"]
    assert (error["kind"], error["cell_index"]) == ("dead_kernel", 3)
    assert "SIGKILL" in error["evalue"] and "out of memory" in error["evalue"]
    assert "The kernel died in cell 4" in banner(content)


def test_timeout_is_told_as_one(book: Book, tmp_path: Path) -> None:
    content = run(book("slow"), tmp_path, timeout=5)  # the cell before imports qwenlib, and the machine may stand still
    error = content["first_failure"]
    assert (error["kind"], error["cell_index"]) == ("timeout", 3) and "longer than 5 s" in error["evalue"]
    assert content["stages"]["01_env"]["seconds"] < 60, "it did not sleep to its end"
    assert "Cell 4" in banner(content) and "ran out of time" in banner(content)


def test_stage_that_hands_nothing_over_failed(book: Book, tmp_path: Path) -> None:
    content = run(book("no_meta"), tmp_path)
    assert content["first_failure"]["kind"] == "missing_meta"
    assert "stage.finish" in content["first_failure"]["evalue"]


def test_kernel_that_does_not_start_is_told_as_such(book: Book, tmp_path: Path, monkeypatch: Any) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "broken"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-c", "import sys; sys.exit('this interpreter is broken')", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "broken", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    content = run(book("ok"), tmp_path, kernel_name="broken")
    error = content["first_failure"]
    assert error["kind"] == "no_kernel" and error["cell_index"] is None
    assert "this interpreter is broken" in error["evalue"] and "exit code 1" in error["evalue"]


@pytest.mark.parametrize("die", [False, True])
def test_process_in_its_own_session_is_ended_with_its_stage(book: Book, tmp_path: Path, die: bool) -> None:
    content = run(book("leaves_processes"), tmp_path, parameters={"01_env": {"die": die}})
    pid = int((tmp_path / "run" / "01_env" / "pid").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not lives(psutil.Process(pid))
    assert content["state"] == ("failed" if die else "done")
    assert content["stages"]["01_env"]["left_behind"] == [f"{pid} sleep"]
    if die:
        assert "exit code 3" in content["first_failure"]["evalue"]


@pytest.mark.parametrize(("signum", "exit_code", "name"), [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM")])
def test_signal_interrupts_the_stage(book: Book, command: Any, signum: str, exit_code: int, name: str) -> None:
    started = command(book("slow", "next"))
    started.until_ready()
    started.send(getattr(signal, signum))
    code, out, err = started.end()
    assert code == exit_code and "Traceback" not in err
    assert started.alive() == []
    content = started.record()
    assert content["state"] == "interrupted" and "01_env      interrupted" in out
    failed(content, started.output, "interrupted")
    assert content["first_failure"]["kind"] == "interrupt" and name in content["first_failure"]["evalue"]
    assert content["first_failure"]["cell_index"] == 3
    ended = nbformat.read(content["stages"]["01_env"]["notebook"], as_version=4)
    ends = [output.ename for cell in ended.cells for output in cell.get("outputs", []) if "ename" in output]
    assert ends == ["KeyboardInterrupt"], "the cell itself was interrupted, the kernel was not killed"
    assert content["stages"]["02_weights"]["state"] == "pending"


def test_second_signal_kills_a_cell_that_ignores_the_first(book: Book, command: Any) -> None:
    started = command(book("stubborn"))
    started.until_ready()
    started.send(signal.SIGINT)
    time.sleep(0.5)
    assert started.alive()
    started.send(signal.SIGINT)
    assert started.end()[0] == 130
    assert started.alive() == [] and started.record()["first_failure"]["kind"] == "interrupt"


def test_killed_runner_shows_as_interrupted_and_its_processes_end_with_the_next(book: Book, command: Any) -> None:
    notebooks = book("slow")
    started = command(notebooks)
    started.until_ready()
    busy = subprocess.run(started.process.args, capture_output=True, text=True, env=ENVIRON)
    assert busy.returncode == 2 and "another workbook runner" in busy.stderr

    started.send(signal.SIGKILL)
    started.end()
    assert started.record()["state"] == "running"
    assert record.read(started.output)["stages"]["01_env"]["error"]["ename"] == "RunnerGone"
    quick = make_book(notebooks.parent / "quick", "ok")
    content = workbook.run("smoke", started.output, notebooks=quick)
    assert content["state"] == "done" and started.alive() == []
