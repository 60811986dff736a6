"""Where the table is, and waiting for it."""

import json
import threading
import time

import pytest

from qwenlib.errors import Refused, WorkFailed
from qwenlib.ranktable import find, wait_for

JOB, NOTEBOOK = "user/config/jobstart_hccl.json", "user/config/nbstart_hccl.json"


@pytest.fixture
def root(tmp_path, make_table):
    """A root that has all the platform's files."""
    for name in (JOB, NOTEBOOK, "tables/v1.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make_table()))
    return tmp_path


def test_the_order_of_places(root):
    environ = {"RANK_TABLE_FILE_V_1_0": "/tables/v1.json", "RANK_TABLE_FILE": "/user/config"}
    steps = []
    found = find("mine.json", environ, root)
    steps.append((found.path.name, found.reason))
    for name in ("", "RANK_TABLE_FILE_V_1_0", "RANK_TABLE_FILE"):
        environ.pop(name, None)
        found = find("", environ, root)
        steps.append((str(found.path.relative_to(root)), found.reason))
    (root / JOB).unlink()
    found = find("", environ, root)
    steps.append((str(found.path.relative_to(root)), found.reason))
    assert [name for name, _ in steps] == ["mine.json", "tables/v1.json", JOB, JOB, NOTEBOOK]
    assert "RANK_TABLE_FILE=/user/config" in steps[2][1] and "RANK_TABLE_FILE is not set" in steps[3][1]
    (root / NOTEBOOK).unlink()
    nothing = find("", {}, root)
    assert nothing.path is None and "nbstart_hccl.json" in nothing.reason


def test_a_folder_in_the_variable_stands_for_the_file_in_it(root):
    for value in ("/user/config", "/user/config/", str(root / "user/config")):
        assert find("", {"RANK_TABLE_FILE": value}, root).path == root / JOB


def test_a_file_without_suffix_is_a_file(tmp_path):
    (tmp_path / "table").write_text("{}")
    assert find(tmp_path / "table").path == tmp_path / "table"


def test_a_mistyped_path_is_named_as_it_was_typed(tmp_path):
    assert find(tmp_path / "hccl").path == tmp_path / "hccl"
    (tmp_path / "tables").mkdir()
    assert find(tmp_path / "tables").path == tmp_path / "tables" / "jobstart_hccl.json"
    assert str(find("", {"RANK_TABLE_FILE": "/dev/null"}, "/").path) == "/dev/null"


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), -1.0])
def test_nobody_waits_for_ever(timeout, tmp_path):
    with pytest.raises(Refused, match="wait_seconds must be a number"):
        wait_for(tmp_path / "hccl.json", timeout)


def test_a_named_file_that_is_absent_is_the_answer(tmp_path):
    found = find("", {"RANK_TABLE_FILE": "/later/hccl.json"}, tmp_path)
    assert found.path == tmp_path / "later/hccl.json" and found.announced


def test_waiting_through_every_state(tmp_path, make_table, capsys, monkeypatch):
    monkeypatch.setenv("QWENLIB_HEADLESS", "1")
    path, whole = tmp_path / "config" / "hccl.json", json.dumps(make_table())
    states = [None, "", '{"status":"initializing"}', whole[: len(whole) // 2], whole[:-1], whole]

    def platform():
        for text in states:
            if text is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
            time.sleep(0.05)

    thread = threading.Thread(target=platform)
    thread.start()
    document = wait_for(path, timeout=60, interval=0.01)
    thread.join()
    assert document == make_table()
    assert f"waiting for {path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ('{"status": "initializing"}', "status initializing (no servers yet)"),
        ('{"status": "initializing", "group_list": []}', "servers incomplete"),
        ('{"status": "comple', "half-written"),
        ('{"status": "completed", "server_list": [', "half-written"),
    ],
)
def test_the_timeout_names_what_is_missing(text, missing, tmp_path):
    path = tmp_path / "hccl.json"
    if text is not None:
        path.write_text(text)
    begun = time.monotonic()
    with pytest.raises(WorkFailed, match=r"not ready after 0.1 s") as caught:
        wait_for(path, timeout=0.1, interval=0.02)
    assert missing in str(caught.value) and time.monotonic() - begun < 30


def test_a_broken_file_is_not_waited_for(tmp_path):
    path = tmp_path / "hccl.json"
    path.write_text('{"status": completed, // no\n "server_list": []}')
    begun = time.monotonic()
    with pytest.raises(Refused, match="line 1, column 12"):
        wait_for(path, timeout=60, interval=0.02, settle=0.1)
    assert time.monotonic() - begun < 30


def test_a_ready_file_is_not_waited_for(sample_path):
    assert wait_for(sample_path("v0_one_card"), timeout=0)["status"] == "completed"
