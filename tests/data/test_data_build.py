"""The MindRecord itself, written and read by MindSpore; and the commands."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy
import pytest

from qwenlib import data
from qwenlib.data import mindrecord
from qwenlib.data.build import lengths
from qwenlib.data.chatml import read_messages
from qwenlib.data.layout import check_rows, columns
from qwenlib.data.length import fit
from qwenlib.data.meta import read_meta
from qwenlib.data.rows import COLUMNS, IGNORE, Encoder, to_row
from qwenlib.errors import Refused, WorkFailed

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped sample as messages."""
    path = tmp_path_factory.mktemp("messages") / "messages.jsonl"
    data.convert(data.sample_path(), path)
    return path


@pytest.fixture(scope="module")
def built(messages: Path, files_of: Dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MindRecord of the sample with cut rows, labels assistant. Read only."""
    path = tmp_path_factory.mktemp("built") / "deep" / "train.mindrecord"
    data.build(messages, path, seq_length=60, labels="assistant", **files_of)
    return path


@pytest.mark.stack
def test_rows_come_back_as_they_were_encoded(built: Path, messages: Path, tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, "assistant")
    pieces = (fit(item, 61, "truncate", encoder.end) for item in encoder.encode(list(read_messages(messages))))
    wanted = [to_row(piece, 60, encoder.pad) for (piece,) in pieces]
    found = list(data.read_rows(built))
    assert len(found) == len(wanted) == data.count_rows(built) == 240
    for one, other in zip(found, wanted):
        for name in COLUMNS:
            assert one[name].dtype == numpy.int32
            assert numpy.array_equal(one[name], other[name])


@pytest.mark.stack
def test_the_data_set_that_training_uses_reads_it(built: Path) -> None:
    from mindspore import dataset

    rows = dataset.MindDataset(str(built), columns_list=list(COLUMNS), shuffle=False).create_tuple_iterator(
        num_epochs=1, output_numpy=True
    )
    for one, other in zip(rows, data.read_rows(built)):
        assert [part.dtype.name for part in one] == ["int32"] * 3
        assert all(numpy.array_equal(part, other[name]) for part, name in zip(one, COLUMNS))


@pytest.mark.stack
def test_meta_counts_what_the_rows_hold(built: Path, messages: Path, files_of: Dict[str, Path]) -> None:
    meta = read_meta(built)
    rows = list(data.read_rows(built))
    real = sum(int(row["attention_mask"].sum()) for row in rows)
    learned = sum(int((row["target_ids"] != IGNORE).sum()) for row in rows)
    uncut = lengths(messages, **files_of)
    assert (meta["records"], meta["tokens"], meta["label_tokens"]) == (240, real, learned)
    assert meta["real_share"] == pytest.approx(real / (240 * 61))
    assert meta["label_share"] == pytest.approx(learned / real)
    assert meta["truncated"] == int((uncut > 61).sum()) > 0
    assert meta["without_labels"] == sum(not (row["target_ids"][1:] != IGNORE).any() for row in rows)
    assert meta["length_quantiles"]["0.5"] == float(numpy.median(uncut))
    assert (meta["seq_length"], meta["labels"], meta["pad_token_id"]) == (60, "assistant", 1021)
    assert len(meta["vocab_sha256"]) == 64


@pytest.mark.stack
def test_only_the_pair_and_its_meta_are_left_with_usual_permissions(built: Path) -> None:
    names = [item.name for item in sorted(built.parent.iterdir())]
    assert names == ["train.mindrecord", "train.mindrecord.db", "train.mindrecord.meta.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(item.stat().st_mode) for item in built.parent.iterdir()} == {0o666 & ~umask}


@pytest.mark.stack
def test_an_existing_output_is_refused_by_name_then_replaced_when_asked(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "train.mindrecord"
    data.build(messages, target, seq_length=32, **files_of)
    with pytest.raises(Refused, match=r"train\.mindrecord, .*train\.mindrecord\.db exist already"):
        data.build(messages, target, seq_length=48, **files_of)
    assert len(next(data.read_rows(target))["input_ids"]) == 33
    data.build(messages, target, seq_length=48, overwrite=True, **files_of)
    assert len(next(data.read_rows(target))["input_ids"]) == 49
    assert read_meta(target)["seq_length"] == 48


@pytest.mark.stack
def test_a_failed_build_leaves_the_old_pair_and_nothing_beside(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "train.mindrecord"
    data.build(messages, target, seq_length=32, **files_of)
    before = sorted(tmp_path.iterdir())
    broken = tmp_path.parent / f"{tmp_path.name}-broken.jsonl"
    lines = messages.read_text(encoding="utf-8").splitlines()
    broken.write_text("\n".join([*lines, *lines, '{"messages": 1}']), encoding="utf-8")  # the first batch is written
    with pytest.raises(Refused, match=r"record 480 \(line 481\)"):
        data.build(broken, target, seq_length=48, overwrite=True, **files_of)
    assert sorted(tmp_path.iterdir()) == before
    assert len(next(data.read_rows(target))["input_ids"]) == 33
    assert read_meta(target)["seq_length"] == 32


@pytest.mark.stack
def test_a_writer_that_lost_rows_fails(tmp_path: Path) -> None:
    row = {name: numpy.zeros(4, dtype=numpy.int32) for name in COLUMNS}
    with (
        pytest.raises(WorkFailed, match="was given 3 rows, but its index counts 2"),
        mindrecord.Writer(tmp_path / "a.mindrecord") as writer,
    ):
        writer.write([row, row])
        writer.rows += 1
    assert not list(tmp_path.iterdir())


@pytest.mark.stack
def test_parts_are_read_together_and_one_by_one(messages: Path, files_of: Dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "parts.mindrecord"
    meta = data.build(messages, target, seq_length=48, file_partition=2, **files_of)
    assert [Path(path).name for path in meta["files"]][::2] == ["parts.mindrecord0", "parts.mindrecord1"]
    each = [data.count_rows(tmp_path / f"parts.mindrecord{part}") for part in (0, 1)]
    assert sum(each) == data.count_rows(target) == len(list(data.read_rows(target))) == 240
    assert len(list(data.read_rows(tmp_path / "parts.mindrecord0"))) == each[0]
    with pytest.raises(Refused, match=r"parts\.mindrecord0.* exist already"):
        data.build(messages, target, seq_length=48, **files_of)
    data.build(messages, target, seq_length=48, overwrite=True, **files_of)
    assert [item.name for item in mindrecord.existing(target)] == ["parts.mindrecord", "parts.mindrecord.db"]


@pytest.mark.stack
def test_half_a_pair_is_never_read(built: Path, tmp_path: Path) -> None:
    lone = tmp_path / "train.mindrecord"
    lone.write_bytes(b"x")
    with pytest.raises(Refused, match=r"there is no .*train\.mindrecord\.db"):
        data.count_rows(lone)
    (tmp_path / "train.mindrecord.db").write_bytes(b"no database" * 100)
    with pytest.raises(Refused, match="is not the index of a MindRecord"):
        next(data.read_rows(lone))
    with pytest.raises(Refused, match="rows 0 to 239; there is no row 240"):
        mindrecord.row_at(built, 240)


@pytest.mark.stack
def test_rows_and_columns_that_do_not_fit_are_told_without_any_notes(built: Path, tmp_path: Path) -> None:
    from mindspore.mindrecord import FileWriter

    check_rows(built, 60)
    with pytest.raises(Refused, match=r"rows of 61 tokens \(seq_length 60\), but the training's seq_length is 64"):
        check_rows(built, 64)
    other = tmp_path / "other.mindrecord"
    writer = FileWriter(str(other), 1)
    writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}}, "somebody else's")
    writer.write_raw_data([{"input_ids": numpy.zeros(61, dtype=numpy.int32)}])
    writer.commit()
    assert columns(other) == ["input_ids"]
    with pytest.raises(Refused, match="has no column target_ids, attention_mask; it has input_ids"):
        check_rows(other, 60)
    for head in (b"", b"x", b"\xff" * 99, b"\x02" + b"\0" * 7 + b"[]"):
        other.write_bytes(head)
        with pytest.raises(Refused, match="does not begin as a MindRecord does"):
            columns(other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seq_length": 0}, "seq_length must be at least 1"),
        ({"labels": "answers"}, "labels must be all or assistant, found 'answers'"),
        ({"file_partition": 0}, "file_partition must be between 1 and 1000"),
        ({"output_file": "train.bin"}, "must end in .mindrecord"),
        ({"output_file": "a:b.mindrecord"}, "cannot hold ':'"),
        ({"input_glob": "nothing-*.jsonl"}, "names no file"),
        ({"vocab_file": "none.json"}, "there is no vocabulary file"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path, change: Dict[str, Any], said: str
) -> None:
    arguments = {"input_glob": messages, "output_file": "out.mindrecord", "seq_length": 32, **files_of, **change}
    arguments["output_file"] = tmp_path / str(arguments["output_file"])
    with pytest.raises(Refused, match=said):
        data.build(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.stack
def test_a_place_that_cannot_be_written_is_told_by_its_name(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"file/out\.mindrecord cannot be written: .*/file is no folder"):
        data.build(messages, tmp_path / "file" / "out.mindrecord", seq_length=32, **files_of)
    name = "x" * 230 + ".mindrecord"  # itself not too long, but the folder beside that it is built in
    with pytest.raises(WorkFailed, match=rf"^{tmp_path / name} cannot be written: File name too long\. Choose another"):
        data.build(messages, tmp_path / name, seq_length=32, **files_of)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_without_mindspore_it_says_what_to_install(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mindspore" else find(name))
    with pytest.raises(Refused, match="needs MindSpore, which is not installed"):
        data.build(messages, tmp_path / "t.mindrecord", seq_length=32, **files_of)
    assert not list(tmp_path.iterdir())


def qwenlib(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess:
    root = str(Path(data.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "qwenlib", "data", *map(str, arguments)],
        cwd=str(cwd),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def on_a_terminal(*arguments: Any, cwd: Path) -> str:
    """What the command writes when its stdout is a terminal."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "qwenlib", "data", *map(str, arguments)]
    environ = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    root = str(Path(data.__file__).parents[2])
    with subprocess.Popen(command, cwd=str(cwd), stdout=theirs, env={**environ, "PYTHONPATH": root}):
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while block := os.read(ours, 2**16):
                seen += block
    os.close(ours)
    return seen.decode("utf-8")


@pytest.mark.stack
def test_the_commands_from_alpaca_to_a_look_at_a_row(files_of: Dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = qwenlib("convert", "--data_path", data.sample_path(), "--output_path", "m.jsonl", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["records"] == 240
    vocabulary: List[Any] = [part for name, path in files_of.items() for part in (f"--{name}", path)]
    build = ["build", "--input_glob", "m.json*", "--output_file", "t.mindrecord", "--seq_length", 96, *vocabulary]
    build += ["--labels", "assistant"]
    done = qwenlib(*build, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["truncated"] == 0, done.stderr
    again = qwenlib(*build, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("qwenlib: refused: ")
    assert "t.mindrecord.db exist already" in again.stderr
    look = ["preview", "--mindrecord", "t.mindrecord", *vocabulary, "--row", 3]
    done = qwenlib(*look, "--tokens", "--histogram", "h.png", "--messages", "m.jsonl", cwd=tmp_path)
    assert "How do you boil an egg?" in done.stdout
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in done.stdout and "[[" in done.stdout, "no colours for a pipe"
    seen = on_a_terminal(*look, "--tokens", cwd=tmp_path)
    assert "\x1b[1;32mPut it in boiling water" in seen
    assert re.search(r"\x1b\[1;32m +\d+ +(\d+) +\1  P\x1b\[0m", seen), "learned: bold and green, target = id"
    assert re.search(r"\x1b\[2m +0 +1022 +-100  <\|im_start\|>\x1b\[0m", seen)
    shown = json.loads(qwenlib(*look, "--json", cwd=tmp_path).stdout)
    assert shown["text"].endswith("about eight minutes.<|im_end|>\n")


@pytest.mark.parametrize("text", ["not json", '[{"instruction": "a"}]', "[]"])
def test_a_bad_file_ends_the_command_with_2_and_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "in.json").write_text(text, encoding="utf-8")
    done = qwenlib("convert", "--data_path", "in.json", "--output_path", "out.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "in.json" in done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["in.json"]


@pytest.mark.parametrize("command", ["convert", "build", "preview"])
def test_every_help_has_an_example(tmp_path: Path, command: str) -> None:
    assert f"Example: qwenlib data {command} " in qwenlib(command, "--help", cwd=tmp_path).stdout


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ("mindspore", "tokenizers", "torch", "transformers", "pandas", "matplotlib")
    code = f"import sys, qwenlib.data, qwenlib.data.preview; print([name for name in {heavy} if name in sys.modules])"
    root = str(Path(data.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.stack
@pytest.mark.parametrize("seed", [0, 5])
def test_packed_rows_hold_every_conversation_once(
    messages: Path, files_of: Dict[str, Path], tokenizer: Any, tmp_path: Path, seed: int
) -> None:
    target = tmp_path / "packed.mindrecord"
    meta = data.build(messages, target, seq_length=512, pack=True, seed=seed, **files_of)
    found: List[tuple] = []
    for row in data.read_rows(target):
        real = row["attention_mask"] == 1
        ids, targets = row["input_ids"][real], row["target_ids"][real]
        starts = [
            *numpy.flatnonzero(targets == IGNORE),
            len(ids),
        ]  # with labels all, only a sample's first is not learned
        found += [tuple(ids[start:end]) for start, end in zip(starts, starts[1:])]
    wanted = [tuple(item.ids) for item in Encoder(tokenizer).encode(list(read_messages(messages)))]
    assert sorted(found) == sorted(wanted)
    assert (meta["records"], meta["samples"], meta["rows"]) == (240, 240, meta["rows_packed"])
    assert meta["rows"] < meta["rows_padded"] / 5
    assert meta["real_share"] > 0.95
    again = data.build(messages, tmp_path / "again.mindrecord", seq_length=512, pack=True, seed=seed, **files_of)
    assert again["real_share"] == meta["real_share"]
    for one, other in zip(data.read_rows(target), data.read_rows(tmp_path / "again.mindrecord")):
        assert numpy.array_equal(one["input_ids"], other["input_ids"])


@pytest.mark.stack
def test_too_long_conversations_are_dropped_or_split_as_asked(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path
) -> None:
    uncut = lengths(messages, **files_of)
    long = int((uncut > 61).sum())
    dropped = data.build(messages, tmp_path / "d.mindrecord", seq_length=60, too_long="drop", **files_of)
    assert (dropped["rows"], dropped["dropped"], dropped["tokens"]) == (240 - long, long, uncut[uncut <= 61].sum())
    split = data.build(messages, tmp_path / "s.mindrecord", seq_length=60, too_long="split", **files_of)
    assert (split["split"], split["tokens"], split["truncated"]) == (long, uncut.sum(), 0)
    assert split["rows"] == data.count_rows(tmp_path / "s.mindrecord") >= 240 + long
    with pytest.raises(Refused, match="every conversation is longer than a row of 5 tokens"):
        data.build(messages, tmp_path / "none.mindrecord", seq_length=4, too_long="drop", **files_of)
    assert not (tmp_path / "none.mindrecord").exists()


@pytest.mark.stack
def test_a_tokenizer_folder_is_enough(messages: Path, vocabulary: Path, tmp_path: Path) -> None:
    meta = data.build(messages, tmp_path / "t.mindrecord", vocabulary, "", 96)
    assert meta["rows"] == 240
    with pytest.raises(Refused, match="half a tokenizer"):
        data.build(messages, tmp_path / "u.mindrecord", vocabulary / "vocab.json", "", 96)


LOCKER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("begin exclusive")
print("locked", flush=True)
time.sleep(600)
"""


@pytest.mark.stack
def test_a_locked_index_is_told_with_what_to_do(tmp_path: Path) -> None:
    row = {name: numpy.zeros(4, dtype=numpy.int32) for name in COLUMNS}
    said = r"could not write.*\(database is locked\) SQLite cannot lock files .*NFS often\): build on a local disk"
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(WorkFailed, match=said),
        mindrecord.Writer(tmp_path / "a.mindrecord") as writer,
    ):
        writer.write([row] * 10)
        (folder,) = tmp_path.glob(".a.*")
        command = [sys.executable, "-c", LOCKER, str(folder / "a.mindrecord.db")]
        locker = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(locker.kill)
        assert locker.stdout is not None and locker.stdout.readline() == b"locked\n"
    assert not list(tmp_path.iterdir())
