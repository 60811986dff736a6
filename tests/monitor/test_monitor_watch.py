"""Watching real launches, with ranks that print MindFormers' lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from qwenlib.errors import WorkFailed
from qwenlib.launch import Plan, start
from qwenlib.monitor import read_metrics, watch

RANK = """
import os, sys, time
rank, steps, fail = int(os.environ["RANK_ID"]), int(sys.argv[1]), int(sys.argv[2])
time.sleep(1.0)
for step in range(1, steps + 1):
    print(f"x - INFO - {{ Epoch:[  1/  1], step:[{step:5d}/{steps:5d}], loss: {rank + 8 / step:5.3f}, "
          f"per_step_time: 20ms, lr: 0.001, overflow cond: False, loss_scale: 1.0")
    print(f"x - INFO -   {step / steps:4.1%} |     | 50.00000 samples/s/p  0:00:01 }}")
    if step == fail and rank == 1:
        sys.exit("the disk is full")
    time.sleep(0.02)
"""


def plan(tmp_path: Path, steps: int, fail: int = 0) -> Plan:
    sleeper = [sys.executable, "-c", "import time; time.sleep(0.2)"]
    command = [sys.executable, "-c", RANK, str(steps), str(fail)]
    return Plan(command, 2, tmp_path, "dynamic_cluster", scheduler_command=sleeper, grace=1.0)


def test_watch_returns_the_metrics_and_leaves_the_picture(tmp_path, capsys):
    with start(plan(tmp_path, 30)) as run:
        frame = watch(run, seq_length=10, title="04_lora", real_share=0.5, seconds=0.3, timeout=60)
    assert list(frame["step"]) == list(range(1, 31)) and frame["loss"].iloc[-1] == pytest.approx(8 / 30, abs=1e-3)
    assert set(frame["tokens_per_second"]) == {1000.0} and set(frame["real_tokens_per_second"]) == {500.0}
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and read_metrics(tmp_path).equals(frame)
    said = capsys.readouterr().err
    assert "04_lora: starting and compiling…" in said and "04_lora: step 30/30" in said


def test_the_last_stage_can_lead(tmp_path):
    with start(plan(tmp_path, 4)) as run:
        frame = watch(run, seq_length=10, lead=1, timeout=60)
    assert list(frame["loss"]) == [9.0, 5.0, pytest.approx(3.667), 3.0]


def test_a_failure_leaves_what_was_seen(tmp_path):
    with start(plan(tmp_path, 3000, fail=5)) as run, pytest.raises(WorkFailed) as failed:
        watch(run, seq_length=10, timeout=60)
    assert "rank 1 of 2 ended with exit code 1" in str(failed.value) and "| the disk is full" in str(failed.value)
    assert len(read_metrics(tmp_path)) >= 3 and (tmp_path / "loss.png").stat().st_size > 5000


def test_a_picture_that_cannot_be_drawn_does_not_end_the_training(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("qwenlib.monitor.plots.plot", broken)
    with start(plan(tmp_path, 10)) as run:
        assert len(watch(run, seq_length=10, timeout=60)) == 10
    assert capsys.readouterr().err.count("the live plot is off: RuntimeError: no fonts") == 1


CELL = """
import sys
from qwenlib import launch, monitor
sleeper = [sys.executable, "-c", "import time; time.sleep(0.2)"]
command = [sys.executable, "-c", {rank!r}, "150", "0"]
with launch.start(launch.Plan(command, 2, {folder!r}, "dynamic_cluster", scheduler_command=sleeper)) as run:
    frame = monitor.watch(run, seq_length=10, title="04_lora", seconds=1)
"""


@pytest.mark.notebook
@pytest.mark.parametrize("headless", [True, False])
def test_a_notebook_shows_one_picture_that_moves(tmp_path, monkeypatch, headless):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("QWENLIB_HEADLESS", "1" if headless else "0")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    cell = nbformat.v4.new_code_cell(CELL.format(rank=RANK, folder=str(tmp_path / "run")))
    updates = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, *rest):
            updates.append(message["msg_type"])
            return super().process_message(message, *rest)

    Client(nbformat.v4.new_notebook(cells=[cell]), timeout=120, kernel_name="python3").execute()
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    texts = [output["data"]["text/plain"] for output in cell.outputs if output.output_type == "display_data"]
    lines = [output["text"] for output in cell.outputs if output.output_type == "stream"]
    assert len(pictures) == 1, "one picture, however often it was redrawn"
    if headless:
        assert "update_display_data" not in updates and len(texts) == 1
        assert "04_lora: step 150/150" in "".join(lines) and len("".join(lines).splitlines()) < 15
    else:
        assert 2 <= updates.count("update_display_data") <= 20 and not lines
        assert texts[0].startswith("04_lora: step 150/150")
