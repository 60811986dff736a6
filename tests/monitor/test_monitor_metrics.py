from __future__ import annotations

import json

import pytest

pandas = pytest.importorskip("pandas")

from qwenlib.errors import Refused  # noqa: E402
from qwenlib.monitor.metrics import COLUMNS, MetricsTail, last_steps, read_metrics, summarize  # noqa: E402

LINES = (
    "{{ Epoch:[  1/  1], step:[{step:5d}/   10], loss: {loss}, per_step_time: {ms}ms, lr: 0.001, "
    "overflow cond: {overflow}, loss_scale: 1024.0\n 10.0% |█  | {rate} samples/s/p  0:00:01 }}\n"
)


def lines(step, loss="2.0", ms=10, overflow=False, rate=4.0) -> bytes:
    return LINES.format(step=step, loss=loss, ms=ms, overflow=overflow, rate=rate).encode()


def test_steps_go_from_the_log_to_the_table(tmp_path):
    log = tmp_path / "rank.log"
    tail = MetricsTail(log, tmp_path / "metrics.jsonl", seq_length=128, ranks=2, real_share=0.5)
    assert tail.update() == [] and not (tmp_path / "metrics.jsonl").exists()
    with open(log, "wb") as stream:
        stream.write(lines(1, ms=5000, rate=0.01) + lines(2, overflow=True)[:-5])
        stream.flush()
        assert [record["step"] for record in tail.update()] == [1]
        stream.write(lines(2)[-5:] + lines(3, loss="nan"))
        stream.flush()
        assert [record["step"] for record in tail.update(last=True)] == [2, 3]
    frame = read_metrics(tmp_path)
    assert list(frame["step"]) == [1, 2, 3] and list(frame["overflow"]) == [False, True, False]
    assert frame["loss"].isna().tolist() == [False, False, True]
    row = frame.iloc[1]
    assert row["tokens_per_second_per_rank"] == 4 * 128
    assert row["tokens_per_second"] == 4 * 128 * 2 and row["real_tokens_per_second"] == 4 * 128
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_first_step_which_compiles_is_no_speed(tmp_path):
    (tmp_path / "log").write_bytes(lines(1, "3.0", 5000, rate=0.01) + lines(2, "2.0", overflow=True) + lines(3, "1.5"))
    MetricsTail(tmp_path / "log", tmp_path / "metrics.jsonl", 100, 2).update(last=True)
    found = summarize(read_metrics(tmp_path / "metrics.jsonl"))
    assert found["steps"] == 3 and found["step_ms"] == 10 and found["first_step_ms"] == 5000
    assert (found["first_loss"], found["last_loss"], found["overflows"]) == (3.0, 1.5, 1)
    assert (found["tokens_per_second_per_rank"], found["tokens_per_second"]) == (400, 800)
    json.dumps(found, allow_nan=False)


def test_no_steps_are_an_empty_table(tmp_path):
    frame = read_metrics(tmp_path)
    assert frame.empty and list(frame.columns) == list(COLUMNS) and summarize(frame) == {}


def test_a_last_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "total_steps": 2, "epoch": 1, "per_step_time_ms": 3}\n{"st')
    assert list(read_metrics(tmp_path)["step"]) == [1]


def test_a_broken_line_is_refused_with_its_place(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{}\n{"st\n')
    with pytest.raises(Refused, match=r"metrics\.jsonl, line 2: not JSON"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("values", [{"seq_length": 0}, {"ranks": 0}, {"real_share": 1.5}, {"real_share": float("nan")}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, values):
    with pytest.raises(Refused, match="seq_length and ranks must be at least 1 and real_share 0 to 1"):
        MetricsTail(tmp_path / "log", tmp_path / "m", **{"seq_length": 8, "ranks": 1, **values})


def metrics_tail(tmp_path, **values):
    return MetricsTail(tmp_path / "log", tmp_path / "metrics.jsonl", **{"seq_length": 128, "ranks": 1, **values})


def test_mfu_is_what_a_card_does_of_its_peak(tmp_path):
    (tmp_path / "log").write_bytes(lines(1))
    record = metrics_tail(tmp_path, flops_per_token=1e9, peak_flops=1e12).update(last=True)[0]
    assert record["mfu"] == pytest.approx(4 * 128 * 1e9 / 1e12)


@pytest.mark.parametrize("known", [{}, {"flops_per_token": 1e9}, {"peak_flops": 1e12}])
def test_an_unknown_chip_has_no_mfu(tmp_path, known):
    (tmp_path / "log").write_bytes(lines(1))
    assert metrics_tail(tmp_path, **known).update(last=True)[0]["mfu"] is None
    assert read_metrics(tmp_path)["mfu"].isna().all()


def test_without_a_row_length_there_are_steps_but_no_tokens(tmp_path):
    (tmp_path / "log").write_bytes(lines(1))
    record = metrics_tail(tmp_path, seq_length=None).update(last=True)[0]
    assert record["samples_per_second_per_rank"] == 4 and record["tokens_per_second"] is None


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("torn", ["", '{"step": 3, "lo'])
def test_a_second_watcher_goes_on_where_the_first_ended(tmp_path, kept, torn):
    (tmp_path / "log").write_bytes(b"".join(lines(step) for step in (1, 2, 3)))
    metrics_tail(tmp_path).update(last=True)
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text("".join(whole.splitlines(True)[:kept]) + torn)
    assert [record["step"] for record in metrics_tail(tmp_path).update(last=True)] == [1, 2, 3]
    assert (tmp_path / "metrics.jsonl").read_text() == whole


@pytest.mark.parametrize("kept", [0, 2, 4, 6, 7])
@pytest.mark.parametrize("before", [[], [1, 2]])
def test_a_restarted_training_goes_back_and_its_last_word_counts(tmp_path, kept, before):
    """A log of steps 3 4 5 6, then after a restart from step 4: 5 6 7; ``before``: what a resumed curve begins with."""
    (tmp_path / "log").write_bytes(b"".join(map(lines, before)))
    earlier = metrics_tail(tmp_path)
    earlier.update(last=True)
    earlier.close()
    (tmp_path / "log").write_bytes(b"".join(lines(step) for step in (3, 4, 5, 6, 5, 6, 7)))
    first = metrics_tail(tmp_path)
    first.update(last=True)
    first.close()
    whole = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [*before, 3, 4, 5, 6, 5, 6, 7]
    assert list(read_metrics(tmp_path)["step"]) == [*before, 3, 4, 5, 6, 7]
    (tmp_path / "metrics.jsonl").write_text("".join(whole.splitlines(True)[: len(before) + kept]))
    assert len(metrics_tail(tmp_path).update(last=True)) == len(before) + 7
    assert (tmp_path / "metrics.jsonl").read_text() == whole, "another watcher goes on at the very line"


def test_what_was_trained_once_more_replaces_what_it_was():
    from qwenlib.monitor.metrics import join

    first = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 9.0}]
    assert join([], first) == first
    assert join(first, [{"step": 2, "loss": 2.5}]) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


def test_of_two_watchers_one_writes_and_the_other_takes_over(tmp_path):
    first, second = metrics_tail(tmp_path), metrics_tail(tmp_path)
    log = open(tmp_path / "log", "ab", buffering=0)  # noqa: SIM115
    log.write(lines(1))
    assert [len(tail.update(last=True)) for tail in (first, second)] == [1, 1]
    log.write(lines(2))
    assert (second.update(), len(first.update(last=True)), len(second.update())) == ([], 1, 1)
    log.write(lines(3))
    first.close()
    assert [record["step"] for record in second.update(last=True)] == [3]
    log.close()
    assert list(read_metrics(tmp_path)["step"]) == [1, 2, 3]


def test_the_last_steps_are_as_narrow_as_a_page(tmp_path):
    line = {"total_steps": 9, "epoch": 1, "loss": 2.5, "per_step_time_ms": 3, "lr": 0.1, "tokens_per_second": 70.0}
    lines = [json.dumps({**line, "step": step}) for step in range(1, 10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    shown = last_steps(read_metrics(tmp_path), 3)
    assert list(shown) == ["step", "epoch", "loss", "lr", "per_step_time_ms", "tokens_per_second"]
    assert list(shown["step"]) == [7, 8, 9]


def test_lines_that_the_disk_did_not_take_follow_when_it_does(tmp_path, monkeypatch):
    import os

    from qwenlib.monitor import metrics

    log, path = tmp_path / "rank.log", tmp_path / "metrics.jsonl"
    tail = MetricsTail(log, path, seq_length=128, ranks=1)
    log.write_bytes(lines(1))
    assert len(tail.update()) == 1
    before, write = path.read_bytes(), os.write

    sizes = []

    def full(handle, data):  # takes a part of a line, then nothing
        sizes.append(len(data))
        if len(sizes) == 1:
            return write(handle, data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "write", full)
        log.write_bytes(lines(1) + lines(2))
        assert [record["step"] for record in tail.update()] == [2]
    assert "metrics.jsonl cannot be written: No space left on device" in tail.trouble
    assert path.read_bytes() == before
    log.write_bytes(lines(1) + lines(2) + lines(3))
    assert [record["step"] for record in tail.update(last=True)] == [3] and not tail.trouble
    assert list(read_metrics(path)["step"]) == [1, 2, 3]
