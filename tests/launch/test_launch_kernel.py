"""A real kernel under a real papermill: whichever is killed, no rank is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launch_tools import STUB, TAG, gone, running, until

from qwenlib.launch import attach, read_status

pytestmark = pytest.mark.notebook

CELL = """
import sys
from qwenlib.launch import Plan, start
run = start(Plan([sys.executable, {stub!r}, "ignore+fork+sleep:60"], 2, {run_dir!r}, "dynamic_cluster", grace=1.0,
                 scheduler_command=[sys.executable, {stub!r}, "sleep:60"]), detach={detach})
run.wait()
"""


@pytest.fixture
def notebook(tmp_path, tag):
    """Starts papermill on a notebook that launches; returns ``(papermill's process, the kernel, the run directory)``
    once the ranks run."""
    started = []

    def start_it(detach: bool = False):
        import nbformat

        run_dir = tmp_path / "run"
        cell = CELL.format(stub=STUB, run_dir=str(run_dir), detach=detach)
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, tmp_path / "in.ipynb")
        papermill = psutil.Popen(
            [sys.executable, "-m", "papermill", tmp_path / "in.ipynb", tmp_path / "out.ipynb"],
            env={**os.environ, TAG: tag, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        started.append(papermill)
        until(lambda: (read_status(run_dir) or {}).get("state") == "running", 60)
        kernels = [child for child in papermill.children() if "ipykernel" in " ".join(child.cmdline())]
        return papermill, kernels[0], run_dir

    yield start_it
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
        for left in running(tag):
            if "ipykernel" in " ".join(left.cmdline()):
                left.kill()


def test_a_killed_kernel_takes_its_tied_ranks_along(notebook, tag):
    papermill, kernel, _ = notebook()
    kernel.kill()
    papermill.wait(timeout=60)
    assert papermill.returncode != 0
    gone(tag, 30.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_papermill_takes_the_tied_ranks_along(notebook, tag, number):
    papermill, _, run_dir = notebook()
    papermill.send_signal(number)
    papermill.wait(timeout=30)
    gone(tag, 30.0)  # the kernel looks for its parent once a second
    assert read_status(run_dir)["state"] in ("stopped", "failed")


def test_detached_ranks_outlive_the_kernel(notebook, tag):
    papermill, kernel, run_dir = notebook(detach=True)
    kernel.kill()
    papermill.wait(timeout=60)
    run = attach(run_dir)
    until(lambda: len(running(tag)) == 6)  # supervisor, scheduler, ranks, their children
    assert run.poll()["state"] == "running"
    assert run.stop()["state"] == "stopped"
    gone(tag, 30.0)
