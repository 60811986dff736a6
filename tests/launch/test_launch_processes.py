from __future__ import annotations

import os
import subprocess
import sys

import pytest
from launch_tools import until

from qwenlib.launch import processes
from qwenlib.launch.failure import last_lines, read_error, record_error, root_cause, signal_name


def test_a_reused_pid_is_not_our_process():
    me = processes.identity(os.getpid())
    assert processes.find(me).pid == os.getpid()
    assert processes.find({**me, "create_time": me["create_time"] - 60}) is None


def test_a_zombie_counts_as_dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    who = processes.identity(child.pid)
    until(lambda: processes.find(who) is None)  # it has not been waited for: a zombie
    assert child.wait() == 0


@pytest.mark.parametrize("who", [None, {}, {"pid": 0, "create_time": 0}, {"pid": 2**22 + 7, "create_time": 1.0}])
def test_nobody_is_found_where_nobody_is(who):
    assert processes.find(who) is None


def test_end_tells_what_would_not_go(monkeypatch):
    monkeypatch.setattr(processes, "KILL_SECONDS", 0.2)
    child = subprocess.Popen(["sleep", "100"])
    try:
        here = [processes.psutil.Process(child.pid)]
        # `alive` is the caller's word; a process that hangs in the kernel would look like this.
        assert processes.end(lambda: here, 0.1) == [child.pid]
        assert child.wait(5) == -15
    finally:
        child.kill()


def test_error_json_has_the_fields_that_the_supervisor_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("QWENLIB_RANK_DIR", str(tmp_path))
    try:
        raise KeyError("loss")
    except KeyError as error:
        assert record_error(error, 3) == tmp_path / "error.json"
    found = read_error(tmp_path)
    assert found["type"] == "KeyError" and found["exit_code"] == 3 and "raise KeyError" in found["stack"]


@pytest.mark.parametrize("text", ["", "[1]", "{", "\udcff", '"x"'])
def test_a_broken_error_json_is_no_error_json(tmp_path, text):
    (tmp_path / "error.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_error(tmp_path) is None


def test_an_error_json_without_a_time_has_the_files(tmp_path):
    (tmp_path / "error.json").write_text('{"type": "E", "time": "yesterday"}')
    assert abs(read_error(tmp_path)["time"] - (tmp_path / "error.json").stat().st_mtime) < 1


def test_last_lines(tmp_path):
    log = tmp_path / "rank.log"
    assert last_lines(log) == []
    log.write_bytes(b"x" * 100000 + b"\n\xff\xfe bytes\r\n\n" + b"y" * 1000 + b"\nend")
    bytes_line, long_line, end = last_lines(log, 3)
    assert bytes_line.endswith(" bytes") and end == "end" and long_line == "y" * 300 + " …"


def test_mindspores_chatter_is_passed_over(tmp_path):
    chatter = "[WARNING] DISTRIBUTED(17057,7f1e2bfff6c0,python):2026-11-24-02:24:40.849.739 [x.cc:1008] Begin"
    log = tmp_path / "rank.log"
    log.write_text(f"the last step\n{chatter}\n{chatter}\n")
    assert last_lines(log) == ["the last step"]
    log.write_text(f"{chatter}\n")
    assert last_lines(log) == [chatter]


def test_a_long_message_is_told_briefly(tmp_path):
    (tmp_path / "rank_0").mkdir()
    stacks = "\n\n" + "-" * 52 + "\n- C++ Call Stack: (For framework developers)\n" + "-" * 52 + "\nx.cc:12 Run\n"
    record_error(RuntimeError("Out of memory!\nRequest: 5 B" + stacks), folder=tmp_path / "rank_0")
    ended = {"name": "rank_0", "exit_code": 1, "signal": None, "ended_by_us": False, "started": 1.0, "finished": 2.0}
    assert root_cause(tmp_path, [ended], oom=False)["message"] == "RuntimeError: Out of memory! Request: 5 B"
    record_error(RuntimeError("x" * 10_000), folder=tmp_path / "rank_0")
    assert len(root_cause(tmp_path, [ended], oom=False)["message"]) < 850


def test_the_out_of_memory_killer_is_named(tmp_path):
    killed = {
        "name": "rank_0",
        "exit_code": None,
        "signal": "SIGKILL",
        "ended_by_us": False,
        "started": 1,
        "finished": 9,
    }
    assert "by SIGKILL after 8 s (the kernel's out-of-memory killer)" in root_cause(tmp_path, [killed], True)["message"]
    assert processes.oom_kills() >= 0


def test_signals_are_named():
    assert signal_name(11) == "SIGSEGV" and signal_name(9) == "SIGKILL" and signal_name(63) == "signal 63"
