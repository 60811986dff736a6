"""docs/fidelity.md says what is so, and the tests that it names are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qwenlib import fidelity
from qwenlib.engine import job, work

ROOT = Path(__file__).resolve().parent.parent.parent


def test_document_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HCCL_CONNECT_TIMEOUT", raising=False)
    found = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    assert found == fidelity.document(), "run: python -m qwenlib.fidelity > docs/fidelity.md"


@pytest.mark.parametrize("named", [item.test for item in fidelity.ARTEFACTS])
def test_every_named_test_exists(named: str) -> None:
    file, name = named.split("::")
    path = ROOT / "tests" / file
    if not path.is_file() and file.startswith("weights/"):
        pytest.skip("the tests of the weights room are not in this tree yet")
    functions = [node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if hasattr(node, "name")]
    assert name in functions


def test_ranks_get_upstreams_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HCCL_CONNECT_TIMEOUT", raising=False)
    ranks = fidelity.environments()
    assert len(ranks) == 16
    for number, environment in enumerate(ranks):
        # run_multinode.sh "[0,8]" and "[8,16]": RANK_ID i, DEVICE_ID i - START.
        expected = {
            "RANK_ID": str(number),
            "RANK_SIZE": "16",
            "DEVICE_ID": str(number % 8),
            "RANK_TABLE_FILE": "/run/hccl.json",
        }
        assert {name: environment[name] for name in fidelity.UPSTREAMS} == expected
    given = {name for environment in ranks for name, value in environment.items() if value is not None}
    assert given - {"PYTHONPATH"} == set(fidelity.VARIABLES) - {"PYTHONPATH"}


def test_command_of_a_rank_is_one_program_and_one_file(tmp_path: Path) -> None:
    import sys

    file = tmp_path / "job.json"
    job.Job("finetune", "Ascend", {"a": 1}, "/c", "/r").save(file)
    assert work.command(file) == [sys.executable, "-m", "qwenlib.engine.rank", str(file)]
    assert job.load(file).config == {"a": 1}
