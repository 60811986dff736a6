"""A notebook opened alone finds qwenlib, or says in one sentence how to get it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

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


@pytest.fixture(scope="module")
def wheel_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which qwenlib was installed from its wheel, without a network and without this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "qwenlib", source / "qwenlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    return site


SHORT: Dict[str, Dict[str, Any]] = {
    "01_env": {},
    "02_weights": {"pretrain_steps": 1, "compare_logits": False},
    "03_data": {},
    "04_lora": {"epochs": 1},
}
"""The smoke profile, made short."""


@pytest.mark.stack
@pytest.mark.notebook
@pytest.mark.slow
def test_copies_of_the_notebooks_run_with_qwenlib_from_a_wheel(wheel_site: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(wheel_site)}
    where = [sys.executable, "-c", "import qwenlib; print(qwenlib.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == wheel_site / "qwenlib" / "__init__.py"
    for stage, values in SHORT.items():
        folder = tmp_path / f"opened {stage}"  # nothing but the one file
        folder.mkdir()
        shutil.copy(ROOT / "notebooks" / stage / f"{stage}.ipynb", folder)
        argv = [
            sys.executable,
            "-m",
            "papermill",
            f"{stage}.ipynb",
            "done.ipynb",
            "-p",
            "output",
            str(tmp_path / "run"),
        ]
        argv += [word for name, value in values.items() for word in ("-p", name, str(value))]
        done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / "run" / stage / "meta.json").is_file()
        assert sorted(path.name for path in folder.iterdir()) == [f"{stage}.ipynb", "done.ipynb"]
    job = json.loads((tmp_path / "run" / "04_lora" / "launch.json").read_text(encoding="utf-8"))
    assert job["state"] == "done"


def kernelspec(folder: Path, python: str) -> str:
    """A folder for JUPYTER_PATH in which the kernelspec ``other`` starts ``python``."""
    spec = folder / "jupyter" / "kernels" / "other"
    spec.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    content = {"argv": argv, "display_name": "other", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder / "jupyter")


def says_who_it_is(folder: Path) -> Path:
    """The fixture notebook that ends well, with a cell that writes down its interpreter."""
    notebook = json.loads((ROOT / "tests" / "notebooks" / "ok.ipynb").read_text(encoding="utf-8"))
    source = f"import sys\nopen({str(folder / 'who')!r}, 'w').write(sys.executable)"
    cell = {"cell_type": "code", "execution_count": None, "id": "who", "metadata": {}, "outputs": [], "source": source}
    notebook["cells"].append(cell)
    stage = folder / "book" / "01_env"
    stage.mkdir(parents=True)
    (stage / "01_env.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return stage.parent


@pytest.mark.notebook
def test_the_kernel_may_be_another_interpreter_than_papermills(tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other)], check=True)
    (site,) = other.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    python = str(other / "bin" / "python")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PATH": kernelspec(tmp_path, python)}
    argv = [sys.executable, "-m", "qwenlib", "workbook", "run", "--notebooks", str(says_who_it_is(tmp_path))]
    argv += ["--output", str(tmp_path / "run"), "--only", "01_env", "--kernel", "other"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "who").read_text() == python


PY39 = ROOT / ".venv-py39" / "bin" / "python"


@pytest.mark.notebook
@pytest.mark.skipif(not PY39.exists(), reason="make test-py39 makes .venv-py39, where there is a Python 3.9")
def test_papermill_2_6_on_python_3_9_runs_a_notebook_in_this_interpreter(tmp_path: Path) -> None:
    versions = "import papermill, sys; print(papermill.__version__, *sys.version_info[:2])"
    said = subprocess.run([str(PY39), "-c", versions], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["2.6.0", "3", "9"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PATH": kernelspec(tmp_path, sys.executable)}
    notebook = ROOT / "notebooks" / "01_env" / "01_env.ipynb"
    argv = [str(PY39), "-m", "papermill", str(notebook), str(tmp_path / "done.ipynb"), "-k", "other"]
    argv += ["-p", "output", str(tmp_path / "run"), "-p", "strict", "False", "-p", "probe_imports", "False"]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    meta = json.loads((tmp_path / "run" / "01_env" / "meta.json").read_text(encoding="utf-8"))
    assert meta["versions"]["python"] == platform.python_version()
