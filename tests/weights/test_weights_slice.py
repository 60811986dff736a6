"""Slices: equal to MindSpore's own transform, right in meaning, and the way back."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy
import pytest
from qwen_forward import sliced, whole
from weights_kit import make_folder, read_all, tensors_of

from qwenlib.errors import Refused
from qwenlib.profile import Adapter, Model, Parallel
from qwenlib.profile import load as load_profile
from qwenlib.weights import convert, fit, merge, open_source, slice_checkpoint
from qwenlib.weights.checkpoint import CheckpointWriter
from qwenlib.weights.layout import Planned
from qwenlib.weights.names import entries, full_shapes
from qwenlib.weights.slice_plan import make_plan, stage_of, wanted_ranks

MODEL = Model(
    hidden_size=256,
    num_layers=4,
    num_heads=8,
    n_kv_heads=4,
    vocab_size=512,
    intermediate_size=512,
    max_position_embedding=64,
)
PLANS = {
    "lora": (Parallel(data_parallel=4, model_parallel=2), True),
    "finetune": (Parallel(data_parallel=2, model_parallel=4, pipeline_stage=2, micro_batch_num=2), True),
    "vocabulary cut": (Parallel(data_parallel=2, model_parallel=2, vocab_emb_dp=False), True),
    "no optimizer": (Parallel(data_parallel=2, model_parallel=2, pipeline_stage=2, micro_batch_num=2), False),
    "data only": (Parallel(data_parallel=4), True),
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("slice") / "hf", MODEL, values=tensors_of(MODEL))
    return Path(convert(folder, folder.parent / "model_dir", "float32")["checkpoint"])


def rank_weights(folder: Path, ranks: int) -> List[Dict[str, numpy.ndarray]]:
    return [read_all(folder / f"rank_{rank}" / f"checkpoint_{rank}.ckpt") for rank in range(ranks)]


@pytest.mark.parametrize("name", PLANS)
def test_a_forward_pass_over_the_slices_gives_the_whole_model(full: Path, tmp_path: Path, name: str) -> None:
    parallel, optimizer = PLANS[name]
    done = slice_checkpoint(full, tmp_path / "out", parallel, optimizer_parallel=optimizer)
    assert done["ranks"] == list(range(parallel.ranks))
    ids = numpy.random.default_rng(3).integers(0, MODEL.vocab_size, 12).tolist()
    wanted = whole(read_all(full), MODEL, ids)
    ranks = rank_weights(tmp_path / "out", parallel.ranks)
    for replica in range(parallel.data_parallel):
        assert numpy.abs(sliced(ranks, MODEL, parallel, ids, replica) - wanted).max() < 1e-9
    if optimizer:
        assert sum(value.size for rank in ranks for value in rank.values()) < parallel.ranks * 3_000_000


@pytest.mark.parametrize("name", PLANS)
def test_merging_the_slices_gives_the_file_back_byte_by_byte(full: Path, tmp_path: Path, name: str) -> None:
    parallel, optimizer = PLANS[name]
    slice_checkpoint(full, tmp_path / "out", parallel, optimizer_parallel=optimizer)
    done = merge(tmp_path / "out", tmp_path / "by_meta.ckpt")
    assert done["tensors"] == len(entries(MODEL))
    before, after = read_all(full), read_all(tmp_path / "by_meta.ckpt")
    assert set(before) == set(after) and all((before[key] == after[key]).all() for key in before)
    (tmp_path / "out" / "slice.json").unlink()
    merge(tmp_path / "out", tmp_path / "by_plan.ckpt", parallel=parallel, model=MODEL, optimizer_parallel=optimizer)
    assert (tmp_path / "by_plan.ckpt").read_bytes() == (tmp_path / "by_meta.ckpt").read_bytes()


def hand_layouts(
    model: Model, dp: int, mp: int, vocab_emb_dp: bool, optimizer: bool
) -> Dict[str, Tuple[List[int], List[int], int, int]]:
    """Layouts of one stage written out by hand as MindSpore's compiler writes them (sides of 1 are dropped)."""
    dev = [side for side in (dp, mp) if side > 1] or [1]
    axis_mp = 0 if mp > 1 else -1
    shard = (mp, dp) if optimizer and dp > 1 else (0, 0)
    everyone = (1, dp * mp) if optimizer else (0, 0)
    cut = -1 if vocab_emb_dp else axis_mp
    found: Dict[str, Any] = {
        "model.tok_embeddings.embedding_weight": (dev, [cut, -1], 0, 0),
        "model.norm_out.weight": (dev, [-1], 0, 0),
        "lm_head.weight": (dev, [cut, -1], *(everyone if vocab_emb_dp else shard)),
    }
    for layer in range(model.num_layers):
        at = f"model.layers.{layer}."
        for part in ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3"):
            found[f"{at}{part}.weight"] = (dev, [axis_mp, -1], *shard)
        for part in ("wq", "wk", "wv"):
            found[f"{at}attention.{part}.bias"] = (dev, [axis_mp], 0, 0)
        for part in ("attention.wo", "feed_forward.w2"):
            found[f"{at}{part}.weight"] = (dev, [-1, axis_mp], *shard)
        for part in ("attention_norm", "ffn_norm"):
            found[f"{at}{part}.weight"] = (dev, [-1], 0, 0)
    if optimizer:  # k and v of grouped-query heads are below 64 KiB when cut in four
        for name, (_, axes, _, _) in list(found.items()):
            if name.endswith(("wk.weight", "wv.weight")) and 128 * 256 * 4 // (mp if axes[0] == 0 else 1) < 65536:
                found[name] = (dev, axes, 0, 0)
    return found


def write_strategy(path: Path, parallel: Parallel, optimizer: bool) -> None:
    from mindspore.train import node_strategy_pb2

    layouts = hand_layouts(MODEL, parallel.data_parallel, parallel.model_parallel, parallel.vocab_emb_dp, optimizer)
    message = node_strategy_pb2.ParallelStrategyMap()
    message.current_stage = 1 if parallel.pipeline_stage > 1 else 0
    for name, (dev, axes, step, size) in layouts.items():
        item = message.parallel_layout_item.add()
        item.param_name = name
        if parallel.pipeline_stage > 1:  # layers 0-1 in the first stage, 2-3 in the second
            early = "tok_embeddings" in name or ".layers.0." in name or ".layers.1." in name
            item.param_name = f"{0 if early else 1}-{name}"
        layout = item.parallel_layouts
        layout.dev_matrix.add().dim.extend(dev)
        layout.tensor_map.add().dim.extend(axes)
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field = 0
        layout.opt_weight_shard_step, layout.opt_weight_shard_size = step, size
    path.write_bytes(message.SerializeToString())


@pytest.mark.stack
@pytest.mark.parametrize("name", PLANS)
def test_slices_equal_mindspores_own_transform(full: Path, tmp_path: Path, name: str) -> None:
    mindspore = pytest.importorskip("mindspore")
    parallel, optimizer = PLANS[name]
    strategy = tmp_path / "strategy.ckpt"
    write_strategy(strategy, parallel, optimizer)
    mindspore.transform_checkpoints(
        str(full.parent.parent), str(tmp_path / "theirs"), "checkpoint_", None, str(strategy)
    )
    slice_checkpoint(full, tmp_path / "ours", parallel, optimizer_parallel=optimizer)
    slice_checkpoint(full, tmp_path / "by_strategy", Parallel(), strategy=strategy)
    for rank in range(parallel.ranks):
        file = Path(f"rank_{rank}") / f"checkpoint_{rank}.ckpt"
        theirs = mindspore.load_checkpoint(str(tmp_path / "theirs" / file))
        for side in ("ours", "by_strategy"):
            ours = mindspore.load_checkpoint(str(tmp_path / side / file))
            assert set(ours) == set(theirs), (rank, side)
            for key, value in theirs.items():
                assert (ours[key].asnumpy() == value.asnumpy()).all() and ours[key].dtype == value.dtype, (rank, key)
    merge(tmp_path / "theirs", tmp_path / "back.ckpt", parallel=parallel, model=MODEL, optimizer_parallel=optimizer)
    before, after = read_all(full), read_all(tmp_path / "back.ckpt")
    assert set(before) == set(after) and all((before[key] == after[key]).all() for key in before)


def planned_7b(kind: str = "float16") -> List[Planned]:
    return [Planned(entry.ms, kind, entry.shape) for entry in entries(Model())]


@pytest.mark.parametrize(
    ("profile", "task", "expected"),
    [
        ("lora_7b_910a", "lora", {"wq": (512, 4096), "wo": (1024, 2048), "w1": (1376, 4096), "w2": (1024, 5504)}),
        (
            "finetune_7b_910a",
            "finetune",
            {"wq": (512, 4096), "wo": (2048, 1024), "w1": (1376, 4096), "w2": (2048, 2752)},
        ),
    ],
)
def test_the_7b_profiles_cut_as_upstream(profile: str, task: str, expected: Dict[str, Tuple[int, int]]) -> None:
    plan = make_plan(planned_7b(), load_profile(profile).task(task).parallel)
    shapes = {entry.ms: entry.shape for entry in entries(Model())}

    def size(name: str, rank: int) -> Optional[Tuple[int, int]]:
        window = plan.window(name, shapes[name], rank)
        return None if window is None else (window.rows, window.columns)

    for part, shape in expected.items():
        room = "attention" if part in ("wq", "wo") else "feed_forward"
        assert size(f"model.layers.3.{room}.{part}.weight", 5) == shape
    assert size("lm_head.weight", plan.ranks - 1) == (18992, 4096)
    assert size("model.tok_embeddings.embedding_weight", 0) == (151936, 4096)
    if plan.ranks == 16:
        assert size("lm_head.weight", 7) is None and size("model.layers.15.ffn_norm.weight", 8) is None
        assert size("model.layers.16.ffn_norm.weight", 8) == (4096, 1)


def test_lora_matrices_and_optimizer_states_follow_their_layer() -> None:
    layer = "model.layers.0.attention."
    tensors = [
        Planned(f"{layer}wq.mindpet_delta_lora_a", "float16", (64, 4096)),
        Planned(f"{layer}wq.mindpet_delta_lora_b", "float16", (4096, 64)),
        Planned(f"{layer}wo.mindpet_delta_lora_a", "float16", (64, 4096)),
        Planned(f"{layer}wo.mindpet_delta_lora_b", "float16", (4096, 64)),
        Planned(f"adam_m.{layer}wq.weight", "float32", (4096, 4096)),
        Planned("loss_scale", "float32", ()),
    ]
    plan = make_plan(tensors, Parallel(data_parallel=4, model_parallel=2))
    sizes = []
    for item in tensors:
        window = plan.window(item.name, item.shape, 3)
        assert window is not None
        sizes.append((window.rows, window.columns))
    assert sizes == [(8, 4096), (512, 64), (16, 2048), (512, 64), (512, 4096), (1, 1)]


def test_layers_go_to_stages_as_mindformers_deals_them() -> None:
    assert [stage_of(f"model.layers.{layer}.ffn_norm.weight", 32, 2) for layer in (0, 15, 16, 31)] == [0, 0, 1, 1]
    assert [stage_of(f"model.layers.{layer}.ffn_norm.weight", 4, 3) for layer in range(4)] == [0, 1, 2, 2]


def test_only_wanted_ranks_are_written(full: Path, tmp_path: Path) -> None:
    parallel = PLANS["finetune"][0]
    slice_checkpoint(full, tmp_path / "some", parallel, ranks="9,2-3")
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["rank_2", "rank_3", "rank_9", "slice.json"]
    slice_checkpoint(full, tmp_path / "all", parallel)
    for rank in (2, 3, 9):
        file = Path(f"rank_{rank}") / f"checkpoint_{rank}.ckpt"
        assert (tmp_path / "some" / file).read_bytes() == (tmp_path / "all" / file).read_bytes()
    with pytest.raises(Refused, match="missing: rank_0, rank_1, rank_4"):
        open_source(tmp_path / "some")
    slice_checkpoint(full, tmp_path / "some", parallel, ranks="0-1,4-8,10-15")  # the other servers' share
    assert [path.read_bytes() for path in sorted((tmp_path / "some").rglob("*.ckpt"))] == [
        path.read_bytes() for path in sorted((tmp_path / "all").rglob("*.ckpt"))
    ]
    merge(tmp_path / "some", tmp_path / "merged.ckpt")


def test_ranks_of_another_plan_or_checkpoint_are_not_mixed(full: Path, tmp_path: Path) -> None:
    parallel = PLANS["finetune"][0]
    slice_checkpoint(full, tmp_path / "out", parallel, ranks="0-7")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    other = make_folder(tmp_path / "hf", MODEL, values=tensors_of(MODEL, seed=1))
    for source, plan, options in (
        (full, PLANS["lora"][0], {"ranks": "0-3"}),
        (other, parallel, {"ranks": "8-15"}),
        (full, parallel, {"ranks": "8-15", "dtype": "float16"}),
        (full, parallel, {"ranks": "8-15", "optimizer_parallel": False}),
    ):
        with pytest.raises(Refused, match="which were not cut from the same checkpoint by the same plan"):
            slice_checkpoint(source, tmp_path / "out", plan, **options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    slice_checkpoint(other, tmp_path / "out", parallel)  # all ranks: nothing old is left
    merge(tmp_path / "out", tmp_path / "x.ckpt")
    (tmp_path / "out" / "slice.json").unlink()
    with pytest.raises(Refused, match="holds rank_8, rank_9"):
        slice_checkpoint(full, tmp_path / "out", PLANS["lora"][0])


def test_slices_are_compared_with_the_plan_of_a_training(full: Path, tmp_path: Path) -> None:
    network = dataclasses.replace(MODEL, param_init_type="float32")
    parallel, _ = PLANS["finetune"]
    slice_checkpoint(full, tmp_path / "out", parallel)
    assert fit.is_sliced(tmp_path / "out") and not fit.is_sliced(full.parent.parent)
    assert fit.misfits(tmp_path / "out", network, parallel) == []
    assert fit.misfits(tmp_path / "out", network, dataclasses.replace(parallel, micro_batch_num=4)) == []
    said = fit.misfits(tmp_path / "out", network, PLANS["lora"][0])
    assert said == ["it was cut for 16 ranks, the plan has 8"]
    other = dataclasses.replace(parallel, data_parallel=4, model_parallel=2)
    assert "it was cut by another plan (model.layers.0.attention.wq.weight" in fit.misfits(
        tmp_path / "out", network, other
    )[0].replace("model.tok_embeddings.embedding_weight, ", "")
    assert "another plan" in fit.misfits(tmp_path / "out", network, parallel, optimizer_parallel=False)[0]
    assert "from another model (model.tok" in fit.misfits(tmp_path / "out", Model(), parallel)[0]
    (tmp_path / "out" / "rank_3" / "checkpoint_3.ckpt").unlink()
    (tmp_path / "out" / "rank_4" / "more.ckpt").touch()
    assert fit.misfits(tmp_path / "out", network, parallel, ranks=range(3, 6)) == [
        "rank_3 holds 0 .ckpt files where one is needed",
        "rank_4 holds 2 .ckpt files where one is needed",
    ]


@pytest.mark.parametrize("modules", [Adapter().target_modules, ".*wq|.*wv"])
def test_slices_may_hold_an_adapter_when_one_is_trained(full: Path, tmp_path: Path, modules: str) -> None:
    network, parallel = dataclasses.replace(MODEL, param_init_type="float32"), PLANS["lora"][0]
    with CheckpointWriter(tmp_path / "x.ckpt") as out:
        for name, shape in full_shapes(MODEL, Adapter(lora_rank=16, target_modules=modules)).items():
            out.add(name, numpy.zeros(shape, numpy.float32))
    slice_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", parallel)
    trained = Adapter(lora_rank=16, target_modules=modules)
    assert fit.misfits(tmp_path / "out", network, parallel, adapter=trained) == []
    for other in (None, Adapter(lora_rank=8, target_modules=modules), Adapter(lora_rank=16, target_modules=".*w1")):
        assert "from another model (" in fit.misfits(tmp_path / "out", network, parallel, adapter=other)[0]


def test_where_a_whole_checkpoint_is_needed_slices_are_refused_and_replicas_are_not(full: Path, tmp_path: Path) -> None:
    slice_checkpoint(full, tmp_path / "copies", Parallel(data_parallel=2), optimizer_parallel=False)
    fit.refuse_cut(tmp_path / "copies")
    fit.refuse_cut(full)
    for number, (parallel, optimizer) in enumerate(PLANS.values()):
        slice_checkpoint(full, tmp_path / str(number), parallel, optimizer_parallel=optimizer)
        with pytest.raises(Refused, match=r"holds the slices of \d+ ranks, and a whole checkpoint .* weights merge"):
            fit.refuse_cut(tmp_path / str(number))


def test_a_killed_trainings_ranks_are_merged_from_the_step_that_all_have(full: Path, tmp_path: Path) -> None:
    parallel, whole_model = Parallel(data_parallel=2, model_parallel=2), read_all(full)
    for step in (10, 20):
        with CheckpointWriter(tmp_path / "step.ckpt") as out:
            for name, value in whole_model.items():
                out.add(name, value + step)
            out.add("step_num", numpy.array(step, numpy.int32))
        slice_checkpoint(tmp_path / "step.ckpt", tmp_path / str(step), parallel)
        for rank in range(4):
            if (step, rank) != (20, 3):  # it was killed while it saved
                goal = tmp_path / "run" / f"rank_{rank}" / f"qwen2_rank_{rank}-1_{step}.ckpt"
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tmp_path / str(step) / f"rank_{rank}" / f"checkpoint_{rank}.ckpt", goal)
    how = {"parallel": parallel, "model": MODEL}
    merge(tmp_path / "run", tmp_path / "latest.ckpt", **how)
    merge(tmp_path / "run", tmp_path / "ten.ckpt", step=10, **how)
    for path in ("latest.ckpt", "ten.ckpt"):
        found = read_all(tmp_path / path)
        assert set(found) == set(whole_model)
        assert all((found[name] == value + 10).all() for name, value in whole_model.items())
    with pytest.raises(Refused, match=r"rank_3 holds no checkpoint of step 20; its files are of step 10"):
        merge(tmp_path / "run", tmp_path / "x.ckpt", step=20, **how)
    (tmp_path / "run" / "rank_3" / "qwen2_rank_3-1_10.ckpt").rename(tmp_path / "run" / "rank_3" / "q-1_30.ckpt")
    with pytest.raises(Refused, match=r"no step in common .*rank_3: q-1_30\.ckpt"):
        merge(tmp_path / "run", tmp_path / "x.ckpt", **how)
    assert not (tmp_path / "x.ckpt").exists()
    shutil.copytree(tmp_path / "run" / "rank_0", tmp_path / "alone" / "rank_0")
    with pytest.raises(Refused, match="holds 2 checkpoints"):
        open_source(tmp_path / "alone")
    assert open_source(tmp_path / "alone", step=20).path.name == "qwen2_rank_0-1_20.ckpt"


def test_a_slice_is_not_replaced_by_the_whole_that_is_merged_of_it(full: Path, tmp_path: Path) -> None:
    slice_checkpoint(full, tmp_path / "out", Parallel(model_parallel=2))
    with pytest.raises(Refused, match=r"checkpoint_0\.ckpt is what is read; it would be replaced"):
        merge(tmp_path / "out", tmp_path / "out" / "rank_0" / "checkpoint_0.ckpt")
    merge(tmp_path / "out", tmp_path / "x.ckpt")


@pytest.mark.parametrize("text", ["a", "3-1", "16", "-1", "1,,2", "0-99"])
def test_wrong_ranks_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="--ranks"):
        wanted_ranks(text, 16)


def test_sizes_that_cannot_be_cut_are_all_named(full: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"model_parallel 3 does not divide: .*wq.weight.*and \d+ more"):
        slice_checkpoint(full, tmp_path / "out", Parallel(model_parallel=3))
    assert not (tmp_path / "out").exists()


def test_an_older_checkpoint_in_a_rank_folder_is_refused(full: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "rank_1").mkdir(parents=True)
    (tmp_path / "out" / "rank_1" / "old.ckpt").write_bytes(b"x")
    with pytest.raises(Refused, match=r"already holds old\.ckpt"):
        slice_checkpoint(full, tmp_path / "out", Parallel(data_parallel=2))
    assert not (tmp_path / "out" / "rank_0").exists()


def test_slicing_onto_its_own_source_is_refused(full: Path) -> None:
    with pytest.raises(Refused, match="Choose another folder"):
        slice_checkpoint(full, full.parent.parent, Parallel(data_parallel=2))


def test_a_file_in_the_place_of_the_folder_is_refused(full: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"file is a file; give the name of a folder"):
        slice_checkpoint(full, tmp_path / "file", Parallel(data_parallel=2))


def test_a_model_of_other_sizes_is_told_in_few_words(full: Path, tmp_path: Path) -> None:
    slice_checkpoint(full, tmp_path / "out", Parallel(data_parallel=2, model_parallel=2))
    (tmp_path / "out" / "slice.json").unlink()
    other = dataclasses.replace(MODEL, hidden_size=2 * MODEL.hidden_size)
    with pytest.raises(Refused, match=r"and \d+ more\. .*give its folder: --torch_ckpt_dir") as told:
        merge(tmp_path / "out", tmp_path / "x.ckpt", parallel=Parallel(2, 2), model=other)
    assert len(str(told.value)) < 700


def test_slices_of_another_plan_are_told(full: Path, tmp_path: Path) -> None:
    slice_checkpoint(full, tmp_path / "out", Parallel(data_parallel=2, model_parallel=2))
    with pytest.raises(Refused, match=r"rank_0: .* the plan says .*Were they cut by another plan"):
        merge(tmp_path / "out", tmp_path / "x.ckpt", parallel=Parallel(data_parallel=4), model=MODEL)
    assert not (tmp_path / "x.ckpt").exists()


def test_a_file_that_is_no_strategy_is_refused(full: Path, tmp_path: Path) -> None:
    for raw in (b"", b"\x00\x01\x02", b"hello world", full.read_bytes()[:300]):
        (tmp_path / "s.ckpt").write_bytes(raw)
        with pytest.raises(Refused, match="strategy file"):
            slice_checkpoint(full, tmp_path / "out", Parallel(), strategy=tmp_path / "s.ckpt")
