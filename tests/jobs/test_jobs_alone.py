"""A notebook opened alone finds qwenlib, or says in one sentence how to get it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlib.workspace import STAGES

ROOT = Path(__file__).resolve().parent.parent.parent


def head(stage: str) -> str:
    """The lines of the first cell behind the parameters, down to the sentence."""
    cells = json.loads((ROOT / "notebooks" / stage / f"{stage}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "".join([cell for cell in cells if cell["cell_type"] == "code"][1]["source"])
    return source[: source.index("\n", source.index("sys.exit(")) + 1]


@pytest.mark.parametrize("stage", STAGES)
def test_without_qwenlib_one_sentence_says_how_to_get_it(stage: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "notebooks" / stage / f"{stage}.ipynb", tmp_path)
    # -I -S: an interpreter that has nothing but the standard library
    done = subprocess.run([sys.executable, "-I", "-S", "-c", head(stage)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install" in done.stderr
    assert "wheel" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_in_a_clone_it_is_found_without_installing(stage: str) -> None:
    code = head(stage) + "import qwenlib\nprint(qwenlib.__file__)"
    folder = ROOT / "notebooks" / stage
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "qwenlib" / "__init__.py"


@pytest.mark.stack
@pytest.mark.notebook
@pytest.mark.slow
def test_a_copy_of_one_file_runs_in_another_folder(tmp_path: Path) -> None:
    import papermill

    shutil.copy(ROOT / "notebooks" / "02_weights" / "02_weights.ipynb", tmp_path)
    papermill.execute_notebook(
        str(tmp_path / "02_weights.ipynb"),
        str(tmp_path / "done.ipynb"),
        {"output": str(tmp_path / "run"), "pretrain_steps": 1, "compare_logits": False},
        cwd=str(tmp_path),
        progress_bar=False,
    )
    assert (tmp_path / "run" / "02_weights" / "meta.json").is_file()
