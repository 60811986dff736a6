"""Killed, interrupted, out of disk, or twice at once: never half a file under the final name."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from weights_kit import make_folder, tensors_of

from qwenlib.errors import Refused, WorkFailed
from qwenlib.profile import Model, Parallel
from qwenlib.weights import check, convert, open_source, slice_checkpoint
from qwenlib.weights.layout import Planned, checkpoint_layout
from qwenlib.weights.output import written

ROOT = Path(__file__).resolve().parents[2]
MEDIUM = Model(hidden_size=512, num_layers=6, num_heads=8, vocab_size=8000, intermediate_size=1400)  # 27 M parameters
PLAN = Parallel(data_parallel=2, model_parallel=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(
        tmp_path_factory.mktemp("medium") / "hf", MEDIUM, dtype="bfloat16", shards=3, values=tensors_of(MEDIUM)
    )


def begin(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "qwenlib", "weights", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start(folder: Path, out: Path) -> subprocess.Popen:
    return begin("convert", "--torch_ckpt_dir", str(folder), "--mindspore_ckpt_path", str(out), "--dtype", "float32")


def kill_within(process: subprocess.Popen, folder: Path, delay: float) -> None:
    """SIGKILL ``delay`` seconds after the first file appeared below ``folder``."""
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        if any(path.is_file() for path in folder.rglob("*")):
            break
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.wait()


def test_kill_9_at_any_instant_leaves_no_file_with_the_final_name(folder: Path, tmp_path: Path) -> None:
    whole = Path(convert(folder, tmp_path / "whole.ckpt", "float32")["checkpoint"]).read_bytes()
    draw = random.Random(5)
    out = tmp_path / "model_dir" / "rank_0" / "qwen1_5.ckpt"
    part = out.parent / ".qwen1_5.ckpt.part"
    interrupted = 0
    for _ in range(6):
        process = start(folder, tmp_path / "model_dir")
        until = time.monotonic() + 20
        while not part.exists() and not out.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if out.exists():
            assert out.read_bytes() == whole
            out.unlink()
        else:
            interrupted += 1
        assert [item.name for item in out.parent.glob("*.ckpt")] == []
    assert interrupted >= 1
    convert(folder, tmp_path / "model_dir", "float32")
    assert out.read_bytes() == whole
    assert sorted(item.name for item in out.parent.iterdir()) == ["qwen1_5.ckpt", "qwen1_5.ckpt.meta.json"]


def test_kill_9_while_slicing_leaves_whole_slices_or_none_and_no_claim(folder: Path, tmp_path: Path) -> None:
    slice_checkpoint(folder, tmp_path / "whole", PLAN)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").rglob("*.ckpt")}
    draw, interrupted = random.Random(7), 0
    given = ("--source", str(folder), "--profile", "lora_7b_910a", "-s", "lora.parallel.data_parallel=2")
    for number in range(5):
        out = tmp_path / str(number)
        process = begin("slice", *given, "--output_dir", str(out))
        kill_within(process, tmp_path / str(number), draw.uniform(0, 0.12))
        held = {path.name: path.read_bytes() for path in out.rglob("*.ckpt")}
        assert held.items() <= whole.items(), "never half a slice under its name"
        if not (out / "slice.json").exists():
            interrupted += 1
        else:
            assert set(held) == set(whole), "slice.json comes last"
        slice_checkpoint(folder, out, PLAN)
        assert {path.name: path.read_bytes() for path in out.rglob("*.ckpt")} == whole
        assert not list(out.rglob("*.part"))
    assert interrupted >= 1


def test_kill_9_while_exporting_leaves_a_folder_that_is_no_model_and_a_second_run_mends_it(
    folder: Path, tmp_path: Path
) -> None:
    convert(folder, tmp_path / "x.ckpt", "float32")
    draw, interrupted, out = random.Random(11), 0, tmp_path / "hf"
    given = ("--source", str(tmp_path / "x.ckpt"), "--torch_ckpt_dir", str(folder), "--max_shard_size", "20MB")
    for _ in range(4):
        process = begin("export", *given, "--output_dir", str(out))
        kill_within(process, out, draw.uniform(0, 0.12))
        if (out / "config.json").exists():
            assert check(out, tmp_path / "x.ckpt")["equal"]
            shutil.rmtree(out)
        else:
            interrupted += 1
            with pytest.raises(Refused, match=r"config\.json|no \.ckpt file|there is no checkpoint"):
                open_source(out)
    assert interrupted >= 1
    assert begin("export", *given, "--output_dir", str(out)).wait(60) == 0
    assert check(out, tmp_path / "x.ckpt")["equal"] and not list(out.rglob("*.part"))


def test_the_interrupt_key_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    process = start(folder, tmp_path / "x.ckpt")
    while not (tmp_path / ".x.ckpt.part").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    code = process.wait(120)
    assert code == 130 or (code == 0 and (tmp_path / "x.ckpt").exists())
    assert not (tmp_path / ".x.ckpt.part").exists()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    layout = checkpoint_layout([Planned("a", "float32", (4,))])
    plan = {tmp_path / "x.ckpt": layout}
    with pytest.raises(Refused, match="another process is writing"), written(plan), written(plan):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_full_gets_no_name(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkFailed, match="were planned"),
        written({tmp_path / "x.ckpt": checkpoint_layout([Planned("a", "float32", (4,))])}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((WorkFailed, Refused), match="file"):
        convert(folder, tmp_path / "file" / "x.ckpt")


def test_a_disk_without_room_for_a_folder_is_told_as_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    layout = checkpoint_layout([Planned("a", "float32", (4,))])
    with pytest.raises(WorkFailed, match=r"no space left .*rank_0: \d+ MiB"), written({tmp_path / "rank_0/x": layout}):
        pass


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 20 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_before_and_while_writing(
    folder: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match=r"needs \d+ MiB .* MiB are free"):
        convert(folder, small_disk / "x.ckpt")
    monkeypatch.setattr(sys.modules["qwenlib.weights.convert"], "require_space", lambda *given: None)
    with pytest.raises(WorkFailed, match="no space left"):
        convert(folder, small_disk / "x.ckpt")
    assert list(small_disk.iterdir()) == []
