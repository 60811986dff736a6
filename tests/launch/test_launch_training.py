"""Real MindFormers trainings on the CPU: killed, resumed, restarted, and on two hosts (network namespaces).

All of them train the same micro model and must end in the same losses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from launch_tools import TAG, gone, until

from qwenlib.launch import attach, read_status
from qwenlib.launch.heartbeat import read_beat

pytestmark = [pytest.mark.stack, pytest.mark.slow]

PROFILE = """
device_target: CPU
num_parallel_workers: 1
model: {hidden_size: 32, num_layers: 1, num_heads: 2, vocab_size: 512, intermediate_size: 64,
        max_position_embedding: 256, param_init_type: float32, compute_dtype: float32,
        softmax_compute_type: float32, rotary_dtype: float32, use_flash_attention: false}
data: {seq_length: 64, labels: all}
finetune: {epochs: 4, batch_size: 8, learning_rate: 3.0e-3, lr_end: 1.0e-4, weight_decay: 0.0, sink_mode: false,
           parallel: {data_parallel: 2}, save_checkpoint_steps: 4, keep_checkpoint_max: 3}
"""
STEPS = 60
KILLED_WITHIN = 15.0


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Dict[str, Path]:
    """A tiny checkpoint, its vocabulary, and 240 rows to train on."""
    pytest.importorskip("torch")
    from qwenlib import data, weights
    from qwenlib import profile as profiles

    folder = tmp_path_factory.mktemp("parts")
    (folder / "micro.yaml").write_text(PROFILE)
    prof = profiles.load(folder / "micro.yaml", [])
    weights.make_tiny(folder / "hf", data.plain_texts(data.sample_path()), prof.model, steps=1)
    weights.convert(folder / "hf", folder / "model_dir", dtype="float32")
    data.convert(data.sample_path(), folder / "messages.jsonl")
    vocabulary = (folder / "hf" / "vocab.json", folder / "hf" / "merges.txt")
    data.build(folder / "messages.jsonl", folder / "train.mindrecord", *vocabulary, 64, labels="all")
    return {"folder": folder}


def command(parts: Dict[str, Path], run_dir: Path, *more: object) -> List[str]:
    folder = parts["folder"]
    words = [sys.executable, "-m", "qwenlib", "train", "--profile", folder / "micro.yaml"]
    words += ["--load_checkpoint", folder / "model_dir", "--train_dataset", folder / "train.mindrecord"]
    words += ["--torch_ckpt_dir", folder / "hf", "--output_dir", run_dir, *more]
    return [str(word) for word in words]


def environ(tag: str) -> Dict[str, str]:
    return {**os.environ, TAG: tag, "PYTHONPATH": str(Path(__file__).parents[2]), "QWENLIB_HEADLESS": "1"}


def losses(run_dir: Path) -> Dict[int, float]:
    from qwenlib.monitor import read_metrics

    frame = read_metrics(run_dir)
    return dict(zip(frame["step"], frame["loss"]))


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> Dict[int, float]:
    """The losses of an uninterrupted training on one host."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(command(parts, run_dir), env=environ("whole"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = losses(run_dir)
    assert list(found) == list(range(1, STEPS + 1)) and found[STEPS] < found[1]
    return found


def kill_a_rank(run_dir: Path, rank: int, step: int) -> float:
    """SIGKILL to a rank once it has done ``step`` steps; returns when."""
    until(lambda: read_beat(run_dir / f"rank_{rank}").get("step", 0) >= step, 120)
    os.kill(read_status(run_dir)["ranks"][rank]["pid"], signal.SIGKILL)
    return time.monotonic()


CELL = """
from pathlib import Path
from qwenlib import profile
from qwenlib.engine import work
parts = Path({parts!r})
prof, files = work.model_files(profile.load(parts / "micro.yaml", []), parts / "hf")
found = work.finetune(prof, "finetune", load_checkpoint=parts / "model_dir", train_dataset=parts / "train.mindrecord",
                      run_dir={run_dir!r}, detach={detach}, **files)
print("steps", found["steps"], found["checkpoint"].name, len(found["metrics"]))
"""


def test_a_killed_rank_fails_its_cell_nothing_is_left_and_the_resumed_curve_goes_on(
    parts, whole, tmp_path, tag, monkeypatch
):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for name, text in environ(tag).items():
        monkeypatch.setenv(name, text)
    run_dir = tmp_path / "run"
    cell = CELL.format(parts=str(parts["folder"]), run_dir=str(run_dir), detach=False)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    client = nbclient.NotebookClient(book, timeout=180, kernel_name="python3", shutdown_kernel="immediate")
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(client.execute)
        killed = kill_a_rank(run_dir, 1, 10)
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="rank 1 of 2 was killed by SIGKILL"):
            training.result(timeout=60)
        assert time.monotonic() - killed < KILLED_WITHIN
    gone(tag, 30.0)

    from qwenlib.engine import resume

    saved = resume.newest(run_dir / "output" / "checkpoint", (0, 1))
    assert saved is not None and 8 <= saved.step < STEPS
    torn = saved.files[1].with_name("qwen2_rank_1-9_9.ckpt")  # the newest by time, as if the rank had died writing it
    torn.write_bytes(saved.files[1].read_bytes()[:-40])
    done = subprocess.run(
        command(parts, run_dir, "--resume_training", "auto"), env=environ(tag), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"going on after step {saved.step} of {STEPS}" in (run_dir / "rank_0" / "rank.log").read_text()
    assert losses(run_dir) == pytest.approx(whole, abs=0.0011), "the same curve, as if nothing had happened"
    again = subprocess.run(
        command(parts, run_dir, "--resume_training", "auto"), env=environ(tag), capture_output=True, text=True
    )
    assert again.returncode == 2 and f"step {STEPS} of {STEPS}, so nothing is left to train" in again.stderr


def test_a_detached_training_restarts_by_itself_and_the_next_kernel_takes_it_up(parts, whole, tmp_path, tag):
    run_dir = tmp_path / "run"
    done = subprocess.run(
        command(parts, run_dir, "--detach", "--max-restarts", 1), env=environ(tag), capture_output=True, text=True
    )
    assert done.returncode == 0 and f"Stop it: qwenlib stop {run_dir}" in done.stdout, done.stderr
    kill_a_rank(run_dir, 0, 10)
    until(lambda: read_status(run_dir)["restarts"], 30)

    call = [sys.executable, "-c", CELL.format(parts=str(parts["folder"]), run_dir=str(run_dir), detach=True)]
    pipes: Dict[str, Any] = {"env": environ(tag), "capture_output": True, "text": True, "timeout": 180}
    taken = subprocess.run(call, **pipes)
    assert f"This very training goes on in {run_dir}" in taken.stdout, taken.stderr
    assert f"steps {STEPS} qwen2_rank_0" in taken.stdout and taken.stdout.strip().endswith(f" {STEPS}")
    assert losses(run_dir) == pytest.approx(whole, abs=0.0011), "also the steps that nobody had watched"
    status = read_status(run_dir)
    assert [cause["rank"] for cause in status["restarts"]] == ["rank_0"]
    assert attach(run_dir).poll()["ranks"][0]["step"] == STEPS
    log = (run_dir / "rank_0" / "rank.log").read_text()
    assert "--- restart 1 of 1 ---" in log and "going on after step" in log

    again = subprocess.run(call, **pipes)
    assert "its result is taken" in again.stdout and f"steps {STEPS} qwen2_rank_0" in again.stdout, again.stderr
    assert read_status(run_dir)["id"] == status["id"] and not (run_dir / "earlier").exists()
    gone(tag, 30.0)


@pytest.fixture
def two_hosts() -> Iterator[List[List[str]]]:
    """Two network namespaces with a cable between them; yields what to put before a command to run it there."""
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2 (ip)")
    names = [f"qwen{os.getpid()}a", f"qwen{os.getpid()}b"]
    made = subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"network namespaces are not permitted here: {made.stderr.strip()}")
    try:
        steps = [["netns", "add", names[1]], ["link", "add", "qva", "netns", names[0], "type", "veth"]]
        steps[1] += ["peer", "name", "qvb", "netns", names[1]]
        for name, device, address in zip(names, ("qva", "qvb"), ADDRESSES):
            steps.append(["-n", name, "addr", "add", f"{address}/24", "dev", device])
            steps += [["-n", name, "link", "set", link, "up"] for link in (device, "lo")]
        for step in steps:
            subprocess.run(["ip", *step], check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


ADDRESSES = ("10.77.31.1", "10.77.31.2")


def test_two_hosts_train_what_one_host_trains(parts, whole, tmp_path, tag, two_hosts):
    nodes = ("--nodes", ",".join(ADDRESSES))
    run_dirs = [tmp_path / "first" / "run", tmp_path / "second" / "run"]  # the hosts share no disk
    wrong = subprocess.Popen(
        [*two_hosts[1], *command(parts, run_dirs[1], *nodes, "-s", "finetune.learning_rate=0.1")],
        env=environ(tag),
        stderr=subprocess.PIPE,
        text=True,
    )
    logs = [open(tmp_path / f"said_{number}", "w+") for number in (0, 1)]  # noqa: SIM115
    first = subprocess.Popen([*two_hosts[0], *command(parts, run_dirs[0], *nodes)], env=environ(tag), stderr=logs[0])
    said = wrong.communicate(timeout=60)[1]
    assert wrong.returncode == 2 and "the profile of node 1 is not that of node 0" in said
    assert first.poll() is None, "node 0 goes on waiting for the right one"
    second = subprocess.Popen([*two_hosts[1], *command(parts, run_dirs[1], *nodes)], env=environ(tag), stderr=logs[1])
    codes = [first.wait(timeout=180), second.wait(timeout=60)]
    assert codes == [0, 0], [log.seek(0) or log.read() for log in logs]
    for log in logs:
        log.close()
    status = read_status(run_dirs[0])
    assert [entry["name"] for entry in status["ranks"]] == ["rank_0"] and status["world_size"] == 2
    assert losses(run_dirs[0]) == pytest.approx(whole, abs=0.0011)
    assert losses(run_dirs[1] / "node_1") != {}
