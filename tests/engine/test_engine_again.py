"""The same job, asked for again: taken up where it goes on or is done. The ranks here only sleep or end."""

from __future__ import annotations

import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import pytest

from qwenlib import launch
from qwenlib import profile as profiles
from qwenlib.engine import again, work
from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import write_json


@pytest.fixture
def given(tmp_path: Path) -> Dict[str, Any]:
    """What a training asks for; the checkpoint holds no weights, for nothing reads it here."""
    pytest.importorskip("numpy")  # counting rows imports qwenlib.data
    checkpoint, data = tmp_path / "model_dir" / "rank_0" / "x.ckpt", tmp_path / "train.mindrecord"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    data.write_bytes(b"\0")
    with sqlite3.connect(f"{data}.db") as database:
        database.execute("create table INDEXES (ROW_ID int)")
        database.executemany("insert into INDEXES values (?)", [(row,) for row in range(40)])
    database.close()
    write_json(tmp_path / "vocab.json", {letter: number for number, letter in enumerate("abcde")})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = {"vocab_file": tmp_path / "vocab.json", "merges_file": tmp_path / "merges.txt"}
    return {"load_checkpoint": tmp_path / "model_dir", "train_dataset": data, "run_dir": tmp_path / "run", **files}


def planned(given: Dict[str, Any], *words: str, **more: Any) -> launch.Plan:
    plan = work.training_plan(profiles.load("smoke", list(words)), "lora", **given, **more)
    return replace(plan, command=["sleep", "60"], ranks=1, rendezvous="single", grace=1.0)


def test_a_training_that_goes_on_is_found_and_nothing_of_it_is_written_anew(given: Dict[str, Any]) -> None:
    plan = planned(given)
    result = plan.folder / work.RESULT
    run = launch.start(plan, detach=True)
    try:
        before = {path: path.stat().st_mtime_ns for path in plan.folder.glob("*") if path.name[0] in "jls"}
        assert before.keys() >= {plan.folder / "job.json", plan.folder / "lora.yaml", plan.folder / "spec.json"}
        before.pop(plan.folder / "launch.json")  # its time is the supervisor's sign of life
        result.write_text("{}")
        for resume in ("never", "auto"):  # how it was begun does not matter
            same = planned(given, detach=True, resume=resume)
            found = again.find(same, result)
            assert found is not None and found.id == run.id and found.detached
        assert again.told(found).startswith("This very training goes on in") and "before its first step" in again.told(
            found
        )
        for other in (planned(given, "lora.epochs=3", detach=True), planned(given, "lora.epochs=3")):
            with pytest.raises(Refused, match="with other settings, data or weights goes on in"):
                again.find(other, result)
        assert {path: path.stat().st_mtime_ns for path in before} == before and result.exists()
    finally:
        run.stop()
    assert again.find(planned(given, detach=True), result) is None, "what was stopped is begun anew"
    assert "was stopped: the run was ended: it was stopped. Another begins." in again.told(plan.folder)


def test_a_training_that_is_done_gives_its_result_and_changed_data_begins_anew(given: Dict[str, Any]) -> None:
    plan = replace(planned(given), command=["true"])
    launch.start(plan, detach=True).wait(timeout=30)
    result = plan.folder / work.RESULT
    assert again.find(plan, result) is None, "it ended well, but its result is gone"
    result.write_text("{}")
    found = again.find(planned(given, detach=True), result)
    assert found is not None and result.exists() and "its result is taken" in again.told(found)
    given["train_dataset"].write_bytes(b"\0\0")
    assert again.find(planned(given, detach=True), result) is None and not result.exists()
    assert again.told(plan.folder) == "", "there is nothing to say about a training that ended well"


def test_without_detach_a_training_that_is_done_is_begun_anew(given: Dict[str, Any]) -> None:
    plan = replace(planned(given), command=["true"])
    with launch.start(plan) as run:
        run.wait(timeout=30)
    (plan.folder / work.RESULT).write_text("{}")
    planned(given)
    assert not (plan.folder / work.RESULT).exists()


def test_a_failure_that_nobody_saw_is_told_before_the_next_begins(given: Dict[str, Any]) -> None:
    plan = replace(planned(given), command=["false"])
    with pytest.raises(WorkFailed):
        launch.start(plan, detach=True).wait(timeout=30)
    assert again.find(plan, plan.folder / work.RESULT) is None
    assert "failed: rank 0 ended with exit code 1" in again.told(plan.folder)


def test_event_files_without_their_package_are_refused_before_the_ranks_start(
    given: Dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(Refused, match="pip install tensorboardX"):
        work.finetune(profiles.load("smoke"), "lora", **given, tensorboard=True)
    assert not given["run_dir"].exists()


def test_a_folder_without_a_launch_has_nothing_to_take_up(given: Dict[str, Any]) -> None:
    plan = planned(given, detach=True)
    assert again.find(plan, plan.folder / work.RESULT) is None and again.told(plan.folder) == ""
