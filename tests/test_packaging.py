"""The package, its locks and its Makefile: what a newcomer's two commands stand on."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict, List

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
FIND_PYTHON = ROOT / "tools" / "find_python"
MAKE_VENV = ROOT / "tools" / "make_venv.py"
CPU_STACK = {
    "mindspore": "2.7.0",
    "mindformers": "1.0.2",
    "mindpet": "1.0.3",
    "tokenizers": "0.15.0",
    "pyarrow": "12.0.1",
    "numpy": "1.26.4",
    "transformers": "4.37.2",
}
"""Versions that were seen to work together."""


def pins(lock: Path) -> Dict[str, str]:
    """``{canonical name: version}`` of a lock file."""
    lines = (line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    found = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in found}


def declared(extras: List[str], python: str) -> List[Requirement]:
    """pyproject's requirements under ``extras`` that apply to a Python version."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = [re.search(r"(?ms)^dependencies = \[\n(.*?)^\]", text)]
    blocks += [re.search(rf"(?ms)^{extra} = (\[.*?\])$", text) for extra in extras]
    assert all(blocks), f"pyproject.toml lacks one of {extras}"
    lines = [line.split(" #")[0] for block in blocks if block for line in block[1].splitlines()]
    found = [Requirement(quoted) for line in lines for quoted in re.findall(r'"([^"]+)"', line)]
    return [item for item in found if item.marker is None or item.marker.evaluate({"python_version": python})]


# --- pins ---------------------------------------------------------------------------------------------------------


def test_there_is_a_lock_for_every_python_the_package_admits() -> None:
    assert [lock.name for lock in LOCKS] == ["cpu-py310.txt", "cpu-py311.txt", "cpu-py39.txt", "min-py39.txt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_pins_exactly_what_pyproject_admits(lock: Path) -> None:
    tier, version = lock.stem.split("-py")
    extras = ["cpu", "torch", "data", "notebook", "browser", "dev"] if tier == "cpu" else ["data", "dev"]
    locked = pins(lock)
    wanted = declared(extras, f"{version[0]}.{version[1:]}")
    assert len(wanted) > 10
    for item in wanted:
        name = canonicalize_name(item.name)
        assert name in locked, f"{lock.name} lacks {name}: make lock"
        assert item.specifier.contains(Version(locked[name])), f"{lock.name}: {name} {locked[name]}, wanted {item}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_address_no_local_build_and_no_cuda_library(lock: Path) -> None:
    assert not re.search(r"://|^-|@", lock.read_text(encoding="utf-8"), re.MULTILINE)
    for name, version in pins(lock).items():
        assert "+" not in version, f"{name} {version} is on no package index"
        assert not name.startswith(("nvidia-", "cuda-", "triton"))


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock.stem.startswith("cpu")], ids=lambda lock: lock.stem)
def test_the_cpu_locks_hold_the_versions_that_work_together(lock: Path) -> None:
    locked = pins(lock)
    assert {name: locked.get(name) for name in CPU_STACK} == CPU_STACK
    assert Version(locked["setuptools"]) < Version("81")


def test_the_minimal_tier_has_nothing_of_the_stack() -> None:
    stack = {"mindspore", "mindformers", "torch", "transformers", "jupyterlab"}
    assert not stack & set(pins(ROOT / "requirements" / "min-py39.txt"))


def test_environment_yml_agrees_with_the_lock_for_its_python() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert "python=3.9" in conda
    locked = pins(ROOT / "requirements" / "cpu-py39.txt")
    # Without the constraint pip has to search: see environment.yml.
    options = [line for line in pip if line.startswith("-")]
    assert options == ["-c requirements/cpu-py39.txt"]
    named = dict(line.split("==") for line in pip if line not in options)
    assert {canonicalize_name(name): version for name, version in named.items()} == {
        canonicalize_name(name): locked[canonicalize_name(name)] for name in named
    }
    # The image's own must not be replaced; everything that qwenlib and its notebooks import must be there.
    assert not {"mindspore", "mindformers", "torch", "setuptools"} & {canonicalize_name(name) for name in named}
    wanted = {canonicalize_name(item.name) for item in declared(["notebook", "data"], "3.9")}
    assert wanted <= {canonicalize_name(name) for name in named}


# --- the wheel ----------------------------------------------------------------------------------------------------


def test_the_wheel_carries_profiles_and_sample_and_no_tests(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "qwenlib", source / "qwenlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("qwenlib-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("/METADATA"))
        header = archive.read(metadata).decode()
    # Whatever file of the package is not a module must be carried too.
    kept = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "qwenlib").rglob("*")
        if path.suffix in (".py", ".yaml", ".json", ".typed") and "__pycache__" not in path.parts
    }
    assert kept <= names, f"left out: {sorted(kept - names)}"
    assert any(name.startswith("qwenlib/profiles/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("qwenlib/data/sample/") and name.endswith(".json") for name in names)
    assert not any(name.startswith("tests/") for name in names)
    assert "License-Expression: Apache-2.0" in header
    assert "Requires-Python: <3.12,>=3.9" in header


# --- the interpreter ----------------------------------------------------------------------------------------------


def fake_python(folder: Path, name: str, version: str, lacks: str = "whole", fails: bool = False) -> Path:
    """An executable that answers find_python's question as an interpreter of ``version`` would."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    body = "echo 'shim: command not found' >&2; exit 127" if fails else f"echo {version} {lacks} {path}"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def find_python(tmp_path: Path, *folders: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run tools/find_python where PATH holds ``folders`` only (and no other interpreter can be found)."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    if not (tools / "sed").exists():
        (tools / "sed").symlink_to(shutil.which("sed") or "missing")
    # The script looks in these two as well; here the machine's own interpreters must not be found.
    script = tmp_path / "find_python"
    text = FIND_PYTHON.read_text(encoding="utf-8")
    assert ":/usr/local/bin:/usr/bin:" in text
    script.write_text(text.replace(":/usr/local/bin:/usr/bin:", ":"), encoding="utf-8")
    where = os.pathsep.join(str(folder) for folder in (*folders, tools))
    return subprocess.run(
        ["/bin/sh", str(script)],
        env={"PATH": where, "HOME": str(tmp_path / "home"), **environ},
        capture_output=True,
        text=True,
    )


def test_the_newest_wanted_version_comes_first_wherever_it_lies(tmp_path: Path) -> None:
    fake_python(tmp_path / "a", "python3.9", "3.9")
    fake_python(tmp_path / "a", "python3.10", "3.10")
    best = fake_python(tmp_path / "b", "python3.11", "3.11")
    assert find_python(tmp_path, tmp_path / "a", tmp_path / "b").stdout.strip() == str(best)


def test_a_shim_that_fails_and_a_name_that_lies_are_passed_over(tmp_path: Path) -> None:
    fake_python(tmp_path / "a", "python3.11", "3.11", fails=True)
    fake_python(tmp_path / "a", "python3", "3.12")
    fake_python(tmp_path / "b", "python3.11", "3.13")
    good = fake_python(tmp_path / "b", "python3.10", "3.10")
    assert find_python(tmp_path, tmp_path / "a", tmp_path / "b").stdout.strip() == str(good)


def test_a_plain_python3_of_a_wanted_version_is_found(tmp_path: Path) -> None:
    good = fake_python(tmp_path / "a", "python3", "3.10")
    assert find_python(tmp_path, tmp_path / "a").stdout.strip() == str(good)


def test_pyenv_versions_are_found_below_home_and_below_pyenv_root(tmp_path: Path) -> None:
    good = fake_python(tmp_path / "home" / ".pyenv" / "versions" / "3.9.18" / "bin", "python3.9", "3.9")
    assert find_python(tmp_path).stdout.strip() == str(good)
    shims = fake_python(tmp_path / "shimmed" / "shims", "python3.11", "3.11", fails=True).parent
    behind = fake_python(tmp_path / "shimmed" / "versions" / "3.11.7" / "bin", "python3.11", "3.11")
    assert find_python(tmp_path, shims).stdout.strip() == str(behind)
    other = fake_python(tmp_path / "root" / "versions" / "3.9.1" / "bin", "python3.9", "3.9")
    assert find_python(tmp_path, PYENV_ROOT=str(tmp_path / "root")).stdout.strip() == str(other)


def test_an_asked_for_name_that_is_a_shim_of_a_version_not_switched_on_is_found_behind_it(tmp_path: Path) -> None:
    shims = fake_python(tmp_path / "pyenv" / "shims", "python3.9", "3.9", fails=True).parent
    fake_python(tmp_path / "b", "python3.11", "3.11")
    behind = fake_python(tmp_path / "pyenv" / "versions" / "3.9.18" / "bin", "python3.9", "3.9")
    assert find_python(tmp_path, tmp_path / "b", shims, PYTHON="python3.9").stdout.strip() == str(behind)
    fake_python(shims, "python3.8", "3.8", fails=True)
    refused(find_python(tmp_path, tmp_path / "b", shims, PYTHON="python3.8"), "PYTHON=python3.8 does not run")


def test_of_a_virtual_environment_the_interpreter_behind_it_is_taken(tmp_path: Path) -> None:
    # An environment that made itself anew with its own interpreter would remove that first.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    result = subprocess.run(
        ["/bin/sh", str(FIND_PYTHON), "--venv", str(tmp_path / "env"), version],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    found = Path(result.stdout.strip())
    assert found.is_file(), result.stderr
    assert found.parent == Path(sys.base_prefix) / "bin"


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on stderr, no traceback, exit code 2."""
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("qwenlib: refused: this needs Python 3.11, 3.10 or 3.9 ")
    for word in words:
        assert word in result.stderr


def test_python_3_12_alone_is_refused(tmp_path: Path) -> None:
    only = fake_python(tmp_path / "a", "python3", "3.12")
    refused(find_python(tmp_path, tmp_path / "a"), f"{only} is Python 3.12")


def test_python_3_12_asked_for_is_refused_though_others_are_there(tmp_path: Path) -> None:
    fake_python(tmp_path / "a", "python3.11", "3.11")
    fake_python(tmp_path / "a", "python3.12", "3.12")
    refused(find_python(tmp_path, tmp_path / "a", PYTHON="python3.12"), "python3.12 is Python 3.12")


def test_an_interpreter_without_ensurepip_is_refused_with_what_to_install(tmp_path: Path) -> None:
    fake_python(tmp_path / "a", "python3.11", "3.11", lacks="ensurepip")
    refused(find_python(tmp_path, tmp_path / "a"), "lacks ensurepip", "apt install python3.11-venv")


def test_no_interpreter_at_all_is_refused(tmp_path: Path) -> None:
    refused(find_python(tmp_path), "none was found")


def test_make_stops_at_the_refusal_and_makes_no_environment(tmp_path: Path) -> None:
    checkout(tmp_path)
    old = fake_python(tmp_path / "a", "python3.12", "3.12")
    result = make(tmp_path, "workbook", PYTHON=str(old))
    assert result.returncode == 2
    assert "is Python 3.12" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "checkout" / ".venv").exists()


# --- the environment ----------------------------------------------------------------------------------------------


def checkout(tmp_path: Path) -> Path:
    """A checkout with our Makefile and tools, a package with nothing in it, and locks that pin what is at hand."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder / "Makefile")
    (folder / "backend.py").write_text(BACKEND, encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n', encoding="utf-8"
    )
    (folder / "requirements").mkdir()
    lock = folder / "requirements" / f"tiny-py{sys.version_info[0]}{sys.version_info[1]}.txt"
    lock.write_text("# nothing is downloaded in this test\n", encoding="utf-8")
    shutil.copy(lock, lock.with_name(lock.name.replace("tiny", "cpu")))
    return folder


# A build backend of a few lines, so that an editable install needs no package index at all.
BACKEND = """
import zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "qwenlib-0.1.0-py3-none-any.whl"
    info = "qwenlib-0.1.0.dist-info/"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: qwenlib\\nVersion: 0.1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name

build_wheel = build_editable
"""


def make(tmp_path: Path, *targets: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, without a terminal."""
    return subprocess.run(
        ["make", *targets],
        cwd=tmp_path / "checkout",
        env={**os.environ, "PYTHON": sys.executable, "MAKEFLAGS": "", **environ},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def make_venv(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run tools/make_venv.py on the tiny lock."""
    lock = folder / "requirements" / f"tiny-py{sys.version_info[0]}{sys.version_info[1]}.txt"
    return subprocess.run(
        [sys.executable, str(folder / "tools" / "make_venv.py"), ".venv", "--lock", str(lock)],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": "/nowhere", "PIP_USER": "1"},
    )


def test_a_second_install_does_nothing_and_a_broken_one_is_made_anew(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    first = make_venv(folder)
    assert first.returncode == 0, first.stderr
    for step in ("step 1 of 3: create", "step 2 of 3: install", "step 3 of 3: install qwenlib", "whole, after"):
        assert step in first.stdout
    stamp = folder / ".venv" / "qwenlib-installed.json"
    made = stamp.stat().st_mtime_ns

    second = make_venv(folder)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == made

    # pyproject changed: qwenlib alone is installed anew
    with open(folder / "pyproject.toml", "a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    third = make_venv(folder)
    assert "step 1 of 1: install qwenlib" in third.stdout

    # no stamp, as an interrupted install leaves it: everything anew, and what was there is gone
    stamp.unlink()
    (folder / ".venv" / "half-written").touch()
    fourth = make_venv(folder)
    assert "step 1 of 3: create" in fourth.stdout
    assert stamp.is_file()
    assert not (folder / ".venv" / "half-written").exists()


def test_a_failed_install_leaves_no_stamp_and_a_moved_environment_is_made_anew(tmp_path: Path) -> None:
    assert make_venv(checkout(tmp_path)).returncode == 0
    moved = tmp_path / "moved"
    (tmp_path / "checkout").rename(moved)
    (lock,) = (moved / "requirements").glob("tiny-*.txt")
    lock.write_text("no-such-package-of-qwenlib==1.0\n", encoding="utf-8")
    result = make_venv(moved)
    # The scripts of an environment hold absolute paths: after a move everything is made anew.
    assert "step 1 of 3: create" in result.stdout
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("qwenlib: failed: step 2 of 3")
    assert not (moved / ".venv" / "qwenlib-installed.json").exists()


def test_too_small_a_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    script = folder / "tools" / "make_venv.py"
    text = script.read_text(encoding="utf-8")
    assert '"cpu": 6 * 2**30' in text
    script.write_text(text.replace('"cpu": 6 * 2**30', '"cpu": 2**60'), encoding="utf-8")
    result = make(tmp_path, "install")
    assert result.returncode == 2
    assert "GiB are free below" in result.stderr
    assert not (folder / ".venv").exists()


def test_python_3_9_is_optional_for_make_test_py39(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    (folder / "tools" / "find_python").write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    result = make(tmp_path, "test-py39")
    assert result.returncode == 0
    assert "no Python 3.9" in result.stdout
