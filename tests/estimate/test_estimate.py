"""Memory, time and plans, against what is known: the guide's two rows, published formulas, upstream's counts."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from qwenlib import estimate as rooms
from qwenlib import profile as profiles
from qwenlib.cli.main import app
from qwenlib.errors import Refused
from qwenlib.estimate.memory import GIB, layer_bytes, logits_bytes
from qwenlib.estimate.report import text
from qwenlib.estimate.speed import rows_per_step

LORA, FULL = profiles.load("lora_7b_910a"), profiles.load("finetune_7b_910a")


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
    # By hand, full: 6 x (7,721,324,544 - 151,936 x 4096) + 12 x 32 x 4096 x 4096 operations a token.
    by_hand = 1060 * (6 * (7_721_324_544 - 151936 * 4096) + 12 * 32 * 4096 * 4096) / 256e12
    assert rows[1]["mfu"] == pytest.approx(by_hand)
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


@pytest.mark.parametrize("cards", [1, 2, 3, 8, 16, 64])
def test_suggested_plans_use_all_cards_and_fit(cards: int) -> None:
    for row in rooms.suggest(LORA, "lora", cards, real_share=0.1):
        assert row["data_parallel"] * row["model_parallel"] * row["pipeline_stage"] == cards
        settings = [f"lora.parallel.{key}={row[key]}" for key in ("data_parallel", "model_parallel", "pipeline_stage")]
        settings += [f"lora.parallel.micro_batch_num={row['micro_batch_num']}", f"lora.batch_size={row['batch_size']}"]
        settings += [f"lora.recompute={str(row['recompute']).lower()}"]
        again = profiles.load("lora_7b_910a", settings)  # a plan that the profile itself would refuse fails here
        peak = max(stage.total for stage in rooms.per_card(again, "lora"))
        assert round(peak / GIB, 1) == row["peak_gib"] <= 31
        assert row["packing_gain"] == 10
    speeds = [row["tokens_per_second"] for row in rooms.suggest(LORA, "lora", cards)]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds


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


def test_command_prints_one_json_document() -> None:
    arguments = ["config", "estimate", "--profile", "finetune_7b_910a", "--json", "--size", "14B", "--cards", "64"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parameters"] == 14_167_290_880
