"""Workbooks made of the fixture notebooks, and the runner as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "notebooks"
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}


def make_book(folder: Path, *names: str) -> Path:
    stages = ("01_env", "02_weights", "03_data", "04_lora")
    for stage, name in zip(stages, names):
        (folder / stage).mkdir(parents=True)
        shutil.copy(FIXTURES / f"{name}.ipynb", folder / stage / f"{stage}.ipynb")
    return folder


def lives(process: psutil.Process) -> bool:
    """It runs, and is not only waiting to be asked for its exit code."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Command:
    """`qwenlib workbook run` as a process of its own; whatever it started is ended with the test."""

    def __init__(self, notebooks: Path, output: Path, *more: str):
        self.output = output
        argv = [
            sys.executable,
            "-m",
            "qwenlib",
            "workbook",
            "run",
            "--notebooks",
            str(notebooks),
            "--output",
            str(output),
        ]
        self.process = subprocess.Popen(
            [*argv, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRON,
            start_new_session=True,
        )
        self.seen: List[psutil.Process] = []

    def until_ready(self, seconds: float = 120) -> None:
        """Wait until the cell of the first stage says that it sleeps; remember all processes of the run."""
        deadline = time.monotonic() + seconds
        while not (self.output / "01_env" / "ready").exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.seen = psutil.Process(self.process.pid).children(recursive=True)
        assert self.seen, "the kernel should be a child of the runner"

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def end(self, seconds: float = 60) -> Any:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def alive(self) -> List[psutil.Process]:
        """Processes of the run that still live."""
        return [each for each in self.seen if lives(each)]

    def record(self) -> Dict[str, Any]:
        content: Dict[str, Any] = json.loads((self.output / "run.json").read_text(encoding="utf-8"))
        return content
