from __future__ import annotations

import json
import os
import time

import psutil
import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from qwenlib.errors import Refused
from qwenlib.monitor.metrics import to_frame
from qwenlib.monitor.panel import LivePlot, brief, duration
from qwenlib.monitor.plots import MOST_POINTS, compare, plot


def record(step, **values):
    return {
        "step": step,
        "total_steps": 40,
        "epoch": 1,
        "loss": 5.0 / step,
        "per_step_time_ms": 9000 if step == 1 else 500,
        "lr": 1e-3 / step,
        "loss_scale": 1024.0,
        "overflow": step == 3,
        "tokens_per_second_per_rank": 50.0,
        "tokens_per_second": 100.0,
        "real_tokens_per_second": 70.0,
        **values,
    }


def pixels(path):
    from matplotlib.image import imread

    return imread(str(path))


def test_the_picture_is_saved_and_shows_something(tmp_path, capsys):
    panel = LivePlot(tmp_path, "04_lora")
    panel.update([record(step) for step in range(1, 21)])
    assert panel.finish() == tmp_path / "loss.png"
    image = pixels(tmp_path / "loss.png")
    assert image.shape[:2] == (340, 1100)
    colours = {tuple(pixel) for pixel in (image[::2, ::2, :3] * 255).astype(int).reshape(-1, 3)}
    assert (31, 119, 180) in colours, "the smoothed loss is drawn"
    assert "04_lora: step 20/40, loss 0.250, 100 tokens/s, about 10 s left" in capsys.readouterr().err


def test_what_is_drawn(tmp_path):
    loss, rate, speed = plot(to_frame([record(step) for step in range(1, 21)]), "title").axes
    raw, smooth, overflow = loss.lines
    assert list(raw.get_xdata()) == list(range(1, 21)) and raw.get_ydata()[0] == 5.0
    assert smooth.get_ydata()[-1] != raw.get_ydata()[-1] and list(overflow.get_xdata()) == [3]
    assert len(rate.lines) == 1 and [line.get_label() for line in speed.lines] == ["all tokens", "without padding"]
    assert speed.lines[0].get_xdata()[0] == 2, "the step that compiled would squeeze all others"


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1)],
        [record(1, loss=None), record(2, loss=None)],
        [record(step, lr=None, overflow=None, tokens_per_second=None) for step in (1, 2, 3)],
    ],
)
@pytest.mark.filterwarnings("error", "default::ResourceWarning")  # what other tests left open is not its own
def test_odd_runs_can_be_drawn(tmp_path, records):
    plot(to_frame(records)).savefig(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png").size


def test_a_long_run_is_drawn_with_few_points():
    loss = plot(to_frame([record(step) for step in range(1, 10_001)])).axes[0]
    assert len(loss.lines[0].get_xdata()) <= 2 * MOST_POINTS


def test_no_step_means_no_picture(tmp_path, capsys):
    assert LivePlot(tmp_path).finish() is None
    assert not list(tmp_path.iterdir()) and "no step yet" in capsys.readouterr().err


def test_lines_are_printed_every_few_seconds_only(tmp_path, capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("qwenlib.monitor.panel.time.monotonic", lambda: clock[0])
    panel = LivePlot(tmp_path, "run", seconds=5)
    for tick in range(1, 161):
        clock[0] += 0.125
        panel.update([record(tick - 99)] if tick >= 100 else [])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[0] == "run: starting and compiling… 5 s, no step yet"
    assert said[-1] == "run: step 61/40, loss 0.082, 100 tokens/s, 20 s"


def test_time_left_does_not_count_the_compilation(tmp_path):
    panel = LivePlot(tmp_path, total_steps=100)
    assert panel.seconds_left() is None
    panel.records = [record(1)]
    assert panel.seconds_left() is None
    panel.records = [record(step) for step in range(1, 11)]
    assert panel.seconds_left() == 45.0


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (75, "1 min 15 s"), (3600 * 5 + 119, "5 h 1 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def launch(**values):
    entry = {"rank": 0, "pid": os.getpid(), "create_time": psutil.Process().create_time(), "state": "running"}
    return {"state": "running", "started": time.time() - 5, "ranks": [{**entry, **values}]}


def test_the_panel_knows_state_and_memory_of_the_ranks(tmp_path, capsys):
    panel = LivePlot(tmp_path, "run")
    panel.update([], launch())
    rank, state, pid, memory, peak, cpu, card = panel.rows()[0]
    assert (rank, state, pid, cpu, card) == ("0", "running", str(os.getpid()), "", ""), "a share of no time is none"
    panel.memory.look(launch(), force=True)
    assert panel.rows()[0][5].endswith(" %")
    rss = psutil.Process().memory_info().rss / 2**30
    assert float(peak) <= rss * 1.2 and float(memory.split()[0]) == pytest.approx(float(peak), abs=0.01)
    assert 5 <= int(panel.status().partition("compiling… ")[2].partition(" s")[0]) < 60
    assert panel.memory.history[0][1][0] > 2**20
    panel.update([], launch(state="failed", signal="SIGKILL", pid=2**22 + 5))
    assert panel.rows()[0][1] == "failed SIGKILL" and panel.rows()[0][3] == ""


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_run_that_ended_early_has_no_time_left(tmp_path, state):
    panel = LivePlot(tmp_path, "run")
    panel.update([], {"state": state, "started": 100.0, "finished": 175.0})
    assert panel.status() == f"run: {state} after 1 min 15 s, no step"
    panel.update([record(step) for step in (1, 2, 3)], None)
    assert panel.status().endswith(f", {state} after 1 min 15 s")
    panel.update([], {"state": "running", "started": 100.0})
    assert panel.status().endswith(" left")


def test_nothing_from_a_log_becomes_html(tmp_path):
    (tmp_path / "rank.log").write_text("one\n<script>alert(1)</script> & more\n" + "x" * 900 + "\n")
    panel = LivePlot(tmp_path, "<b>title</b>", log=tmp_path / "rank.log")
    panel.update([record(1)], launch(state="<i>odd</i>"))
    words = panel._words()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in words["text/html"]
    assert not any(tag in words["text/html"] for tag in ("<script", "<i>", "<b>title"))
    assert "<script>alert(1)</script>" in words["text/plain"] and len(words["text/plain"]) < 2000


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "2026-11-25 09:36:22,111 - mindformers[mindformers/core/callback.py:318] - INFO - { Epoch:[  1/ 20]",
            "09:36:22 INFO { Epoch:[  1/ 20]",
        ),
        (
            "2026-11-25 09:36:22,111 - mindformers[x.py:3] - WARNING -    0.5% |          | 50.0",
            "09:36:22 WARNING  0.5% |  | 50.0",
        ),
        ("ValueError: 2026-11-25 is no day", "ValueError: 2026-11-25 is no day"),
        ("x" * 159 + "65536", "x" * 159 + "…"),
    ],
)
def test_a_log_line_is_shown_without_what_all_of_them_say(line, shown):
    assert brief(line) == shown


def test_many_ranks_are_cut(tmp_path):
    panel = LivePlot(tmp_path)
    panel.update([], {"state": "running", "ranks": [{"rank": rank, "state": "running"} for rank in range(40)]})
    words = panel._words()
    assert words["text/html"].count("<tr>") == 17 and "and 24 more ranks" in words["text/plain"]


def test_memory_is_a_picture_of_its_own(tmp_path):
    memory = [(10.0, {0: 2**30, 1: 2**31}), (70.0, {0: 2**30})]
    axes = plot(to_frame([record(1)]), memory=memory).axes
    assert len(axes) == 4 and [list(line.get_xdata()) for line in axes[3].lines] == [[0.0, 1.0], [0.0]]
    assert list(axes[3].lines[1].get_ydata()) == [2.0]


def test_mfu_is_said(tmp_path):
    panel = LivePlot(tmp_path, "run")
    panel.records = [record(1, mfu=0.1234)]
    assert "MFU 12.3%" in panel.status()


def write_run(folder, steps):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in range(1, steps + 1)))
    return folder


def test_runs_are_compared_in_one_picture(tmp_path):
    runs = [write_run(tmp_path / name / "04_lora", steps) for name, steps in (("a", 5), ("b", 9))]
    loss, rate, speed = compare(runs, file=tmp_path / "both.png").axes
    assert [line.get_label() for line in loss.lines] == ["a", "b"] and len(rate.lines) == len(speed.lines) == 2
    assert [len(line.get_xdata()) for line in loss.lines] == [5, 9] and pixels(tmp_path / "both.png").shape[1] == 1300
    assert [line.get_label() for line in compare({"x": runs[0]}).axes[0].lines] == ["x"]


def test_runs_without_steps_cannot_be_compared(tmp_path):
    with pytest.raises(Refused, match=r"b: no metrics\.jsonl"):
        compare([write_run(tmp_path / "a", 2), tmp_path / "b"])
    with pytest.raises(Refused, match="at least one run"):
        compare([])
