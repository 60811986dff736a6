"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenlib import files
from qwenlib.errors import Refused, WorkFailed

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> List[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_breaks_off_the_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type) -> None:
    target = tmp_path / "x.json"
    target.write_text("old")
    with pytest.raises(error), files.atomic_path(target) as part:
        part.write_text("half")
        raise error
    assert (names(tmp_path), target.read_text()) == (["x.json"], "old")


def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "x.bin"
    with files.atomic_path(target) as part:
        part.write_bytes(b"whole")
        assert not target.exists()
        assert part.parent == target.parent, "a rename within one folder cannot be torn"
    assert (names(target.parent), target.read_bytes()) == (["x.bin"], b"whole")


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    code = (
        "import os, sys\nfrom qwenlib.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as part:\n    part.write_text('half')\n    os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -9
    assert target.read_text() == "old"


@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_that_open_would_give(tmp_path: Path, umask: int, wanted: int) -> None:
    code = f"import os, sys\nos.umask({umask})\nfrom qwenlib import files\nfiles.write_text(sys.argv[1], 'x')"
    target = tmp_path / "x"
    subprocess.run([sys.executable, "-c", code, str(target)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert stat.S_IMODE(target.stat().st_mode) == wanted


def test_importing_files_leaves_the_umask_alone() -> None:
    code = "import os\nos.umask(0o027)\nfrom qwenlib import files\nprint(oct(os.umask(0)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.strip() == "0o27"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_with_the_path_and_leaves_the_old_file(small_disk: Path) -> None:
    target = small_disk / "x"
    target.write_text("old")
    with pytest.raises(WorkFailed, match=r"no space left while writing .*small/x: 0 MiB"):
        files.write_text(target, "y" * 200_000)
    assert (names(small_disk), target.read_text()) == (["x"], "old")


def test_a_disk_without_room_for_one_more_name_is_told_the_same_way(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(small_disk)], check=True, capture_output=True)
    (small_disk / "last").touch()
    for place in (small_disk / "x", small_disk / "folder" / "x"):
        with pytest.raises(WorkFailed, match=f"no space left while writing {place}: 0 MiB are free there"):
            files.write_text(place, "y")
    assert names(small_disk) == ["last"]


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    for place in (Path("/proc/x"), tmp_path / ("x" * 300)):
        with pytest.raises(WorkFailed, match=rf"^{place} cannot be written: "):
            files.write_text(place, "y")
    assert names(tmp_path) == []


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to the pipe").symlink_to("pipe")
    for name, told in (
        ("file/x", "cannot be written: .*/file is no folder"),
        ("folder", "is a folder"),
        ("pipe", "is a device or a pipe"),
        ("to the pipe", "is a device or a pipe"),
    ):
        with pytest.raises(Refused, match=rf"^{tmp_path / name} {told}"):
            files.write_text(tmp_path / name, "y")
    assert names(tmp_path) == ["file", "folder", "pipe", "to the pipe"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("disk/old", "disk/new"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(name)
        (tmp_path / "disk" / "old").write_text("old")
        files.write_text(tmp_path / "link", "y")
        assert os.readlink(tmp_path / "link") == name and (tmp_path / name).read_text() == "y"


def test_the_writer_s_own_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "x"):
        (tmp_path / "another file").read_text()
    assert names(tmp_path) == []


def test_json_comes_back_and_is_for_people_to_read(tmp_path: Path) -> None:
    value = {"name": "中文 é", "path": "x", "list": [1, 2.5, None, True]}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    assert "中文 é" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_numpy_numbers_stay_numbers_in_json(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    value = {
        "steps": numpy.int64(4),
        "loss": numpy.float32(0.5),
        "right": numpy.bool_(True),
        "per_position": numpy.arange(3),
        "path": Path("/x"),
    }
    files.write_json(tmp_path / "x.json", value)
    wanted = {"steps": 4, "loss": 0.5, "right": True, "per_position": [0, 1, 2], "path": "/x"}
    assert files.read_json(tmp_path / "x.json") == wanted


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1,\n "b": }', r"x\.json, line 2, column 7: not JSON"),
        (b"", r"x\.json, line 1, column 1: not JSON"),
        (b"[1] [2]", r"x\.json, line 1, column 5: not JSON"),
        (b'{"a": "\xff"}', r"x\.json is not UTF-8 text \(byte 7\)"),
        (b"[" * 200_000, r"x\.json cannot be read as JSON|x\.json, line 1"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(Refused, match=said):
        files.read_json(tmp_path / "x.json")


def test_a_number_of_thousands_of_digits_is_refused_or_read_but_never_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("9" * 6000)
    try:
        assert files.read_json(tmp_path / "x.json") > 10**5998
    except Refused as error:
        assert "x.json" in str(error)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=rf"there is no file {tmp_path}/none\.json"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(Refused, match="cannot be read: Is a directory"):
        files.read_json(tmp_path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0-9eE.+ntf\\ué\n', max_size=60).map(str.encode))
def test_any_bytes_are_read_as_json_would_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.json"
    path.write_bytes(content)
    try:
        found = files.read_json(path)
    except Refused as error:
        assert str(path) in str(error)
        with pytest.raises(ValueError):
            json.loads(content.decode("utf-8-sig"))
    else:
        assert repr(found) == repr(json.loads(content.decode("utf-8-sig")))  # repr: NaN equals nothing


def test_sha256_is_the_files_and_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"abc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_bytes(b"")
    (tmp_path / "note.txt").write_bytes(b"")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.py").write_bytes(b"")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "a.py") == abc
    before = files.fingerprint(tmp_path, "*.py")
    assert list(before) == ["a.py", "sub/b.py"] and before["a.py"] == abc
    (tmp_path / "sub" / "b.py").write_bytes(b"x")
    after = files.fingerprint(tmp_path, "*.py")
    assert {name for name in before if before[name] != after[name]} == {"sub/b.py"}


def test_space_is_asked_of_the_disk_that_will_hold_the_file(small_disk: Path) -> None:
    files.require_space(small_disk / "not" / "yet" / "there", 1000, "it")
    with pytest.raises(Refused, match=r"converting needs 1024 MiB below .*small, where only 0 MiB are free"):
        files.require_space(small_disk / "not" / "yet" / "there", 2**30, "converting")


def test_more_space_than_any_disk_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="needs"):
        files.require_space(tmp_path / "x", 2**70, "it")
