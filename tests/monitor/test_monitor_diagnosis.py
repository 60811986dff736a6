"""Which of many ranks is to blame: run directories as the launcher, MindFormers and CANN leave them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlib.errors import Refused
from qwenlib.monitor import diagnose

START = 1_700_000_000
SOCKET = "EI0006: Getting socket times out. Reason: remote rank"
NOTIFY = "EI0002: The wait execution of the Notify register times out."


def at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d-%H:%M:%S.000.000", time.localtime(START + seconds))


def error(seconds: float, text: str) -> str:
    return f"[ERROR] HCCL(1,python):{at(seconds)} [x.cc:1] {text}\n"


def run(folder, texts, state="failed", ends=None, world=None):
    """A run directory: ``texts`` are the logs by rank, ``ends`` what launch.json says of them."""
    folder.mkdir(exist_ok=True)
    ranks = []
    for rank, text in texts.items():
        place = folder / f"rank_{rank}"
        place.mkdir()
        (place / "rank.log").write_bytes(text.encode() if isinstance(text, str) else text)
    for rank in ends or {}:
        ranks.append(
            {
                "name": f"rank_{rank}",
                "rank": rank,
                "pid": 1000 + rank,
                "state": "failed",
                "exit_code": None,
                "signal": None,
                "ended_by_us": False,
                "started": START,
                "finished": START + 100,
                **ends[rank],
            }
        )
    if ends is not None:
        status = {"id": "x", "state": state, "ranks": ranks, "world_size": world or len(ranks), "started": START}
        (folder / "launch.json").write_text(json.dumps({**status, "root_cause": None}))
    return folder


def test_a_real_error_beats_earlier_timeouts(tmp_path):
    texts = {rank: error(10, SOCKET) for rank in range(7)}
    found = diagnose(run(tmp_path / "r", {**texts, 7: error(99, "EJ0002: The network port is down.")}))
    assert (found.cause.id, found.cause.rank, found.cause.file, found.cause.number) == (
        "EJ0002",
        7,
        "rank_7/rank.log",
        1,
    )
    assert [item.rank for item in found.secondary] == list(range(7)) and found.others == []
    said = found.text()
    assert "A card's network port is down." in said and "EI0006 on ranks 0-6 (7 lines)" in said
    assert SOCKET not in said, "secondary errors are counted, not shown"


def test_of_two_real_errors_the_earlier_is_the_cause(tmp_path):
    texts = {0: error(50, "EJ0003: Failed to bind the IP port."), 1: error(20, "EJ0002: The network port is down.")}
    found = diagnose(run(tmp_path / "r", texts))
    assert found.cause.rank == 1 and [other.id for other in found.others] == ["EJ0003"]
    assert "Also: A port that HCCL needs is in use." in found.text()


def test_the_same_error_everywhere_is_told_once(tmp_path):
    found = diagnose(run(tmp_path / "r", {rank: error(9 - rank, "EL0004: x") for rank in range(4)}))
    assert found.cause.rank == 3 and found.others == [] and "EL0004 on ranks 0-2 (3 lines)" in found.text()


def test_a_killed_rank_beats_timeouts(tmp_path):
    ends = {0: {"exit_code": 1}, 1: {"exit_code": 1}, 2: {"signal": "SIGKILL"}}
    found = diagnose(run(tmp_path / "r", {0: error(1, NOTIFY), 1: error(1, NOTIFY), 2: "step 5\n"}, ends=ends))
    assert (found.cause.id, found.cause.rank) == ("killed", 2) and "host ran out of memory" in found.text()


def test_exit_137_is_a_kill_and_ours_is_none(tmp_path):
    ends = {0: {"exit_code": 1}, 1: {"exit_code": 137}, 2: {"signal": "SIGKILL", "ended_by_us": True}}
    found = diagnose(run(tmp_path / "r", {0: error(1, NOTIFY), 1: "", 2: "Killed\n"}, ends=ends))
    assert (found.cause.id, found.cause.rank) == ("killed", 1)
    assert "host-OOM" in [item.id for item in found.secondary if item.rank == 2]


def test_a_crash_is_named_by_its_signal(tmp_path):
    found = diagnose(run(tmp_path / "r", {0: "fine\n"}, ends={0: {"signal": "SIGSEGV"}}))
    assert found.cause.id == "crashed" and "The process crashed (SIGSEGV)" in found.paragraph()


def test_a_log_that_just_stops_beats_timeouts_without_the_launchers_help(tmp_path):
    texts = {rank: error(5, SOCKET) for rank in (0, 1, 3)}
    found = diagnose(run(tmp_path / "r", {**texts, 2: "loading\n"}))
    assert (found.cause.id, found.cause.rank) == ("log-stops", 2)
    assert "just stops, while the others wait" in found.text()


def test_a_doubtful_error_gives_way_to_an_earlier_kill(tmp_path):
    texts = {0: error(200, "EE9999: Inner Error! event wait timeout occurred"), 1: ""}
    ends = {0: {"exit_code": 1, "finished": START + 201}, 1: {"signal": "SIGKILL", "finished": START + 100}}
    assert diagnose(run(tmp_path / "a", texts, ends=ends)).cause.rank == 1
    ends[1]["finished"] = START + 300
    assert diagnose(run(tmp_path / "b", texts, ends=ends)).cause.rank == 0


@pytest.mark.parametrize(("apart", "said"), [(1, "rather the network"), (500, "rank 3 was slow")])
def test_only_timeouts_are_told_apart_by_their_distance(tmp_path, apart, said):
    texts = {rank: error(5, SOCKET) for rank in range(3)}
    found = diagnose(run(tmp_path / "r", {**texts, 3: error(5 + apart, SOCKET)}))
    assert (
        (found.cause.id, found.cause.rank) == ("EI0006", 0) and said in found.hint and found.hint in found.paragraph()
    )


def test_the_launchs_own_timeout_is_what_counts(tmp_path):
    folder = run(tmp_path / "r", {0: error(5, SOCKET), 1: error(505, SOCKET)})
    spec = {"processes": [{"env": {"HCCL_CONNECT_TIMEOUT": "1800"}}]}
    (folder / "spec.json").write_text(json.dumps(spec))
    assert "rather the network" in diagnose(folder).hint


def test_ranks_without_a_log_are_named(tmp_path):
    ends = {0: {"exit_code": 1}}
    found = diagnose(run(tmp_path / "r", {0: error(1, SOCKET)}, ends=ends, world=3))
    assert "There are no logs of ranks 1, 2 here" in found.hint


def test_a_wrapper_gives_way_to_what_it_wraps(tmp_path):
    text = error(1, "EI0004: The ranktable is invalid,Reason:[x].") + "RuntimeError: Initialize GE failed!\n"
    assert diagnose(run(tmp_path / "r", {0: text})).cause.id == "EI0004"


def test_a_warning_is_no_cause(tmp_path):
    text = "[WARNING] x: [Errno 13] Permission denied: 'cache'\n" + error(5, "EZ9999: Inner Error!")
    assert diagnose(run(tmp_path / "r", {0: text})).cause.id == "EZ9999"


def test_not_recognised_shows_the_earliest_error_line(tmp_path):
    texts = {0: "ok\n" + error(50, "something else"), 1: f"[INFO] {at(20)}\nZeroDivisionError: division by zero\n"}
    found = diagnose(run(tmp_path / "r", texts))
    assert found.cause is None and found.paragraph() == ""
    said = found.text()
    assert "Not recognised" in said and "ZeroDivisionError: division by zero" in said and "something else" not in said
    assert found.to_dict()["recognised"] is False and found.to_dict()["unknown"][0]["line_number"] == 2


def test_an_unknown_error_beats_the_timeouts_of_the_others(tmp_path):
    found = diagnose(run(tmp_path / "r", {0: error(9, SOCKET), 1: "ValueError: my own\n"}))
    assert found.cause is None and "ValueError: my own" in found.text() and "EI0006 on rank 0" in found.text()


def test_no_error_at_all(tmp_path):
    said = diagnose(run(tmp_path / "r", {0: "fine\n"})).text()
    assert "Not recognised" in said and "no line that looks like an error" in said


def test_a_good_run_has_nothing_to_explain(tmp_path):
    found = diagnose(run(tmp_path / "r", {0: "[WARNING] No space left on device\n"}, "done", {0: {"exit_code": 0}}))
    assert found.cause is None and "every rank ended well" in found.text()


def test_all_places_of_logs_are_read_but_no_earlier_launch(tmp_path):
    folder = run(tmp_path / "r", {0: "", 1: ""}, ends={0: {"exit_code": 1}, 1: {"exit_code": 1}})
    for place, text in {
        "rank_0/output/log/rank_0/error.log": error(3, "EZ9999: a"),
        "output/log/rank_5/mindformer.log": error(2, "EJ0002: b"),
        "rank_1/ascend/debug/plog/plog-77_20240424063133915.log": error(1, "EI0008: c"),
        "plogs/plog-1001_20240424063133915.log": error(9, "EI0007: d"),
        "earlier/1/rank_0/rank.log": error(0, "EK0001: e"),
        "score/rank_0/rank.log": error(0, "EK0001: f"),
        "score/launch.json": "{}",
    }.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = diagnose(folder)
    assert (found.cause.id, found.cause.rank, found.logs) == ("EI0008", 1, 6)
    assert [(other.id, other.rank) for other in found.others] == [("EJ0002", 5), ("EZ9999", 0), ("EI0007", 1)]


def test_error_json_gives_the_time_that_a_traceback_lacks(tmp_path):
    folder = run(
        tmp_path / "r", {0: "OSError: [Errno 28] x\n", 1: "PermissionError: [Errno 13] Permission denied: 'y'\n"}
    )
    for rank, kind, text, seconds in (
        (0, "OSError", "[Errno 28] x", 9),
        (1, "OSError", "[Errno 13] Permission denied", 3),
    ):
        body = {"type": kind, "message": text, "stack": f"{kind}: {text}", "time": START + seconds}
        (folder / f"rank_{rank}" / "error.json").write_text(json.dumps(body))
    found = diagnose(folder)
    assert (found.cause.id, found.cause.file, found.cause.time) == ("perm", "rank_1/rank.log", START + 3)


def test_the_rank_table_names_the_server(tmp_path):
    folder = run(tmp_path / "r", {0: "", 1: error(1, "EZ9999: x")})
    device = [{"device_id": "0", "device_ip": f"192.168.1.{i}", "rank_id": str(i)} for i in range(2)]
    servers = [{"server_id": f"10.0.0.{i}", "device": [device[i]]} for i in range(2)]
    table = {"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"}
    (tmp_path / "hccl.json").write_text(json.dumps(table))
    spec = {"processes": [{"env": {"RANK_TABLE_FILE": str(tmp_path / "hccl.json")}}]}
    (folder / "spec.json").write_text(json.dumps(spec))
    found = diagnose(folder)
    assert (
        found.cause.server == "10.0.0.1" and "(rank 1 on server 10.0.0.1, rank_1/rank.log, line 1)" in found.paragraph()
    )


def test_the_run_means_its_last_failed_stage(tmp_path):
    run(tmp_path / "04_lora", {0: error(1, "EZ9999: x")}, ends={0: {"exit_code": 1}})
    run(tmp_path / "05_finetune", {0: ""}, "done", {0: {"exit_code": 0}})
    assert diagnose(tmp_path).run_dir == tmp_path / "04_lora"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(Refused, match="there is no run directory"):
        diagnose(tmp_path / "none")
    with pytest.raises(Refused, match=r"holds no run: neither launch\.json"):
        diagnose(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=2000), st.binary(max_size=400), st.binary(max_size=400))
def test_no_bytes_raise(tmp_path_factory, log, status, told):
    folder = run(tmp_path_factory.mktemp("r"), {}) / "x"
    (folder / "rank_0").mkdir(parents=True)
    (folder / "rank_0" / "rank.log").write_bytes(log)
    (folder / "rank_0" / "error.json").write_bytes(told)
    (folder / "launch.json").write_bytes(status)
    found = diagnose(folder)
    assert found.text() and json.dumps(found.to_dict())


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=5), st.floats()),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["rank", "signal", "exit_code", "name", "finished", "pid"]), x)
        ),
        max_leaves=9,
    )
)
def test_an_odd_launch_json_does_not_raise(tmp_path_factory, odd):
    folder = run(tmp_path_factory.mktemp("r") / "x", {0: NOTIFY, 1: "x"})
    (folder / "launch.json").write_text(
        json.dumps({"ranks": [odd, {"rank": 1, "signal": "SIGKILL"}], "state": "failed"})
    )
    assert diagnose(folder).text()


def command(*arguments):
    from typer.testing import CliRunner

    from qwenlib.cli.main import app

    return CliRunner().invoke(app, ["diagnose", *arguments])


def test_the_command(tmp_path):
    folder = run(tmp_path / "r", {0: error(1, "EZ9999: x")})
    assert "An operator failed on the AI Core." in command(str(folder)).stdout
    told = json.loads(command(str(folder), "--json").stdout)
    assert told["cause"]["id"] == "EZ9999" and told["cause"]["rank"] == 0
    more = tmp_path / "more.yaml"
    more.write_text("- {id: mine, what: Ours, kind: real, match: ['EZ9999: x'], cause: C., advice: A.}")
    assert "Ours" in command(str(folder), "--signatures", str(more)).stdout
    assert "runs/smoke/04_lora" in command("--help").stdout


def test_a_run_that_goes_on_has_nothing_to_explain(tmp_path):
    goes_on = {"state": "running", "ends": {0: {"state": "running"}}}
    found = diagnose(run(tmp_path / "r", {0: "loss: 1.0\n"}, **goes_on))
    assert "it has not ended" in found.text() and "Not recognised" not in found.text()
    found = diagnose(run(tmp_path / "s", {0: error(1, "what is this")}, **goes_on))
    assert "Not recognised" in found.text() and "what is this" in found.text()


def test_a_lost_supervisor_is_no_run_that_goes_on(tmp_path):
    folder = run(tmp_path / "r", {0: "loss: 1.0\n"}, state="running", ends={0: {"state": "running"}})
    status = json.loads((folder / "launch.json").read_text())
    dead = {"pid": 2**22 + 1, "create_time": 1.0}  # above the largest pid
    (folder / "launch.json").write_text(json.dumps({**status, "supervisor": dead}))
    found = diagnose(folder)
    assert found.state == "failed" and "the supervisor of the ranks" in found.text() and "is gone" in found.text()
