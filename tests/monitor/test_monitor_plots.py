from __future__ import annotations

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from qwenlib.monitor.metrics import to_frame
from qwenlib.monitor.plots import MOST_POINTS, LivePlot, duration, plot


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
@pytest.mark.filterwarnings("error")
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
    monkeypatch.setattr("qwenlib.monitor.plots.time.monotonic", lambda: clock[0])
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
