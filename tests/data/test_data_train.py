"""The real MindFormers trains on what we built, and its loss is transformers' on the same rows and weights."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from qwenlib import data

ROWS = 6
COMBINATIONS = list(itertools.product(("all", "assistant"), (False, True)))

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Dict[Tuple[str, bool], Dict[str, Any]]:
    """For each of labels x pack: the built file, and MindFormers' losses, one a step, of four epochs of one batch."""
    from micro import micro

    from qwenlib.engine import work

    tiny = micro()
    folder = tmp_path_factory.mktemp("train")
    jobs: List[str] = []
    builds: Dict[Tuple[str, bool], Dict[str, Any]] = {}
    for labels, pack in COMBINATIONS:
        run_dir = folder / f"{labels}-{pack}"
        mindrecord = run_dir / "train.mindrecord"
        settings = [f"finetune.batch_size={ROWS}", "finetune.epochs=4", f"data.labels={labels}", f"data.pack={pack}"]
        profile = tiny.one_rank(*settings)
        _build(run_dir, mindrecord, profile, tiny.files)
        plan = work.training_plan(
            profile,
            "finetune",
            load_checkpoint=tiny.model_dir,
            train_dataset=mindrecord,
            run_dir=run_dir / "run",
            **tiny.files,
        )
        jobs.append(str(Path(plan.run_dir) / "job.json"))
        builds[labels, pack] = {"mindrecord": mindrecord, "hf": tiny.hf, "profile": profile, "tiny": tiny}
    root = Path(data.__file__).parents[2]
    probe = Path(__file__).with_name("loss_probe.py")
    environ = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(probe), str(folder / "found.json"), *jobs], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for one, losses in zip(builds.values(), json.loads((folder / "found.json").read_text(encoding="utf-8"))):
        one["losses"] = losses
    return builds


def _build(folder: Path, target: Path, profile: Any, files: Dict[str, Path]) -> None:
    """Exactly one batch, so that it does not matter how MindFormers shuffles it."""
    folder.mkdir()
    sample = json.loads(data.sample_path().read_text(encoding="utf-8"))
    # Found by trying: packed, so many records fill exactly as many rows as there are records without packing.
    for count in range(ROWS, len(sample)):
        (folder / "in.json").write_text(json.dumps(sample[:count]), encoding="utf-8")
        data.convert(folder / "in.json", folder / "m.jsonl")
        lengths = data.build(
            folder / "m.jsonl",
            target,
            seq_length=profile.data.seq_length,
            labels=profile.data.labels,
            pack=profile.data.pack,
            overwrite=True,
            **files,
        )
        if lengths["rows"] == ROWS:
            return
    raise AssertionError("the sample does not fill the batch")


def transformers_loss(hf: Path, mindrecord: Path) -> float:
    """The mean of -log p over the learned tokens of all rows, by Hugging Face's network."""
    import torch
    from transformers import Qwen2ForCausalLM

    network = Qwen2ForCausalLM.from_pretrained(str(hf), local_files_only=True).eval()
    rows = list(data.read_rows(mindrecord))
    ids, targets = ([torch.tensor(row[name]).long() for row in rows] for name in ("input_ids", "target_ids"))
    with torch.no_grad():
        logits = network(input_ids=torch.stack(ids)[:, :-1]).logits
    wanted = torch.stack(targets)[:, 1:]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100))


@pytest.mark.parametrize(("labels", "pack"), COMBINATIONS)
def test_the_first_batchs_loss_is_transformers(found: Any, labels: str, pack: bool) -> None:
    one = found[labels, pack]
    assert data.count_rows(one["mindrecord"]) == ROWS
    assert len(one["losses"]) == 4
    assert one["losses"][0] == pytest.approx(transformers_loss(one["hf"], one["mindrecord"]), abs=1e-4)
    assert one["losses"][-1] < one["losses"][0]


def test_rows_of_another_length_are_refused_by_the_rank_even_without_notes(found: Any) -> None:
    mindrecord = found["all", False]["mindrecord"]
    job_file = mindrecord.parent / "run" / "job.json"
    job = json.loads(job_file.read_text(encoding="utf-8"))
    job["config"]["model"]["model_config"]["seq_length"] -= 8
    other = job_file.with_name("other.json")
    other.write_text(json.dumps(job), encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[2])}
    command = [sys.executable, "-m", "qwenlib.engine.rank", str(other)]
    done = subprocess.run(command, cwd=str(job_file.parent), env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "rows of 129 tokens (seq_length 128), but the training's seq_length is 120" in done.stderr


def test_the_score_of_a_packed_data_set_is_the_same_loss(found: Any, tmp_path: Path) -> None:
    from qwenlib.engine import single

    one = found["assistant", True]
    tiny = one["tiny"]
    scored = single.score(
        one["profile"], load_checkpoint=tiny.model_dir, mindrecord=one["mindrecord"], run_dir=tmp_path, **tiny.files
    )
    assert scored["base"]["loss"] == pytest.approx(one["losses"][0], abs=1e-4)
