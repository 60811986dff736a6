"""The micro checkpoint, and what one process with the real MindFormers found out."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
from micro import Micro
from micro import micro as make_micro

from qwenlib import profile as profiles
from qwenlib.engine import prove, render, work

TOKENS = prove.sample_tokens(297, rows=2, length=128)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def micro() -> Micro:
    return make_micro()


def empty_mindrecord(path: Path) -> Path:
    """A pair of files of which the index says that it holds no row."""
    path.write_bytes(b"\0" * 64)
    database = sqlite3.connect(str(path) + ".db")
    database.execute("create table INDEXES (ROW_ID int)")
    database.commit()
    database.close()
    return path


def configs(micro: Micro, folder: Path) -> Dict[str, Any]:
    """Everything that ``render`` emits: shipped profiles and the micro one."""
    files = {**micro.files, "output_dir": folder / "output"}
    found = {}
    for name in profiles.names():
        prof = profiles.load(name)
        for task in prof.tasks():
            found[f"{name} {task}"] = render.train_config(prof, task, dataset_dir=Path("/d/x.mindrecord"), **files)
            found[f"{name} answer {task}"] = render.predict_config(prof, adapter_task=prof.task(task), **files)
        found[f"{name} answer"] = render.predict_config(prof, use_past=False, **files)
    one = micro.one_rank()
    tokens = work.token_ids(work.base_vocabulary(micro.files["vocab_file"]))
    for task in one.tasks():
        found[f"micro {task}"] = render.train_config(one, task, dataset_dir=micro.mindrecord, tokens=tokens, **files)
    found["micro score"] = render.predict_config(one, tokens=tokens, use_past=False, **files)
    found["micro score lora"] = render.predict_config(
        one, tokens=tokens, use_past=False, adapter_task=one.task("lora"), **files
    )
    found["micro answer"] = render.predict_config(one, tokens=tokens, **files)
    found["micro answer lora"] = render.predict_config(one, tokens=tokens, adapter_task=one.task("lora"), **files)
    return found


@pytest.fixture(scope="session")
def probed(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """What ``stack_probe.py`` found, by part."""
    folder = tmp_path_factory.mktemp("probe")
    rendered = configs(micro, folder)
    lora = str(micro.trained()["lora"]["checkpoint"])
    rows = {"mindrecord": str(micro.mindrecord)}
    no_rows = empty_mindrecord(folder / "empty.mindrecord")
    for suffix in ("", ".db"):
        shutil.copy(f"{micro.mindrecord}{suffix}", folder / f"rows{suffix}")
    socket = str(folder / "socket")
    jobs = {
        "a tensor is missing": ["finetune", "micro finetune", "missing", {}],
        "a tensor is renamed": ["finetune", "micro finetune", "renamed", {}],
        "no name fits": ["finetune", "micro finetune", "nothing_fits", {}],
        "another size": ["finetune", "micro finetune", "another_size", {}],
        "LoRA given as a full one": ["finetune", "micro finetune", "lora", {}],
        "a tensor is missing below an adapter": ["finetune", "micro lora", "missing", {}],
        "no rows": ["finetune", "micro finetune", "base", {"dataset_dir": str(no_rows)}],
        "too few rows": ["finetune", "micro finetune", "base", {"dataset_dir": str(micro.build(1))}],
        "not a MindRecord by name": ["finetune", "micro finetune", "base", {"dataset_dir": str(folder / "rows")}],
        "no data": ["finetune", "micro finetune", "base", {"dataset_dir": str(folder / "none.mindrecord")}],
        "score: a tensor is renamed": ["score", "micro score", "renamed", rows],
        "score: LoRA given as a full one": ["score", "micro score", "lora", rows],
        "score: with the cache": ["score", "micro answer", "base", rows],
        "serve: a tensor is missing": ["serve", "micro answer", "missing", {"socket": socket}],
        "serve: no adapter": ["serve", "micro answer lora", "base", {"socket": socket}],
        "LoRA scored": ["score", "micro score lora", "base", {**rows, "checkpoints": {"lora": lora}}],
        "logits": ["logits", "micro score", "base", {"input_ids": TOKENS}],
        "trained": ["finetune", "micro finetune", "base", {}],
    }
    cases = {
        "tokenizer": {"config": rendered["micro answer"], "folder": str(folder)},
        "keys": {"configs": rendered},
        "guard": {"configs": rendered, "checkpoint": str(micro.checkpoint), "lora": lora, "jobs": jobs},
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    with open(folder / "log", "w") as log:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("stack_probe.py")), folder / "cases.json", folder / "found"],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=str(folder),
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
    assert done.returncode == 0, (folder / "log").read_text()[-4000:]
    return dict(json.loads((folder / "found").read_text()))
