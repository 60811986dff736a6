"""Everything about a run is checked before any notebook is started and anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

pytest.importorskip("papermill")

from typer.testing import CliRunner

from qwenlib.cli.main import app
from qwenlib.errors import Refused
from qwenlib.workbook import stages
from qwenlib.workbook.plan import prepare

Book = Callable[..., Path]


def plan(notebooks: Path, tmp_path: Path, *assignments: str, **more: Any) -> Any:
    given = stages.from_assignments(assignments)
    return prepare("smoke", tmp_path / "run", given, notebooks=notebooks, **more)


@pytest.mark.notebook
def test_parameter_of_one_stage_and_of_every_stage_that_has_it(book: Book, tmp_path: Path) -> None:
    found = plan(book("ok", "next"), tmp_path, "epochs=7", "01_env.epochs=8", "rate=0.5")
    assert found.given == {"01_env": {"epochs": 8, "rate": 0.5}, "02_weights": {"epochs": 7}}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("01_env.epoch=3", ["no parameter 'epoch'", "Did you mean epochs?", "rate"]),
        ("ratee=3", ["no stage that is run has a parameter 'ratee'", "Did you mean rate?"]),
        ("01_envv.epochs=3", ["no stage '01_envv'", "Did you mean 01_env?"]),
        ("env.epochs=3", ["Did you mean 01_env?"]),
        ("01_env.epochs=three", ["stage 01_env: epochs must be int (default 2), found 'three'", "how often"]),
        ("output=/tmp", ["--output"]),
        ("01_env.profile=smoke", ["--profile"]),
    ],
)
def test_wrong_parameter_is_refused_with_the_nearest(book: Book, tmp_path: Path, assignment: str, words: list) -> None:
    with pytest.raises(Refused) as refusal:
        plan(book("ok", "next"), tmp_path, assignment)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not (tmp_path / "run").exists()


def test_parameter_given_twice_or_for_a_stage_left_out_is_refused(book: Book, tmp_path: Path) -> None:
    notebooks = book("ok", "next")
    with pytest.raises(Refused, match="twice"):
        plan(notebooks, tmp_path, "epochs=1", "epochs=2")
    with pytest.raises(Refused, match="--only leaves it out"):
        plan(notebooks, tmp_path, "01_env.epochs=1", only="02_weights")


@pytest.mark.parametrize(
    ("fixture", "words"),
    [
        ("no_parameters", "exactly one code cell tagged `parameters`, found none"),
        ("two_parameters", "found 2"),
        ("not_a_literal", "not a literal"),
        ("without_output", "`output: str"),
    ],
)
def test_unfit_notebook_of_a_later_stage_is_refused_at_once(
    book: Book, tmp_path: Path, fixture: str, words: str
) -> None:
    with pytest.raises(Refused, match="02_weights") as refusal:
        plan(book("ok", fixture), tmp_path)
    assert words in str(refusal.value)


def test_stage_folder_must_hold_one_notebook(book: Book, tmp_path: Path) -> None:
    notebooks = book("ok", "next")
    (notebooks / "03_data").mkdir()
    with pytest.raises(Refused, match=r"03_data must hold exactly one notebook, found: none"):
        plan(notebooks, tmp_path)
    (notebooks / "03_data").rmdir()
    (notebooks / "01_env" / "copy.ipynb").write_text("{}")
    with pytest.raises(Refused, match=r"01_env\.ipynb, copy\.ipynb"):
        plan(notebooks, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": 3}', "not json"])
def test_file_that_is_no_notebook_is_refused(book: Book, tmp_path: Path, text: str) -> None:
    notebooks = book("ok")
    (notebooks / "01_env" / "01_env.ipynb").write_text(text)
    with pytest.raises(Refused, match="not a Jupyter notebook"):
        plan(notebooks, tmp_path)


def test_output_that_is_a_file_or_holds_the_notebooks_is_refused(book: Book, tmp_path: Path) -> None:
    notebooks = book("ok")
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="is a file"):
        prepare("smoke", tmp_path / "file" / "run", notebooks=notebooks)
    with pytest.raises(Refused, match="overwrite"):
        prepare("smoke", notebooks, notebooks=notebooks)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"only": "01_evn"}, "Did you mean 01_env?"),
        ({"timeout": 0}, "--timeout"),
        ({"kernel_name": "no-such-kernel"}, "no kernelspec 'no-such-kernel'"),
    ],
)
def test_wrong_option_is_refused(book: Book, tmp_path: Path, option: Dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan(book("ok"), tmp_path, **option)
    assert words in str(refusal.value)


def test_unknown_profile_is_refused(book: Book, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Did you mean smoke"):
        prepare("smok", tmp_path / "run", notebooks=book("ok"))


def test_list_prints_what_the_parameter_cells_say(book: Book) -> None:
    notebooks = str(book("ok", "next"))
    result = CliRunner().invoke(app, ["workbook", "list", "--notebooks", notebooks, "--json"])
    assert result.exit_code == 0
    tree = json.loads(result.stdout)
    assert [stage["stage"] for stage in tree] == ["01_env", "02_weights"]
    epochs = {"name": "epochs", "type": "int", "default": 2, "help": "how often", "given_by": None}
    assert epochs in tree[0]["parameters"]
    plain = CliRunner().invoke(app, ["workbook", "list", "--notebooks", notebooks]).stdout
    assert "epochs: int   default 2   how often" in plain and "given by --output" in plain


def test_status_of_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["workbook", "status", str(tmp_path)])
    assert isinstance(result.exception, Refused) and "run.json" in str(result.exception)
