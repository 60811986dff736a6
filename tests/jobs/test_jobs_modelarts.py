"""A training job runs the workbook once per node, brings everything home, and ends with the run's exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from qwenlib.errors import Refused
from qwenlib.jobs import modelarts as job
from qwenlib.jobs import obs, once, scrub

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "notebooks"
SECRET = 'tür&"key/1234567890'

MOXING = """
import json, os, shutil
def _local(url):
    return url.replace("obs://", os.environ["FAKE_OBS"] + "/")
class file:
    @staticmethod
    def is_directory(url):
        return os.path.isdir(_local(url))
    @staticmethod
    def copy(source, target):
        os.makedirs(os.path.dirname(_local(target)), exist_ok=True)
        shutil.copy(_local(source), _local(target))
    @staticmethod
    def copy_parallel(source, target):
        shutil.copytree(_local(source), _local(target), dirs_exist_ok=True)
"""
"""What the job calls of Huawei's moxing, which no package index has, over a local folder."""


def book(folder: Path, name: str, code: str = "") -> Path:
    stage = folder / "01_env"
    stage.mkdir(parents=True)
    notebook = json.loads((FIXTURES / f"{name}.ipynb").read_text(encoding="utf-8"))
    if code:
        cell = {
            "cell_type": "code",
            "execution_count": None,
            "id": "more",
            "metadata": {},
            "outputs": [],
            "source": code,
        }
        notebook["cells"].insert(3, cell)
    (stage / "01_env.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return folder


def start(tmp_path: Path, notebooks: Path, *more: str, **environ: str) -> subprocess.Popen:
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "moxing.py").write_text(MOXING, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), str(tmp_path / "site")])
    argv = [sys.executable, "-m", "qwenlib.jobs.modelarts", "--notebooks", str(notebooks), "--only", "01_env"]
    argv += ["--output", str(tmp_path / "run"), "--lock_dir", str(tmp_path / "lock"), *more]
    environ = {**os.environ, "PYTHONPATH": path, "FAKE_OBS": str(tmp_path / "obs"), **environ}
    return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen, seconds: float = 120) -> Tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.mark.notebook
@pytest.mark.slow
def test_processes_of_a_node_run_the_workbook_once(tmp_path: Path) -> None:
    log = tmp_path / "started"
    notebooks = book(tmp_path / "book", "ok", f"open({str(log)!r}, 'a').write('x')")
    ranks = [
        start(tmp_path, notebooks, MA_VJ_NAME="job-1", RANK_ID=str(rank), RANK_SIZE="8", DEVICE_ID=str(rank))
        for rank in range(3)
    ]
    codes = [end(process)[0] for process in ranks]
    assert codes == [0, 0, 0]
    assert log.read_text() == "x"


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("ok", 0), ("failing_cell", 1), ("refused", 2)])
def test_run_is_uploaded_without_secrets_and_the_exit_code_is_the_runs(name: str, code: int, tmp_path: Path) -> None:
    notebooks = book(tmp_path / "book", name, "import os\nprint(os.environ['S3_SECRET_ACCESS_KEY'])")
    found, out, err = end(
        start(
            tmp_path,
            notebooks,
            "--train_url",
            "obs://bucket/run",
            MA_VJ_NAME="job-2",
            VC_TASK_INDEX="1",
            S3_SECRET_ACCESS_KEY=SECRET,
        )
    )
    assert found == code, err
    home = tmp_path / "obs" / "bucket" / "run" / "node_1"
    assert (home / "run.json").is_file()
    executed = (home / "01_env" / "01_env.ipynb").read_text(encoding="utf-8")
    assert scrub.HIDDEN in executed
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in home.rglob("*") if path.is_file()]
    escaped = json.dumps(SECRET)[1:-1]
    assert not [text for text in [*texts, out, err] if SECRET in text or escaped in text or "key/1234567890" in text]


@pytest.mark.notebook
@pytest.mark.slow
def test_a_stopped_job_still_uploads(tmp_path: Path) -> None:
    notebooks = book(tmp_path / "book", "ok", "print('here', flush=True)\nimport time\ntime.sleep(600)")
    process = start(tmp_path, notebooks, "--train_url", str(tmp_path / "home"), MA_VJ_NAME="job-3")
    deadline = time.monotonic() + 60
    while '"running"' not in _text(tmp_path / "run" / "run.json") and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143
    assert (tmp_path / "home" / "run.json").is_file()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--nonsense", "3"], "nonsense"),
        (["--epochs"], "no value"),
        (["stray"], "belongs to no option"),
        (["--my_password", "x"], "looks like a secret"),
        (["--copy_in", "x"], "FROM=TO"),
        (["--copy_in", "/there/is/none=/tmp/x"], "/there/is/none"),
    ],
)
def test_wrong_arguments_are_refused(more: List[str], words: str, tmp_path: Path) -> None:
    code, _, err = end(start(tmp_path, book(tmp_path / "book", "ok"), *more))
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_parameters_come_from_the_jobs_arguments() -> None:
    assert job.assignments(["--epochs", "3", "--04_lora.port=1", "--text=a=b"]) == [
        "epochs=3",
        "04_lora.port=1",
        "text=a=b",
    ]


def test_obs_without_moxing_is_refused_before_the_run() -> None:
    with pytest.raises(Refused, match="moxing"):
        obs.require("obs://bucket/x")


def test_inputs_are_copied_in(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.txt").write_text("1")
    obs.copy(str(tmp_path / "a"), str(tmp_path / "t"))
    obs.copy(str(tmp_path / "a" / "b" / "c.txt"), str(tmp_path / "u" / "d.txt"))
    assert (tmp_path / "t" / "b" / "c.txt").read_text() == (tmp_path / "u" / "d.txt").read_text() == "1"


def test_once_returns_what_the_first_process_ended_with(tmp_path: Path) -> None:
    begun = time.time()
    runs: List[int] = []

    def work() -> int:
        runs.append(1)
        return 7

    assert [once.once(tmp_path, "a/b", work, begun) for _ in range(3)] == [7, 7, 7]
    assert len(runs) == 1
    assert once.once(tmp_path, "a/b", work, time.time() + 1) == 7  # a new attempt of the job
    assert len(runs) == 2


def test_a_job_right_after_another_is_not_taken_for_a_process_of_it(tmp_path: Path) -> None:
    script = (
        "from qwenlib.jobs import modelarts, once\n"
        f"once.once({str(tmp_path)!r}, 'local', lambda: print('worked') or 0, modelarts._started())"
    )
    environ: Dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout == "worked\n"


def test_a_worker_that_died_is_told_to_the_others(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom qwenlib.jobs import once\n"
        f"once.once({str(tmp_path)!r}, 'j', lambda: os.kill(os.getpid(), 9), time.time())"
    )
    environ: Dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=environ, check=False)
    with pytest.raises(Exception, match="without a word"):
        once.once(tmp_path, "j", lambda: 0, time.time())


def test_scrub_leaves_short_words_and_binary_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("true abcdefgh")
    (tmp_path / "a.log.1").write_text("abcdefgh, rotated")
    (tmp_path / "b.ckpt").write_bytes(b"abcdefgh")
    changed = scrub.scrub(tmp_path, {"MY_TOKEN": "true", "OTHER_SECRET": "abcdefgh"})
    assert changed == [tmp_path / "a.log", tmp_path / "a.log.1"]
    assert (tmp_path / "a.log.1").read_text() == "(hidden), rotated"
    assert (tmp_path / "a.log").read_text() == "true (hidden)"
    assert (tmp_path / "b.ckpt").read_bytes() == b"abcdefgh"


def test_what_the_disk_or_the_interrupt_key_says_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert job.main(["--lock_dir", str(tmp_path / "file")], {}) == 2
    assert "the folder" in capsys.readouterr().err

    def raising(error: BaseException) -> int:
        def work(*_: object) -> int:
            raise error

        monkeypatch.setattr(job, "work", work)
        return job.main(["--lock_dir", str(tmp_path / type(error).__name__)], {})

    assert raising(OSError(28, "No space left on device", "/full/x")) == 1
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.splitlines() == [
        "qwenlib: failed: /full/x: No space left on device.",
        "qwenlib: interrupted.",
    ]


def test_without_a_cache_the_run_is_not_put_into_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job.modelarts, "CACHE", str(tmp_path / "no-cache"))
    assert job._default_output({}) == tmp_path / "runs" / "job"
