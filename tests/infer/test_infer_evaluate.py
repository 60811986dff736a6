"""Measuring a run's models: real scores of the real engine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from micro import Micro
from typer.testing import CliRunner

from qwenlib import infer
from qwenlib.cli.main import app
from qwenlib.errors import Refused
from qwenlib.infer import choose
from qwenlib.infer.evaluate import perplexity


@pytest.mark.stack
def test_a_run_is_measured_and_what_was_trained_is_better(micro: Micro, tmp_path: Path) -> None:
    from qwenlib.engine import single

    trained = micro.trained()
    run_dir = micro.run(
        tmp_path / "run",
        base=micro.model_dir,
        lora=trained["lora"]["checkpoint"],
        finetune=trained["finetune"]["checkpoint"],
    )
    seen = micro.messages
    told = CliRunner().invoke(app, ["eval", "--run_dir", str(run_dir), "--held_out", str(seen), "--prompts", "3"])
    assert told.exit_code == 0, told.output + str(told.exception)
    found = json.loads((run_dir / "eval.json").read_text(encoding="utf-8"))
    assert list(found["models"]) == ["base", "lora", "finetune"] and len(found["answers"]) == 3
    for name, figures in found["models"].items():
        held = figures["held_out"]
        assert held["perplexity"] == pytest.approx(math.exp(held["loss"])) and 0 <= held["token_accuracy"] <= 1
        assert figures["exact"]["of"] == 3 and name in told.output
    losses = {name: figures["held_out"]["loss"] for name, figures in found["models"].items()}
    assert losses["lora"] < losses["base"] and losses["finetune"] < losses["base"]
    assert (
        found["held_out"]["conversations"] == 40
        and len({f["held_out"]["tokens"] for f in found["models"].values()}) == 1
    )

    # Each in a process of its own, without an adapter in the network, gives the same.
    base = choose.of_run(run_dir)["base"]
    alone = single.score(
        base.profile,
        load_checkpoint=base.checkpoint,
        checkpoints={"finetune": trained["finetune"]["checkpoint"]},
        mindrecord=built(micro, tmp_path),
        run_dir=tmp_path / "alone",
        **micro.files,
    )
    assert alone["base"]["loss"] == pytest.approx(losses["base"], rel=1e-6)
    assert alone["finetune"]["loss"] == pytest.approx(losses["finetune"], rel=1e-6)


def built(micro: Micro, folder: Path) -> Path:
    """The same conversations, learned where the assistant speaks."""
    from qwenlib import data

    path = folder / "answers.mindrecord"
    data.build(
        micro.messages,
        path,
        seq_length=micro.profile.data.seq_length,
        labels="assistant",
        **micro.files,
    )
    return path


def test_there_must_be_something_to_measure_with(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nothing to measure with"):
        infer.evaluate({}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_answers_alone_are_counted_and_written(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"prompt": ["1", "2"], "expected": ["a", "b"], "base": ["a", "c"]})
    found = infer.evaluate({}, folder=tmp_path, table=table)
    assert found == json.loads((tmp_path / "eval.json").read_text())
    assert found["models"] == {"base": {"exact": {"right": 1, "of": 2, "share": 0.5}}}
    assert infer.evaluation_table(found).loc["base", "exact answers"] == "1 of 2"
    assert infer.held_out_figures(found) == {}


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(0.0) == 1.0 and perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e6) == math.inf
