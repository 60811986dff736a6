"""The command in odd shells: closed descriptors, a full disk behind stdout, ~ inside a word, signals."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwenlib.cli.shell import expand_home

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "Hi.", "input": "", "output": "Hello."}]), encoding="utf-8")
    return path


def shell(line: str, *values: Path, **environment: str) -> Any:
    """``qwenlib`` + ``line``, which a shell reads; ``$1`` … are ``values``."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -m qwenlib {line}', sys.executable, *map(str, values)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_home_is_expanded_where_a_shell_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ma-user")
    for given, wanted in (
        ("~", "/home/ma-user"),
        ("~/a b", "/home/ma-user/a b"),
        ("--output_path=~/x", "--output_path=/home/ma-user/x"),
        ("02_weights.torch_ckpt_dir=~/Qwen", "02_weights.torch_ckpt_dir=/home/ma-user/Qwen"),
        ("a~/x", "a~/x"),
        ("x=[~/y]", "x=[~/y]"),
        ("--predict_data=~/x?", "--predict_data=~/x?"),
    ):
        assert expand_home([given]) == [wanted]
    assert expand_home(["--predict_data", "~/x is where?", "~/y"]) == [
        "--predict_data",
        "~/x is where?",
        "/home/ma-user/y",
    ]


def test_home_reaches_the_command(tmp_path: Path, records: Path) -> None:
    done = shell("data convert --data_path=~/alpaca.json --output_path=~/out.jsonl", HOME=str(tmp_path))
    assert done.returncode == 0 and (tmp_path / "out.jsonl").is_file(), done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_do_no_harm(tmp_path: Path, records: Path, closed: str) -> None:
    out = tmp_path / "out.jsonl"
    assert shell(f'data convert --data_path "$1" --output_path "$2" {closed}', records, out).returncode == 0
    assert json.loads(out.read_text(encoding="utf-8"))["type"] == "chatml"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_told(tmp_path: Path, records: Path, unbuffered: str) -> None:
    line = 'data convert --data_path "$1" --output_path "$2" > /dev/full'
    done = shell(line, records, tmp_path / "out.jsonl", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "qwenlib: failed: No space left on device.")


def test_what_the_system_refuses_is_told_without_a_stack(tmp_path: Path) -> None:
    done = shell('data convert --data_path "$1" --output_path "$2"', Path("x" * 300), tmp_path / "out.jsonl")
    assert done.returncode == 1 and done.stderr == f"qwenlib: failed: {'x' * 300}: File name too long.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time\nfrom qwenlib.cli import shell\nfrom qwenlib.files import atomic_path\n"
        "with shell.orderly(), atomic_path(sys.argv[1]) as part:\n    print(part, flush=True)\n    time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and Path(process.stdout.readline().strip()).is_file()
        process.send_signal(number)
        assert process.wait() == 128 + number
    assert not list(tmp_path.iterdir())


def test_nohup_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import signal\nfrom qwenlib.cli import shell\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with shell.orderly():\n    print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.stdout == b"True\n"


def test_a_thread_may_call_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from qwenlib.cli.main import main

    monkeypatch.setattr(sys, "argv", ["qwenlib", "--version"])
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(SystemExit) as end:
        pool.submit(main).result()
    assert not end.value.code and capsys.readouterr().out.startswith("qwenlib ")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
