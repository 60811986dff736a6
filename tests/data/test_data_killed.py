"""Killed (SIGKILL) at any instant: what lies there is whole, or is taken for nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Union

import pytest

from qwenlib import data
from qwenlib.data.meta import read_meta
from qwenlib.errors import Refused

pytest.importorskip("tokenizers")
RECORDS = 240


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped sample as messages."""
    path = tmp_path_factory.mktemp("messages") / "messages.jsonl"
    data.convert(data.sample_path(), path)
    return path


def python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[2])},
    )


def killed_after(seconds: float, child: subprocess.Popen) -> bool:
    """Wait for the child's first line, then so long, then kill it; False: it had ended before."""
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        child.kill()
    return child.returncode == -signal.SIGKILL


def state(target: Path, notes: bool = True) -> Union[int, str]:
    """How long the rows are, all of which are there; "refused" when the pair (or its notes, if asked) is not whole."""
    try:
        length = read_meta(target)["seq_length"] + 1 if notes else 0
        rows = [len(row["input_ids"]) for row in data.read_rows(target)]
    except Refused:
        return "refused"
    assert rows == [length or rows[0]] * RECORDS
    return rows[0]


BUILD = """
import json, sys
from qwenlib import data
import mindspore.mindrecord
print("go", flush=True)
data.build(**json.loads(sys.argv[1]))
"""


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_a_build_killed_at_random_instants(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path, there: bool
) -> None:
    target = tmp_path / "t.mindrecord"
    if there:
        data.build(messages, target, seq_length=32, **files_of)
    arguments: Dict[str, Any] = {"input_glob": messages, "output_file": target, "seq_length": 48, "overwrite": True}
    job = json.dumps({**arguments, **files_of}, default=str)
    seed = random.randrange(10**9)
    draw = random.Random(seed)
    for _ in range(3):
        wait = draw.uniform(0, 0.6)
        killed = killed_after(wait, python(BUILD, job))
        found = state(target)
        assert found in (("refused", 33, 49) if there else ("refused", 49)), (seed, wait)
        assert state(target, notes=False) in ("refused", 33, 49), (seed, wait)
        assert killed or found == 49
    data.build(messages, target, seq_length=64, overwrite=True, **files_of)
    assert state(target) == 65
    names = [f"t.mindrecord{end}" for end in ("", ".db", ".meta.json")]
    assert sorted(item.name for item in tmp_path.iterdir()) == names, "what killed builds left is taken away"


SWAP = """
import os, signal, sys
from pathlib import Path
from qwenlib.data.mindrecord import Writer

left = int(sys.argv[3])

def dies(event, arguments):
    global left
    if event in ("os.remove", "os.rename"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

writer = Writer(sys.argv[1], beside=[Path(sys.argv[1] + ".meta.json")])
writer._folder = Path(sys.argv[2])
print("go", flush=True)
sys.addaudithook(dies)
writer._put_in_place()
"""


@pytest.mark.stack
def test_a_build_killed_before_each_step_of_taking_its_place(
    messages: Path, files_of: Dict[str, Path], tmp_path: Path
) -> None:
    old, new = tmp_path / "old" / "t.mindrecord", tmp_path / "new" / "t.mindrecord"
    data.build(messages, old, seq_length=32, **files_of)
    data.build(messages, new, seq_length=48, **files_of)
    found: List[Any] = []
    for step in range(99):
        folder = tmp_path / str(step)
        shutil.copytree(old.parent, folder)
        shutil.copytree(new.parent, folder / ".new")
        target = folder / old.name
        killed = killed_after(60, python(SWAP, target, folder / ".new", step))
        found.append((state(target), state(target, notes=False)))
        if not killed:
            break
    # Old with its notes; without them; no index, beside the old file, then the new one; the new pair before its notes.
    assert found == [(33, 33), ("refused", 33), ("refused", "refused"), ("refused", "refused"), ("refused", 49)]


CONVERT = """
import sys
from qwenlib import data
print("go", flush=True)
data.convert(sys.argv[1], sys.argv[2])
"""


def test_a_conversion_killed_at_random_instants(tmp_path: Path) -> None:
    records = json.loads(data.sample_path().read_text(encoding="utf-8"))
    (tmp_path / "in.json").write_text(json.dumps(records * 40), encoding="utf-8")
    target = tmp_path / "out" / "m.jsonl"
    data.convert(data.sample_path(), target)
    old = target.read_bytes()
    for _ in range(3):
        killed = killed_after(random.uniform(0, 0.3), python(CONVERT, tmp_path / "in.json", target))
        assert target.read_bytes() in (old, old * 40)
        assert killed or target.read_bytes() == old * 40
