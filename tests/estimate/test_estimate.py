"""Memory, time and plans, against what is known: the guide's two rows, published formulas, upstream's counts."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from pathlib import Path
from typing import List

import pytest
from typer.testing import CliRunner

from qwenlib import estimate as rooms
from qwenlib import profile as profiles
from qwenlib.cli.main import app
from qwenlib.data.meta import meta_path
from qwenlib.errors import Refused
from qwenlib.estimate.memory import GIB, layer_bytes, logits_bytes
from qwenlib.estimate.report import text
from qwenlib.estimate.slices import layers_of_stages
from qwenlib.estimate.speed import balance, default_mfu, rows_per_step
from qwenlib.files import write_json

LORA, FULL = profiles.load("lora_7b_910a"), profiles.load("finetune_7b_910a")
TASKS = [(LORA, "lora"), (FULL, "finetune")]
LORA_MFU = default_mfu(LORA.task("lora"), LORA.model, 2048)


@pytest.mark.parametrize(("profile", "task"), [(LORA, "lora"), (FULL, "finetune")])
def test_guides_layouts_fit_into_31_gb(profile: profiles.Profile, task: str) -> None:
    found = rooms.estimate(profile, task)
    assert found["fits"]
    assert 0.5 * found["limit"] < found["peak"] <= found["limit"] == 31 * GIB


def test_seven_b_on_one_card_cannot_be_trained_whole() -> None:
    profile = profiles.load(
        "finetune_7b_910a",
        [f"finetune.parallel.{key}=1" for key in ("data_parallel", "model_parallel", "pipeline_stage")],
    )
    found = rooms.estimate(profile, "finetune", rows=1000)
    assert not found["fits"]
    assert found["plans"] == []
    assert found["stages"][0]["optimizer state"] == 8 * 7_721_324_544


def test_counts_are_upstreams() -> None:
    assert rooms.estimate(LORA, "lora")["trainable_parameters"] == 159_907_840
    with_head = profiles.load("lora_7b_910a", ["lora.adapter.train_lm_head=true"])
    assert rooms.estimate(with_head, "lora")["trainable_parameters"] == 782_237_696


def test_what_training_lm_head_costs_is_told_rightly_in_the_reasons() -> None:
    from qwenlib.engine import upstream

    states = [
        rooms.estimate(profiles.load("lora_7b_910a", [f"lora.adapter.train_lm_head={on}"]), "lora")["stages"][0][
            "optimizer state"
        ]
        for on in ("false", "true")
    ]
    assert round((states[1] - states[0]) / 1e9, 1) == 0.6
    assert "0.6 GB" in upstream.reason("lora", "model.model_config.pet_config.freeze_exclude")


def test_memory_follows_the_terms_of_the_formulas() -> None:
    task = FULL.task("finetune")
    model = FULL.model
    plain = dataclasses.replace(model, use_flash_attention=False)
    # Without FlashAttention the scores are there: 2·a·s²·b/t bytes more, less FlashAttention's own 8·a·s·b/t.
    more = layer_bytes(plain, task, 4096) - layer_bytes(model, task, 4096)
    assert more == (2 * 32 * 4096 - 8 * 32) * 4096 * 2 // 4
    assert logits_bytes(model, task, 4096) == 4096 * 2 * 151936 * (8 + 2)
    stages = rooms.per_card(FULL, "finetune")
    assert stages[0].parts["activations"] == 2 * stages[1].parts["activations"] * 16 // 16
    again = profiles.load("finetune_7b_910a", ["finetune.recompute=true"])
    assert rooms.per_card(again, "finetune")[0].parts["activations"] < stages[0].parts["activations"] / 4


def test_guide_rows_state_their_mfu_and_come_back() -> None:
    rows = rooms.guide_rows()
    assert [row["tokens_per_second_per_card"] for row in rows] == [1020.0, 1060.0]
    # By hand, full: 6 for each number of lm_head and of the seven matrices of 32 layers, and 12 x 32 x 4096 x 4096.
    matrices = 151936 * 4096 + 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    by_hand = 1060 * (6 * matrices + 12 * 32 * 4096 * 4096) / 256e12
    assert rows[1]["mfu"] == pytest.approx(by_hand)
    assert default_mfu(FULL.task("finetune")) == pytest.approx(by_hand)
    assert rooms.estimate(FULL, "finetune")["length"]["tokens_per_second_per_card"] == pytest.approx(1060)


def test_steps_tokens_hours_and_disk() -> None:
    assert rows_per_step(FULL.task("finetune")) == 2 * 2 * 16
    assert rows_per_step(LORA.task("lora")) == 4
    found = rooms.estimate(FULL, "finetune", rows=52002, real_share=0.05, mfu=0.2)
    told = found["length"]
    assert told["steps"] == 52002 // 64 * 3
    assert told["tokens"] == told["steps"] * 64 * 4096
    assert told["real_tokens"] == round(told["tokens"] * 0.05)
    assert told["hours"] * 3600 == pytest.approx(told["seconds_per_step"] * told["steps"])
    assert found["disk"]["weights"] == 15_442_649_088
    assert found["disk"]["with_optimizer"] == 3 * 5 * 15_442_649_088


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize("flash", [True, False])
def test_a_layer_is_the_published_formula_but_for_what_llama_has_of_its_own(t: int, flash: bool) -> None:
    # Korthikanti et al. 2022, equation 2: s·b·h·(10 + 24/t + 5·a·s/(h·t)) bytes, for a GPT layer with f = 4·h.
    h, a, s, b = 1024, 16, 512, 3
    model = profiles.Model(hidden_size=h, num_heads=a, intermediate_size=4 * h, use_flash_attention=flash)
    task = dataclasses.replace(FULL.task("finetune"), batch_size=b, parallel=profiles.Parallel(1, t))
    published = s * b * h * (10 + 24 / t + 5 * a * s / (h * t))
    rotated = 4 * s * b * h / t  # q and k once more
    gate = 2 * 2 * s * b * 4 * h / t  # w1's and w3's outputs and their product, where GPT has one matrix
    dropped = s * b * h * 2 + 3 * a * s * s * b / t  # Llama has no dropout: two masks, and the scores' mask and output
    expected = published + rotated + gate - dropped
    if flash:  # no scores, two float32 statistics a row and head
        expected += 8 * a * s * b / t - 2 * a * s * s * b / t
    assert layer_bytes(model, task, s) == expected


def test_float32_takes_twice_as_much() -> None:
    sizes = {"hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "use_flash_attention": False}
    half = profiles.Model(**sizes)
    whole = profiles.Model(**sizes, compute_dtype="float32", softmax_compute_type="float32")
    task = FULL.task("finetune")
    assert layer_bytes(whole, task, 32) == 2 * layer_bytes(half, task, 32)


@pytest.mark.parametrize("name", ["lora", "finetune"])
@pytest.mark.parametrize("cards", [1, 2, 3, 6, 8, 12, 16, 40, 64])
def test_suggested_plans_use_all_cards_and_fit(cards: int, name: str) -> None:
    shipped = {"lora": "lora_7b_910a", "finetune": "finetune_7b_910a"}[name]
    found = rooms.suggest(profiles.load(shipped), name, cards, real_share=0.1)
    assert bool(found) or (name, cards) in [("finetune", number) for number in (1, 2, 3, 6)]
    for row in found:
        assert row["data_parallel"] * row["model_parallel"] * row["pipeline_stage"] == cards
        assert rooms.servers(cards)[1] % row["model_parallel"] == 0
        again = profiles.load(shipped, rooms.settings(name, row))  # a plan that the profile would refuse fails here
        peak = max(stage.total for stage in rooms.per_card(again, name))
        assert round(peak / GIB, 1) == row["peak_gib"] <= 31
        told = rooms.estimate(again, name, real_share=0.1)["length"]
        assert round(told["hours"], 2) == row["hours"]
        assert row["hours_packed"] == pytest.approx(row["hours"] / 10, abs=0.01)
    speeds = [row["tokens_per_second"] for row in found]
    assert speeds == sorted(speeds, reverse=True)
    layouts = [(row["data_parallel"], row["model_parallel"], row["pipeline_stage"]) for row in found]
    assert len(set(layouts)) == len(layouts)


def test_every_size_fits_on_some_number_of_cards() -> None:
    least = {
        size: [rooms.fewest_cards(rooms.with_size(profile, size), task) for profile, task in TASKS]
        for size in rooms.SIZES
    }
    lora, full = zip(*least.values())
    assert None not in lora[:-1] and lora[0] == 1
    assert list(lora) == sorted(lora)
    assert list(full[:-1]) == sorted(full[:-1])  # 110B: not on 64
    assert all(one <= every for one, every in zip(lora, full) if every)


def test_a_plan_that_fits_nowhere_says_on_how_many_cards_one_would() -> None:
    big = rooms.with_size(FULL, "72B")
    found = rooms.estimate(big, "finetune", cards=24)
    assert found["plans"] == []
    least = found["fewest_cards"]
    told = f"no plan fits on 24 card(s) (3 server(s) with 8) and fills its steps with 52,002 rows; --cards {least} is"
    assert told in text(found)
    assert rooms.suggest(big, "finetune", least)
    # Only with the embedding and lm_head split: whole, they and their Adam states fill half a card.
    assert {row["vocab_emb_dp"] for row in rooms.suggest(big, "finetune", 64)} == {False}


def test_no_plan_wants_more_rows_than_there_are() -> None:
    assert {row["rows_per_step"] for row in rooms.suggest(LORA, "lora", 8, rows=3)} <= {1, 2, 3}
    assert "with 1 rows" in text(rooms.estimate(FULL, "finetune", rows=1))


def test_uneven_stages_are_slower() -> None:
    # 40 layers on 16 stages: MindFormers gives 2 to each and 10 to the last, which the others wait for.
    model = profiles.Model(**{**rooms.SIZES["14B"], "hidden_size": 5120})
    task = dataclasses.replace(FULL.task("finetune"), parallel=profiles.Parallel(1, 1, 16, 128))
    assert layers_of_stages(model, task.parallel) == [2] * 15 + [10]
    assert balance(model, task, 4096) < 40 / 16 / 10
    even = dataclasses.replace(task, parallel=profiles.Parallel(1, 1, 8, 64))
    assert balance(model, even, 4096) > 0.6
    # lm_head whole on every card of a model_parallel group, or split: the last stage is busier or not.
    four = dataclasses.replace(task, parallel=profiles.Parallel(4, 4))
    split = dataclasses.replace(task, parallel=profiles.Parallel(4, 4, vocab_emb_dp=False))
    assert balance(model, four, 4096) < balance(model, split, 4096) == pytest.approx(1)


def test_a_stated_mfu_moves_the_plans_too() -> None:
    plain, twice = (rooms.suggest(LORA, "lora", 8, mfu=mfu) for mfu in (0.0, 2 * LORA_MFU))
    assert [row["tokens_per_second"] for row in twice] == pytest.approx(
        [2 * row["tokens_per_second"] for row in plain], rel=1e-3
    )


@pytest.mark.parametrize("size", sorted(rooms.SIZES))
def test_every_size_has_its_published_number_of_parameters(size: str) -> None:
    published = {  # Totals as remembered, not looked up; 0.5B with its tied lm_head counted again
        "0.5B": 463_987_712 + 151936 * 1024,
        "1.8B": 1_836_828_672,
        "4B": 3_950_369_280,
        "7B": 7_721_324_544,
        "14B": 14_167_290_880,
        "32B": 32_512_218_112,
        "72B": 72_287_920_128,
        "110B": 111_209_914_368,
    }
    assert rooms.estimate(rooms.with_size(FULL, size), "finetune")["parameters"] == published[size]


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"real_share": 0.0}, {"mfu": 1.5}, {"cards": 65}])
def test_numbers_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(Refused):
        rooms.estimate(LORA, "lora", **wrong)


def test_unknown_size_and_limit_are_refused() -> None:
    with pytest.raises(Refused, match="14B"):
        rooms.with_size(LORA, "13B")
    with pytest.raises(Refused, match="31GB"):
        rooms.limit_bytes(dataclasses.replace(LORA, max_device_memory="lots"))


def test_text_and_figure_tell_the_parts() -> None:
    found = rooms.estimate(FULL, "finetune")
    told = text(found)
    assert "stage 1" in told
    assert "1060 tokens/s a card, MFU 20" in told
    figure = rooms.figure(found)
    bars = figure.axes[0].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(sum(stage["total"] for stage in found["stages"]) / GIB)
    assert len(rooms.frame(found)) == len(found["plans"])
    assert {"arXiv:2205.05198", "arXiv:2204.02311"} <= set(re.findall(r"arXiv:[\d.]+\d", told))


def test_on_the_cpu_nothing_is_said_of_cards() -> None:
    found = rooms.estimate(profiles.load("smoke"), "finetune", rows=240)
    told = text(found)
    assert found["fits"] is None and found["plans"] == []
    assert "MiB a rank" in told and "DOES NOT" not in told and "guide" not in told
    figure = rooms.figure(found)
    assert "MiB a rank" in figure.axes[0].get_xlabel() and not figure.axes[0].lines
    pytest.importorskip("IPython")
    assert rooms.picture(found)._repr_mimebundle_()[0]["image/png"].startswith("iVBOR")


def test_command_prints_one_json_document() -> None:
    arguments = ["config", "estimate", "--profile", "finetune_7b_910a", "--json", "--size", "14B", "--cards", "64"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parameters"] == 14_167_290_880


def test_command_reads_rows_and_padding_from_the_data_at_hand(tmp_path: Path) -> None:
    path = tmp_path / "t.mindrecord"
    path.write_bytes(b"\0" * 64)
    database = sqlite3.connect(f"{path}.db")
    database.execute("create table INDEXES (ROW_ID INT)")
    database.executemany("insert into INDEXES values (?)", [(row,) for row in range(400)])
    database.commit()
    database.close()
    arguments = ["config", "estimate", "--train_dataset", str(path), "--json"]
    without = json.loads(CliRunner().invoke(app, arguments).stdout)["length"]
    assert (without["rows"], without["real_tokens"]) == (400, without["tokens"])
    write_json(meta_path(path), {"rows": 400, "real_share": 0.25})
    told = json.loads(CliRunner().invoke(app, arguments).stdout)["length"]
    assert (told["rows"], told["real_tokens"]) == (400, told["tokens"] // 4)
    given = json.loads(CliRunner().invoke(app, [*arguments, "--rows", "40", "--real_share", "0.5"]).stdout)["length"]
    assert (given["rows"], given["real_tokens"]) == (40, given["tokens"] // 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "infer_7b_910a"], "trains nothing; give --profile lora_7b_910a"),
        (["--task", "finetune"], "has no training task 'finetune'; it has: lora"),
        (["--size", "13B"], "0.5B, 1.8B"),
        (["--cards", "65"], "1 to 64"),
        (["--cards", "-1"], "1 to 64"),
        (["--mfu", "nan"], "mfu in"),
        (["--rows", "-5"], "rows must be 1 or more"),
        (["--real_share", "-1"], "real_share in"),
        (["--train_dataset", "/none.mindrecord"], "there is no /none.mindrecord"),
    ],
)
def test_command_refuses_in_a_sentence(arguments: List[str], words: str) -> None:
    done = CliRunner().invoke(app, ["config", "estimate", *arguments])
    assert isinstance(done.exception, Refused)
    assert words in str(done.exception)
    assert done.stdout == ""
