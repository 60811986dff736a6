from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlib.monitor.reader import LONGEST_LINE, Follower, LossReader, Step, parse_loss

STAMP = "2026-11-24 00:27:26,123 - mindformers[mindformers/core/callback/callback.py:313] - INFO - "
SINK = (
    STAMP + "{ Epoch:[  1/  5], step:[    2/13000], loss: 2.346, per_step_time: 1004ms, lr: 0.0008, "
    "overflow cond: False, loss_scale: 65536.0"
)
BAR = STAMP + "   0.0% |                                                  | 0.49801 samples/s/p  18:07:30 }"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (SINK, Step(2, 65000, 1, 2.346, 1004, 0.0008, 65536.0, False)),
        (
            STAMP + "{ Epoch:[  1/  5], step:[    4/13000], loss: 2.100, per_step_time: 1003ms, lr: 6.153846e-07, "
            "overflow cond: True, loss_scale: 32768.0",
            Step(4, 65000, 1, 2.1, 1003, 6.153846e-07, 32768.0, True),
        ),
        (  # no learning rate, no loss scale, the last step of five epochs
            STAMP + "{ Epoch:[  5/  5], step:[13000/13000], loss: 0.871, per_step_time: 15460ms, "
            "overflow cond: False, loss_scale: unavailable",
            Step(65000, 65000, 5, 0.871, 15460, None, None, False),
        ),
        (  # without sink mode: this step's loss, not the mean behind it
            STAMP + "{ Epoch:[  2/  2], step:[    1/    3], loss:[5.594/4.100], per_step_time: 3650ms, lr: 0.0, "
            "overflow cond: False, loss_scale: 65536.0",
            Step(4, 6, 2, 5.594, 3650, 0.0, 65536.0, False),
        ),
        (  # info.log's own beginning of a line
            "[INFO] 2026-11-24 00:25:12,085 [mindformers/core/callback/callback.py:318] print_output_info: "
            "{ Epoch:[  1/  2], step:[    2/    3], loss:[5.613/5.604], per_step_time: 12ms, lr: 0.0008, "
            "overflow cond: False, loss_scale: 65536.0",
            Step(2, 6, 1, 5.613, 12, 0.0008, 65536.0, False),
        ),
        (  # as published by others, older
            " mindformers[callback.py:305] - INFO - { Epoch:[  1/  1], step:[   92/25880], loss: 9.902, "
            "per_step_time: 2068ms, lr: 9.92268e-06, overflow cond: False, loss_scale: 262144.0",
            Step(92, 25880, 1, 9.902, 2068, 9.92268e-06, 262144.0, False),
        ),
        (  # and newer
            "2025-04-07 15:34:29,173 - [mindformers/core/callback/callback.py:529] - INFO - { Epoch:[  1/  2], "
            "step:[    2/   19], loss: 10.633, per_step_time: 1752ms, lr: 1e-05, overflow cond: False, "
            "loss_scale: 1.0, global_norm: [1 508834], train_throughput_per_npu: 170.738T",
            Step(2, 38, 1, 10.633, 1752, 1e-05, 1.0, False),
        ),
        (
            "- INFO - { Epoch:[  1/  2], step:[    1/ 6500], loss: 0.000, per_step_time: 166756ms, lr: 0.0, "
            "overflow cond: False, loss_scale: 1.0, global_norm: [44.313248], train_throughput_per_npu: 2.849T",
            Step(1, 13000, 1, 0.0, 166756, 0.0, 1.0, False, 44.313248),
        ),
        (  # values printed as arrays
            "{ Epoch:[  1/  1], step:[    1/    9], loss: 1.0, per_step_time: 5ms, lr: [6.15e-07], "
            "overflow cond: [ True], loss_scale: [1024.]",
            Step(1, 9, 1, 1.0, 5, 6.15e-07, 1024.0, True),
        ),
        (SINK.replace("[  1/  5]", "[12345/99999]").replace("13000", "1"), None),
    ],
)
def test_a_loss_line(line, expected):
    step = parse_loss(line)
    if expected is None:
        assert step is not None and (step.epoch, step.total_steps) == (12345, 99999)
    else:
        assert step == expected


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN"])
def test_a_loss_that_is_not_finite_is_null_in_json(value):
    step = parse_loss(SINK.replace("2.346", value))
    assert not math.isfinite(step.loss) and step.to_dict()["loss"] is None


@pytest.mark.parametrize(
    "line", ["", "{ Epoch:[", SINK[:90], SINK.replace("loss: 2.346", "loss: ?"), BAR, "Epoch 1/5 step 2 loss 3.0"]
)
def test_another_line_is_no_step(line):
    assert parse_loss(line) is None


def test_the_second_line_gives_the_throughput():
    assert LossReader().feed(f"{SINK}\n{BAR}\n".encode())[0].samples_per_second_per_rank == 0.49801
    days = BAR.replace("18:07:30", "25 days, 2:07:47")
    assert LossReader().feed(f"{SINK}\nother\n{days}\n".encode())[0].samples_per_second_per_rank == 0.49801


def test_a_step_waits_for_its_second_line_or_the_next_step_or_the_end():
    reader = LossReader()
    assert reader.feed(f"{SINK}\n".encode()) == []
    first = reader.feed(f"{SINK}\n".encode())
    assert [step.samples_per_second_per_rank for step in first] == [None]
    assert reader.feed(BAR.encode()) == []  # its line has not ended yet
    assert [step.samples_per_second_per_rank for step in reader.close()] == [0.49801]
    assert reader.close() == []


def test_a_bar_without_its_step_is_passed_over():
    assert LossReader().feed(f"{BAR}\n{BAR}\n".encode()) == []


def test_a_line_that_never_ends_does_not_eat_the_memory():
    reader = LossReader()
    for _ in range(50):
        assert reader.feed(b"x" * 100_000) == []
    assert len(reader._rest) <= LONGEST_LINE
    assert len(reader.feed(f"\n{SINK}\n{BAR}\n".encode())) == 1


noise = st.binary(max_size=40).filter(lambda data: b"Epoch:[" not in data and b"samples/s/p" not in data)
numbers = st.floats(0, 1e6, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def logs(draw):
    """A log with noise between its lines, and the steps that are in it."""
    steps, epochs = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    parts, expected = [], []
    for number in range(1, steps * epochs + 1):
        epoch, within = (number - 1) // steps + 1, (number - 1) % steps + 1
        loss, rate, overflow = draw(numbers), draw(numbers), draw(st.booleans())
        shown = f"loss:[{loss:5.3f}/{1:5.3f}]" if draw(st.booleans()) else f"loss: {loss:5.3f}"
        line = (
            f"{STAMP}{{ Epoch:[{epoch:3d}/{epochs:3d}], step:[{within:5d}/{steps:5d}], {shown}, "
            f"per_step_time: 7ms, lr: 1e-05, overflow cond: {overflow}, loss_scale: 1024.0"
        )
        end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
        between = draw(noise) + b"\n" if draw(st.booleans()) else b""
        parts += [line.encode(), end, between, f"{STAMP}  1.0% |█  | {rate:.5f} samples/s/p  0:00:01 }}".encode(), end]
        parts += [draw(noise), b"\n"]
        expected.append(Step(number, steps * epochs, epoch, loss, 7, 1e-05, 1024.0, overflow, None, rate))
    return b"".join(parts), expected


@given(logs(), st.lists(st.integers(0, 5000)))
def test_steps_are_found_however_the_log_arrives(log, cuts):
    data, expected = log
    reader, found, last = LossReader(), [], 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        found += reader.feed(data[last:cut])
        last = cut
    found += reader.feed(data[last:]) + reader.close()
    assert found == expected


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([SINK.encode(), BAR.encode(), b"\n", b"{ Epoch:["]))))
def test_no_bytes_break_the_reader(portions):
    reader = LossReader()
    for portion in portions:
        reader.feed(portion)
    reader.close()


def test_a_follower_reads_what_is_new(tmp_path):
    path = tmp_path / "rank.log"
    follower = Follower(path)
    assert follower.read() == b""  # not there yet
    path.write_bytes(b"one")
    assert (follower.read(2), follower.read(2), follower.read()) == (b"on", b"e", b"")
    path.write_bytes(b"one two")
    assert follower.read() == b" two"
    path.write_bytes(b"new")  # cut and written anew
    assert follower.read() == b"new"
