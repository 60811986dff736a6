"""Watching real launches, with ranks that print MindFormers' lines."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from qwenlib import launch
from qwenlib.errors import Refused, WorkFailed
from qwenlib.launch import Plan, start
from qwenlib.monitor import attach, read_metrics, watch
from qwenlib.monitor.facts import Facts

RANK = """
import os, sys, time
rank, steps, fail = int(os.environ["RANK_ID"]), int(sys.argv[1]), int(sys.argv[2])
while len(sys.argv) > 3 and not os.path.exists(sys.argv[3]):
    time.sleep(0.02)
time.sleep(1.0)
for step in range(1, steps + 1):
    print(f"x - INFO - {{ Epoch:[  1/  1], step:[{step:5d}/{steps:5d}], loss: {rank + 8 / step:5.3f}, "
          f"per_step_time: 20ms, lr: 0.001, overflow cond: False, loss_scale: 1.0")
    print(f"x - INFO -   {step / steps:4.1%} |     | 50.00000 samples/s/p  0:00:01 }}")
    if step == fail and rank == 1:
        while f"step:[{step:5d}/" not in open("../rank_0/rank.log").read():
            time.sleep(0.02)
        sys.exit("the disk is full")
    time.sleep(0.02)
"""


def plan(tmp_path: Path, steps: int, fail: int = 0, go: str = "") -> Plan:
    """Two ranks of so many steps; rank 1 fails at step ``fail``, when rank 0 is as far. They begin when the file
    ``go`` is there."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(0.2)"]
    command = [sys.executable, "-c", RANK, str(steps), str(fail), *filter(None, [go])]
    return Plan(command, 2, tmp_path, "dynamic_cluster", scheduler_command=sleeper, grace=1.0)


class Heard(io.StringIO):
    """A stderr that makes a file once it was told something."""

    def __init__(self, words: str, file: Path):
        super().__init__()
        self.words, self.file = words, file

    def write(self, text: str) -> int:
        if self.words in text:
            self.file.touch()
        return super().write(text)


def test_watch_returns_the_metrics_and_leaves_the_picture(tmp_path, monkeypatch):
    heard = Heard("04_lora: starting and compiling…", tmp_path / "go")
    monkeypatch.setattr(sys, "stderr", heard)
    with start(plan(tmp_path, 30, go=str(tmp_path / "go"))) as run:
        frame = watch(run, seq_length=10, title="04_lora", real_share=0.5, seconds=0.3, timeout=60)
    assert list(frame["step"]) == list(range(1, 31)) and frame["loss"].iloc[-1] == pytest.approx(8 / 30, abs=1e-3)
    assert set(frame["tokens_per_second"]) == {1000.0} and set(frame["real_tokens_per_second"]) == {500.0}
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and read_metrics(tmp_path).equals(frame)
    assert heard.file.exists() and "04_lora: step 30/30" in heard.getvalue()


def test_the_last_stage_can_lead(tmp_path):
    with start(plan(tmp_path, 4)) as run:
        frame = watch(run, seq_length=10, lead=1, timeout=60)
    assert list(frame["loss"]) == [9.0, 5.0, pytest.approx(3.667), 3.0]


def test_a_failure_leaves_what_was_seen(tmp_path):
    with start(plan(tmp_path, 3000, fail=5)) as run, pytest.raises(WorkFailed) as failed:
        watch(run, seq_length=10, timeout=60)
    assert "rank 1 of 2 ended with exit code 1" in str(failed.value) and "| the disk is full" in str(failed.value)
    assert len(read_metrics(tmp_path)) >= 4 and (tmp_path / "loss.png").stat().st_size > 5000


def test_a_picture_that_cannot_be_drawn_does_not_end_the_training(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("qwenlib.monitor.panel.plot", broken)
    with start(plan(tmp_path, 10)) as run:
        assert len(watch(run, seq_length=10, timeout=60)) == 10
    assert capsys.readouterr().err.count("the live plot is off: RuntimeError: no fonts") == 1


def test_a_failure_is_told_with_its_diagnosis(tmp_path):
    message = "EJ0002: The network port is down."
    command = [sys.executable, "-c", f"import time; time.sleep(0.3); print({message!r}); raise SystemExit(1)"]
    with start(Plan(command, 1, tmp_path, grace=1.0)) as run, pytest.raises(WorkFailed) as failed:
        watch(run, seq_length=10, timeout=60)
    told, _, known = str(failed.value).partition("\n\n")
    assert told.startswith("rank 0 ended with exit code 1") and known.startswith("Diagnosis (EJ0002): A card's network")
    assert "rank_0/rank.log, line 1" in known and "What to do: Check `hccn_tool" in known and "\n" not in known


def test_an_unknown_failure_has_no_diagnosis(tmp_path):
    with start(plan(tmp_path, 300, fail=2)) as run, pytest.raises(WorkFailed) as failed:
        watch(run, seq_length=10, timeout=60)
    assert "Diagnosis" not in str(failed.value)


def test_anybody_can_watch_who_knows_the_directory(tmp_path, capsys):
    with start(plan(tmp_path, 60)) as run:
        Facts("04_lora", 10, 60, 0.5, 1).save(tmp_path, run.id)
        frame = attach(tmp_path, seconds=0.2, timeout=60)
        assert run.wait()["state"] == "done"
    assert len(frame) == 60 and frame["loss"].iloc[-1] > 1, "the last stage's rank, as told in watch.json"
    assert set(frame["tokens_per_second"]) == {1000.0} and set(frame["real_tokens_per_second"]) == {500.0}
    assert "04_lora: step 60/60" in capsys.readouterr().err
    again = attach(tmp_path)
    assert again.equals(frame) and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 60


def test_without_facts_the_metrics_tell_them(tmp_path):
    with start(plan(tmp_path, 20)) as run:
        watch(run, seq_length=10, real_share=0.5, timeout=60)
    (tmp_path / "watch.json").unlink()
    facts = Facts.load(tmp_path, run.id)
    assert (facts.seq_length, facts.real_share, facts.lead) == (10, 0.5, 0)
    (tmp_path / "watch.json").write_text('{"launch": "another", "seq_length": 7}')
    assert Facts.load(tmp_path, run.id).seq_length == 10


def test_giving_up_on_watching_does_not_end_the_training(tmp_path):
    with start(plan(tmp_path, 20_000)) as run:
        with pytest.raises(WorkFailed, match=r"after 0.5 s\. The training goes on in .* Stop it: qwenlib stop"):
            attach(tmp_path, timeout=0.5)
        assert run.poll()["state"] == "running"
        assert launch.attach(tmp_path).stop()["state"] == "stopped"
    assert run.poll()["state"] == "stopped"


def test_a_killed_supervisor_is_told(tmp_path):
    with start(plan(tmp_path, 2000)) as run:
        os.kill(run.poll()["supervisor"]["pid"], 9)
        with pytest.raises(WorkFailed, match=r"the supervisor of the ranks \(pid \d+\) is gone"):
            attach(tmp_path, timeout=30)


def test_nothing_to_attach_to_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"is no run directory of a launch \(launch\.json is missing\)"):
        attach(tmp_path)


def test_the_stop_button_ends_the_ranks(tmp_path, monkeypatch):
    from qwenlib.monitor import panel

    made = []

    class Pressed(panel.LivePlot):
        def __init__(self, *values, **named):
            super().__init__(*values, **named)
            made.append(self)

        def update(self, records, launch=None):
            super().update(records, launch)
            if self.records:
                self.stop_asked.set()

    monkeypatch.setattr(sys.modules["qwenlib.monitor.watch"], "LivePlot", Pressed)
    with start(plan(tmp_path, 2000)) as run, pytest.raises(WorkFailed, match="it was stopped") as failed:
        watch(run, seq_length=10, timeout=60)
    assert "Diagnosis" not in str(failed.value) and [row[1] for row in made[0].rows()] == ["stopped SIGTERM"] * 2


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
        assert 2 <= updates.count("update_display_data") <= 30 and not lines
        button, status = texts[:2]
        assert status.startswith("04_lora: step 150/150, loss") and "pid" in status and button == ""
