"""Which checkpoint a training goes on from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

numpy = pytest.importorskip("numpy")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from qwenlib.engine import resume  # noqa: E402
from qwenlib.errors import Refused  # noqa: E402
from qwenlib.weights.checkpoint import CheckpointWriter  # noqa: E402


def save(path: Path, step: int, epoch: int = 1, when: float = 0.0) -> Path:
    """A checkpoint as MindFormers writes it: parameters first, the numbers of the training last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with CheckpointWriter(path) as writer:
        writer.add("model.weight", numpy.arange(600, dtype="float32"))
        writer.add("adam_m.model.weight", numpy.zeros(600, dtype="float32"))
        writer.add("epoch_num", numpy.array([epoch], dtype="int64"))
        writer.add("step_num", numpy.array([step], dtype="int64"))
        writer.add("loss_scale", numpy.array([65536.0], dtype="float32"))
    if when:
        os.utime(path, (when, when))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return save(tmp_path_factory.mktemp("whole") / "x.ckpt", 12345, 7).read_bytes()


def test_a_whole_checkpoint_tells_its_step(tmp_path, whole):
    (tmp_path / "x.ckpt").write_bytes(whole)
    assert resume.read_point(tmp_path / "x.ckpt") == (12345, 7)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_checkpoint_cut_off_anywhere_is_never_taken(tmp_path_factory, whole, data):
    length = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.mktemp("cut") / "x.ckpt"
    path.write_bytes(whole[:length])
    assert resume.read_point(path) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "x.ckpt"
    path.write_bytes(content)
    assert resume.read_point(path) is None


def test_the_newest_step_that_all_ranks_have_is_taken_whatever_the_file_times_say(tmp_path):
    for rank in (0, 1):
        save(tmp_path / f"rank_{rank}" / "a.ckpt", 10, when=3e9)
        save(tmp_path / f"rank_{rank}" / "b.ckpt", 20, when=2e9)
    save(tmp_path / "rank_0" / "c.ckpt", 30)  # rank 1 died before it had saved step 30
    torn = save(tmp_path / "rank_1" / "c.ckpt", 30)
    torn.write_bytes(torn.read_bytes()[:-9])
    saved = resume.newest(tmp_path, (0, 1))
    assert (saved.step, [path.name for path in saved.files.values()]) == (20, ["b.ckpt", "b.ckpt"])
    folder = resume.lay_out(saved, tmp_path / "resume")
    resume.lay_out(saved, folder)
    assert [path.name for path in sorted(folder.glob("rank_*/*"))] == ["b.ckpt", "b.ckpt"]
    assert resume.newest(tmp_path, (0, 1, 2)) is None and resume.newest(tmp_path / "nowhere", (0,)) is None


def test_a_checkpoint_that_is_taken_away_meanwhile_is_none(tmp_path):
    """MindFormers keeps the last few only, and a training that goes on may be asked for again."""
    save(tmp_path / "rank_0" / "b.ckpt", 20)
    (tmp_path / "rank_0" / "a.ckpt").symlink_to(tmp_path / "gone")  # listed, but there is nothing to look at
    assert resume.newest(tmp_path, (0,)).step == 20


def test_never_auto_and_a_path(tmp_path):
    save(tmp_path / "output" / "checkpoint" / "rank_0" / "a.ckpt", 10)
    assert resume.choose("never", tmp_path, (0,)) is None
    assert resume.choose("auto", tmp_path, (0,)).step == 10
    assert resume.choose("auto", tmp_path / "new", (0,)) is None, "nothing to go on from: from the start"
    for path in (tmp_path, tmp_path / "output", tmp_path / "output" / "checkpoint"):
        assert resume.choose(path, tmp_path / "new", (0,)).step == 10
    with pytest.raises(Refused, match=r"no whole training checkpoint for each of the 2 rank"):
        resume.choose(tmp_path, tmp_path / "new", (0, 1))


def test_the_curve_is_kept_up_to_the_step(tmp_path):
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"st')
    told = resume.steps_until(tmp_path / "metrics.jsonl", 2)
    assert told == "".join(lines[:2]) and resume.steps_until(tmp_path / "none", 2) == ""
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    resume.put_back(tmp_path / "metrics.jsonl", told)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines)


def test_checkpoints_that_auto_cannot_take_are_told(tmp_path):
    def told():
        return resume.passed_over(tmp_path, (0, 1), resume.choose("auto", tmp_path, (0, 1)))

    assert told() == ""
    folder = tmp_path / "output" / "checkpoint"
    save(folder / "rank_0" / "a.ckpt", 10)
    assert "the ranks have no step in common); the training begins anew" in told()
    save(folder / "rank_1" / "a.ckpt", 10)
    assert told() == ""
    torn = save(folder / "rank_1" / "b.ckpt", 20)
    torn.write_bytes(torn.read_bytes()[:-9])
    assert "(not whole: b.ckpt); the training goes on after step 10\n" in told()
