"""Stages run in real kernels: what they leave, and when they are skipped the next time."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

pytest.importorskip("papermill")

import nbformat
from workbook_tools import make_book

from qwenlib import workbook
from qwenlib.errors import Refused
from qwenlib.workbook import lock

pytestmark = pytest.mark.notebook
Book = Callable[..., Path]
TEXT = 'she said "no" \\ {braces} 中文 # hash'


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """A workbook of two stages, run once; its run.json was read all the while."""
    folder = tmp_path_factory.mktemp("done")
    notebooks, run_dir = make_book(folder / "notebooks", "ok", "next"), folder / "run {x}"
    states: List[Any] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            if (run_dir / "run.json").exists():
                content = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
                states.append((content["state"], *(stage["state"] for stage in content["stages"].values())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    given = {"01_env": {"text": TEXT, "sizes": [3], "rate": 2}, "": {"epochs": 5}}
    try:
        content = workbook.run("smoke", run_dir, given, notebooks=notebooks)
    finally:
        over.set()
        watcher.join()
    return {"content": content, "run_dir": run_dir, "notebooks": notebooks, "states": states, "given": given}


def test_run_leaves_artefacts_notebook_page_and_record(done: Dict[str, Any]) -> None:
    content, run_dir = done["content"], done["run_dir"]
    assert content == json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert content["state"] == "done" and content["first_failure"] is None and content["finished"]
    first = content["stages"]["01_env"]
    assert (first["state"], first["metrics"]) == ("done", {"epochs": 5, "answer": 42})
    assert first["parameters"]["output"] == str(run_dir) and first["parameters"]["text"] == TEXT
    assert first["seconds"] > 0 and 20 < first["peak_mib"] <= content["peak_mib"] < 2000
    assert (run_dir / "01_env" / "result.txt").read_text(encoding="utf-8") == f"5 2.0 True {TEXT} [3] {{'a': 1}}"
    executed = nbformat.read(first["notebook"], as_version=4)
    nbformat.validate(executed)
    assert executed.metadata.kernelspec.name == "python3"
    assert "headless 1 offline 1" in str(executed.cells)
    assert "she said" in Path(content["stages"]["02_weights"]["html"]).read_text(encoding="utf-8")
    left = sorted(path.name for path in run_dir.iterdir())
    assert left == ["01_env", "02_weights", "run.json"], "no lock, no unfinished work"
    assert not list(run_dir.rglob("*.part"))


def test_record_was_whole_at_every_instant_and_told_each_state(done: Dict[str, Any]) -> None:
    order = [state for index, state in enumerate(done["states"]) if index == 0 or state != done["states"][index - 1]]
    assert order[0] in [("running", "pending", "pending"), ("running", "running", "pending")]
    assert order[-1] in [("done", "done", "done"), ("running", "done", "done"), ("running", "done", "running")]
    assert ("running", "running", "pending") in order and ("running", "done", "running") in order
    assert len(done["states"]) > 50


def again(done: Dict[str, Any], given: Any = None, **more: Any) -> Dict[str, Any]:
    given = done["given"] if given is None else given
    return workbook.run("smoke", done["run_dir"], given, notebooks=done["notebooks"], resume=True, **more)


def states(content: Dict[str, Any]) -> List[str]:
    return [stage["state"] for stage in content["stages"].values()]


def test_resume_skips_what_did_not_change_without_a_kernel(done: Dict[str, Any]) -> None:
    executed = done["run_dir"] / "01_env" / "01_env.ipynb"
    before = executed.stat().st_mtime_ns
    content = again(done)
    assert states(content) == ["skipped", "skipped"], [stage["why"] for stage in content["stages"].values()]
    assert executed.stat().st_mtime_ns == before
    first = content["stages"]["01_env"]
    assert (
        first["metrics"] == {"epochs": 5, "answer": 42} and first["seconds"] > 0 and "nothing changed" in first["why"]
    )


def test_resume_runs_again_what_changed_and_what_builds_on_it(done: Dict[str, Any]) -> None:
    (done["run_dir"] / "02_weights" / "second.txt").unlink()
    content = again(done)
    assert states(content) == ["skipped", "done"]
    assert "second.txt is gone" in content["stages"]["02_weights"]["why"]

    given = {**done["given"], "": {"epochs": 6}}
    given["02_weights"] = {"epochs": 5}
    content = again(done, given)
    assert states(content) == ["done", "done"]
    assert content["stages"]["01_env"]["why"] == "parameter epochs was 5 and is 6"
    assert content["stages"]["02_weights"]["why"] == "01_env, which it builds on, was run again"


def test_stage_run_alone_makes_what_was_built_on_it_stale(done: Dict[str, Any]) -> None:
    content = workbook.run("smoke", done["run_dir"], notebooks=done["notebooks"], only="01_env")
    assert content["only"] == ["01_env"]
    assert content["stages"]["02_weights"]["stale"] == "01_env was run again after it"


def test_runner_that_is_at_work_keeps_others_out_and_a_dead_one_does_not(done: Dict[str, Any]) -> None:
    path = done["run_dir"] / lock.NAME
    path.write_text(json.dumps({**lock.identity(), "token": "t"}))
    with pytest.raises(Refused, match="at work"):
        again(done)
    path.write_text(json.dumps({**lock.identity(), "create_time": 1.0, "token": "t"}))
    assert again(done)["state"] == "done"
    assert not path.exists()


def test_what_every_kernel_prints_is_not_taken_for_its_last_words(tmp_path):
    from qwenlib.workbook import execute

    log = tmp_path / "kernel.log"
    always = "[IPKernelApp] WARNING | Kernel is running over TCP without encryption. All communication …\n"
    log.write_text(always)
    assert execute._tail(log) == ""
    log.write_text(always + "Fatal Python error: Segmentation fault\n")
    assert execute._tail(log) == " It printed last: Fatal Python error: Segmentation fault"
