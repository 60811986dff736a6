"""Judging what was loaded, and the figures of a score: plain functions."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import List

import pytest
from test_engine_work import mindrecord

from qwenlib.engine.guard import ADAPTER_MARK, LoadWatch
from qwenlib.engine.train import check_dataset
from qwenlib.errors import Refused, WorkFailed

ADAPTER = f"model.layers.0.attention.wq.{ADAPTER_MARK}a"


def watch(missing: List[str], unused: List[str]) -> LoadWatch:
    found = LoadWatch()
    found.outcome = (missing, unused)
    return found


def test_a_full_load_passes_and_the_cache_may_be_missing() -> None:
    watch([], []).judge("x.ckpt")
    watch(["model.layers.0.attention.kvcache_mgr.key_past"], []).judge("x.ckpt")


def test_nothing_loaded_at_all_is_an_error() -> None:
    with pytest.raises(WorkFailed, match=r"never loaded x\.ckpt: the network would start from random weights"):
        LoadWatch().judge("x.ckpt")


def test_random_parameters_are_named_and_counted() -> None:
    names = [f"model.layers.{layer}.ffn_norm.weight" for layer in range(6)]
    with pytest.raises(WorkFailed, match=r"6 network parameters are not in x\.ckpt .*layers\.3.* and 2 more"):
        watch(names, []).judge("x.ckpt")


def test_a_fresh_adapter_may_be_missing_only_where_one_is_trained() -> None:
    watch([ADAPTER], []).judge("x.ckpt", [ADAPTER_MARK])
    with pytest.raises(WorkFailed, match="would stay random"):
        watch([ADAPTER], []).judge("x.ckpt")
    with pytest.raises(WorkFailed, match=r"1 network parameters are not in x\.ckpt .*lm_head\.weight"):
        watch([ADAPTER, "lm_head.weight"], []).judge("x.ckpt", [ADAPTER_MARK])


def test_entries_without_a_place_are_an_error() -> None:
    with pytest.raises(WorkFailed, match=r"1 entries of x\.ckpt have no place in the network: .*a LoRA checkpoint"):
        watch([], [ADAPTER]).judge("x.ckpt")


def test_the_record_of_mindformers_is_understood_and_others_are_passed_over() -> None:
    found = LoadWatch()
    for message in (
        "Network parameters are not loaded: (['a.b', 'c'], ['d'])",
        "Load checkpoint: 100 %",
    ):
        found.emit(logging.LogRecord("mindformers", logging.INFO, "x.py", 1, message, (), None))
    assert found.outcome == (["a.b", "c"], ["d"])


def config(dataset: Path, batch_size: int = 4, data_parallel: int = 2, micro_batch_num: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        train_dataset=SimpleNamespace(data_loader=SimpleNamespace(dataset_dir=str(dataset)), batch_size=batch_size),
        parallel_config=SimpleNamespace(data_parallel=data_parallel, micro_batch_num=micro_batch_num),
    )


def test_a_data_set_must_fill_one_step(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    eight = mindrecord(tmp_path / "x.mindrecord", 8)
    assert check_dataset(config(eight)) == eight
    with pytest.raises(Refused, match="holds 8 rows, fewer than the 16 of one step"):
        check_dataset(config(eight, micro_batch_num=2))
    with pytest.raises(Refused, match="holds 0 rows, fewer than the 8 of one step"):
        check_dataset(config(mindrecord(tmp_path / "empty.mindrecord", 0)))


def test_a_data_set_that_mindformers_would_skip_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    with pytest.raises(Refused, match=r"only reads files whose name ends in \.mindrecord"):
        check_dataset(config(mindrecord(tmp_path / "x.mr", 8)))
    with pytest.raises(Refused, match=r"there is no training data .*none\.mindrecord"):
        check_dataset(config(tmp_path / "none.mindrecord"))
    first_part = mindrecord(tmp_path / "x.mindrecord0", 8)
    assert check_dataset(config(first_part)) == first_part


def test_the_loss_of_known_probabilities_is_theirs() -> None:
    numpy = pytest.importorskip("numpy")
    from qwenlib.engine.score import _nll

    shares = numpy.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.3, 0.5], [0.2, 0.6, 0.2]]])
    targets = numpy.array([[0, 1, -100, 1]])
    loss, tokens, right = _nll(numpy.log(shares) + 1000.0, targets)  # a shift of all logits changes nothing
    assert (tokens, right) == (3, 2)
    assert loss == pytest.approx(-numpy.log(0.5) - numpy.log(0.1) - numpy.log(0.6))
