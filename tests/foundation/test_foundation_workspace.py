"""The folders of a run and the hand-over between stages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlib import __version__, workspace
from qwenlib.errors import Refused
from qwenlib.files import read_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("here", [".", "notebooks/04_lora", "tests/foundation"])
def test_a_relative_path_counts_from_the_project_wherever_one_stands(
    monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    monkeypatch.chdir(ROOT / here)
    assert workspace.resolve("runs/smoke") == ROOT / "runs" / "smoke"
    assert workspace.project_root() == ROOT


def test_outside_the_project_it_counts_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert workspace.project_root() is None
    assert workspace.resolve("runs/x") == tmp_path / "runs" / "x"


def test_absolute_paths_and_the_home_folder_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workspace.resolve("/data/run") == Path("/data/run")
    assert workspace.resolve("~/run") == tmp_path / "run"


def test_a_stage_begins_in_its_own_folder_and_says_with_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = workspace.open_stage("03_data", tmp_path / "run", "smoke")
    assert stage.path == tmp_path / "run" / "03_data" and stage.path.is_dir()
    said = capsys.readouterr().out
    assert f"03_data · profile smoke · {stage.path}" in said
    assert f"qwenlib {__version__} · python {sys.version.split()[0]}" in said


def test_only_the_six_stages_exist(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no stage '03_date'; the stages are 01_env, .*06_infer"):
        workspace.open_stage("03_date", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(Refused, match=r"output: the folder .*run/03_data cannot be made"):
        workspace.open_stage("03_data", tmp_path / "run")


def test_what_a_stage_finished_the_next_one_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = workspace.open_stage("02_weights", tmp_path, "smoke")
    one.finish(
        outputs={"model_dir": one.path / "model_dir", "rank_table": None},
        metrics={"tensors": 27},
        config={"sizes": {"hidden_size": 128}},
    )
    assert re.search(rf"02_weights took 0 s; it wrote {one.path}", capsys.readouterr().out)
    two = workspace.open_stage("03_data", tmp_path, "smoke")
    taken = two.take("02_weights")
    assert taken["outputs"] == {"model_dir": str(one.path / "model_dir")}, "None is nothing, not the word 'None'"
    assert taken["config"] == {"sizes": {"hidden_size": 128}} and taken["metrics"] == {"tensors": 27}
    two.finish()
    meta = read_json(two.path / "meta.json")
    assert meta["inputs"] == {"02_weights": {"created": taken["created"], "outputs": taken["outputs"]}}


def test_meta_says_what_ran_when_and_on_what(tmp_path: Path) -> None:
    stage = workspace.open_stage("01_env", tmp_path, "lora_7b_910a")
    stage.finish()
    meta = read_json(stage.path / "meta.json")
    assert set(meta) == {
        "stage", "profile", "created", "seconds", "inputs", "outputs", "metrics", "config", "versions", "commit",
    }  # fmt: skip
    assert (meta["stage"], meta["profile"], meta["inputs"]) == ("01_env", "lora_7b_910a", {})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", meta["created"])
    assert 0 <= meta["seconds"] < 60
    assert meta["versions"]["qwenlib"] == __version__


def test_an_unfinished_stage_is_refused_with_what_to_do(tmp_path: Path) -> None:
    workspace.open_stage("02_weights", tmp_path)  # begun, never finished
    stage = workspace.open_stage("03_data", tmp_path)
    with pytest.raises(Refused) as refused:
        stage.take("02_weights")
    said = str(refused.value)
    assert f"{tmp_path}/02_weights/meta.json is missing" in said
    assert f"qwenlib workbook run --only 02_weights --output {tmp_path}" in said
    assert stage.inputs == {}


def test_beginning_a_stage_again_takes_its_old_result_away(tmp_path: Path) -> None:
    workspace.open_stage("02_weights", tmp_path).finish()
    workspace.open_stage("02_weights", tmp_path)  # … and it breaks off
    with pytest.raises(Refused, match="has not been finished"):
        workspace.open_stage("03_data", tmp_path).take("02_weights")


@pytest.mark.parametrize("content", ["[]", "{}", '{"created": 1}', "{"])
def test_a_damaged_meta_file_is_refused(tmp_path: Path, content: str) -> None:
    workspace.open_stage("02_weights", tmp_path)
    (tmp_path / "02_weights" / "meta.json").write_text(content)
    with pytest.raises(Refused, match=r"02_weights/meta\.json"):
        workspace.open_stage("03_data", tmp_path).take("02_weights")


def test_the_commit_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        assert workspace.commit() == ""
        return
    monkeypatch.chdir(tmp_path)  # another folder, perhaps another repository
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert re.fullmatch(rf"{head}\+?", workspace.commit())


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workspace.commit() == ""
