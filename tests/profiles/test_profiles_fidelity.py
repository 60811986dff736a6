"""What is rendered for the 910A is upstream's, key by key, or differs for a written reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Set, Tuple

import pytest
import yaml

from qwenlib import profile as profiles
from qwenlib.engine import upstream

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = ("lora", "finetune", "infer")


@pytest.mark.parametrize("kind", KINDS)
def test_every_difference_has_a_reason(kind: str) -> None:
    unexplained = [
        (row.key, row.upstream, row.ours) for row in upstream.compare(kind) if not row.equal and not row.reason
    ]
    assert unexplained == []


def test_every_reason_has_a_difference() -> None:
    differing: Set[Tuple[str, str]] = {
        (kind, row.key) for kind in KINDS for row in upstream.compare(kind) if not row.equal
    }
    stale = [
        (kind, key)
        for kinds, reasons in upstream.REASONS.items()
        for kind in kinds
        for key in reasons
        if (kind, key) not in differing
    ]
    assert stale == []


def test_no_key_of_upstream_is_lost_from_the_comparison() -> None:
    assert [len(upstream.upstream(kind)) for kind in KINDS] == [125, 119, 118]
    for kind in KINDS:
        keys = [row.key for row in upstream.compare(kind)]
        assert set(upstream.upstream(kind)) <= set(keys)
        assert set(upstream.flatten(upstream.rendered(kind))) <= set(keys)
        assert len(keys) == len(set(keys))


def test_batch_size_stands_in_one_place_of_the_profile() -> None:
    profile = profiles.load("finetune_7b_910a", ["finetune.batch_size=3"])
    tree = upstream.render.train_config(
        profile,
        "finetune",
        dataset_dir=Path("/d"),
        vocab_file=Path("/v"),
        merges_file=Path("/m"),
        output_dir=Path("/o"),
    )
    found = {key: value for key, value in upstream.flatten(tree).items() if key.endswith("batch_size")}
    assert found == dict.fromkeys(
        ("train_dataset.batch_size", "runner_config.batch_size", "model.model_config.batch_size"), 3
    )
    assert tree["train_dataset_task"]["dataset_config"] == tree["train_dataset"]


def test_upstreams_lm_head_can_be_had() -> None:
    profile = profiles.load("lora_7b_910a", ["lora.adapter.train_lm_head=true"])
    pet: Dict[str, Any] = upstream.render._pet_config(profile.model, profile.task("lora"))
    assert pet["freeze_exclude"] == upstream.upstream("lora")["model.model_config.pet_config.freeze_exclude"]


@pytest.mark.parametrize("name", profiles.names())
def test_every_shipped_profile_is_whole(name: str) -> None:
    assert profiles.load(name).name == name


PARSED = """
import json, sys
from qwenlib.engine.compat import apply_cpu_patches
apply_cpu_patches()
from mindformers import MindFormerConfig
from qwenlib.engine import keys, tokenizer, upstream
tokenizer.register()
found = {}
for path in sys.argv[2:]:
    keys.check_keys(MindFormerConfig(path))
    found[path] = upstream.flatten(MindFormerConfig(path))
json.dump(found, open(sys.argv[1], "w"))
"""


@pytest.mark.stack
def test_mindformers_parses_it_and_ignores_no_key(tmp_path: Path) -> None:
    expected: Dict[str, Dict[str, Any]] = {}
    for kind in KINDS:
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(upstream.rendered(kind), sort_keys=False), encoding="utf-8")
        expected[str(path)] = upstream.flatten(upstream.rendered(kind))
    done = subprocess.run(
        [sys.executable, "-c", PARSED, str(tmp_path / "found.json"), *expected],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    for path, keys in expected.items():
        assert {key: found[path].get(key) for key in keys} == keys
