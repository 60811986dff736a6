"""FLOPs of a token, and event files for TensorBoard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwenlib import profile as profiles
from qwenlib.errors import Refused
from qwenlib.monitor import export, flops_per_token, peak_flops
from qwenlib.monitor.flops import matmul_parameters
from qwenlib.monitor.tensorboard import SCALARS


def test_the_weights_of_the_7b():
    model = profiles.load("finetune_7b_910a").model
    trained, frozen = matmul_parameters(model)
    # Qwen1.5-7B has 7,721,324,544 parameters; less the embedding table, three biases and two norms a layer, one norm.
    assert trained == 7_721_324_544 - 151936 * 4096 - 32 * 5 * 4096 - 4096 and frozen == 0
    attention = 12 * 32 * 4096 * 2048
    assert flops_per_token(model, 2048) == 6 * trained + attention


@pytest.mark.parametrize("head", [False, True])
def test_lora_trains_the_adapter_and_the_head_when_told_to(head):
    profile = profiles.load("lora_7b_910a", [f"lora.adapter.train_lm_head={head}"])
    trained, _ = matmul_parameters(profile.model, profile.lora.adapter)
    rank, hidden, wide = profile.lora.adapter.lora_rank, 4096, 11008
    assert trained == 32 * rank * (4 * 2 * hidden + 3 * (hidden + wide)) + head * 151936 * hidden
    full = flops_per_token(profile.model, 2048)
    assert 0.6 < flops_per_token(profile.model, 2048, profile.lora.adapter) / full < 0.75


def test_the_smoke_model_is_as_large_as_mindformers_says():
    """MindFormers reports 78080 trainable parameters for 04_lora and 658816 for 05_finetune."""
    profile = profiles.load("smoke")
    assert matmul_parameters(profile.model, profile.lora.adapter) == (78080, 526336)
    lookup, biases, norms = 1024 * 128, 2 * 3 * 128, (2 * 2 + 1) * 128
    assert matmul_parameters(profile.model) == (658816 - lookup - biases - norms, 0)


@pytest.mark.parametrize(
    ("chip", "peak"),
    [("910A", 256e12), ("Ascend910A", 256e12), ("910B", None), ("910PremiumA", None), ("910B3", None), ("", None)],
)
def test_a_chip_without_a_known_peak_has_none(chip, peak):
    assert peak_flops(chip) == peak


def test_tokens_per_second_of_the_guide_are_a_plausible_share():
    """1020 tokens/s and card with LoRA, the guide's figure, is about an eighth of the peak."""
    profile = profiles.load("lora_7b_910a")
    assert 0.1 < 1020 * flops_per_token(profile.model, 2048, profile.lora.adapter) / peak_flops("910A") < 0.2


RECORD = {"step": 1, "loss": 2.5, "lr": None, "tokens_per_second": 100.0, "overflow": True}


needs_tensorboardx = pytest.mark.skipif(not find_spec("tensorboardX"), reason="tensorboardX is not installed")


@needs_tensorboardx
@pytest.mark.stack
def test_mindspore_can_still_be_imported_after_event_files_were_written():
    code = "from qwenlib.monitor.tensorboard import writer_class; writer_class(); import mindspore; print('both')"
    environ = {name: text for name, text in os.environ.items() if name != "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr[-2000:]


@needs_tensorboardx
def test_event_files_hold_the_metrics(tmp_path):
    records = [{**RECORD, "step": step, "loss": 1.0 / step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (file,) = export(tmp_path).glob("events.out.tfevents.*")
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), []
    while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    assert ("train/loss", 2, 0.5) in found and ("train/overflow", 1, 1.0) in found
    assert {tag for tag, _, _ in found} == {SCALARS[name] for name in ("loss", "tokens_per_second", "overflow")}


def test_without_the_package_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(Refused, match="pip install tensorboardX"):
        export(tmp_path)


def test_nothing_to_export_is_refused(tmp_path):
    with pytest.raises(Refused, match="has no metrics"):
        export(tmp_path)
