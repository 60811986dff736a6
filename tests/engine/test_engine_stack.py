"""The engine on the real MindSpore and MindFormers, with a network of 28,576 parameters."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import psutil
import pytest
from micro import SETTINGS, Micro
from stack_probe import MISSPELT, TEXTS

from qwenlib.errors import WorkFailed

pytestmark = pytest.mark.stack


def test_each_patch_says_so_when_its_target_is_gone(probed: Dict[str, Any]) -> None:
    gone = probed["patches"]["gone"]
    assert {case["patch"] for case in gone} == set(probed["patches"]["names"]), "every patch was tried"
    for case in gone:
        assert case["error"] == "WorkFailed", case
        for part in (f"CPU patch {case['patch']}: ", case["target"], "is gone in MindSpore 2.", "compat.py"):
            assert part in case["message"]


def test_patches_are_applied_once_before_mindformers_and_never_after_it(probed: Dict[str, Any]) -> None:
    found = probed["patches"]
    assert (found["late"]["error"], "before `import mindformers`" in found["late"]["message"]) == ("WorkFailed", True)
    assert list(found["first"]) == found["names"] and all(len(reason) > 30 for reason in found["first"].values())
    assert found["again"] == found["first"]


def test_our_tokenizer_class_gives_the_ids_that_the_data_has(probed: Dict[str, Any], micro: Micro) -> None:
    from qwenlib.data.tokenizer import load_tokenizer

    found, fast = probed["tokenizer"], load_tokenizer(**micro.files)
    assert found["ids"] == [fast.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert found["same_class"] and (found["vocab_size"], found["length"]) == (297, 300)
    assert found["special"] == {"unk": 297, "eos": 297, "pad": 297}
    assert found["saved"] == ["vocab.json", "merges.txt"]


def test_texts_survive_our_tokenizer_class(probed: Dict[str, Any]) -> None:
    import unicodedata

    wanted = [unicodedata.normalize("NFC", text) for text in TEXTS]
    found = probed["tokenizer"]
    assert found["decoded"] == wanted and found["tokens_there_and_back"] == wanted
    for control in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        wanted = [text.replace(control, "") for text in wanted]
    assert found["without_controls"] == wanted


def test_no_key_that_we_render_would_be_ignored(probed: Dict[str, Any]) -> None:
    found = probed["keys"]["rendered"]
    assert {name: case["message"] for name, case in found.items() if case["error"]} == {}
    assert {"lora_7b_910a lora", "finetune_7b_910a finetune", "infer_7b_910a answer", "smoke lora"} <= set(found)


@pytest.mark.parametrize("number", range(len(MISSPELT)))
def test_a_misspelt_key_is_refused_with_its_place_and_the_nearest_name(probed: Dict[str, Any], number: int) -> None:
    place, wrong, near = MISSPELT[number]
    found = probed["keys"]["misspelt"][number]
    where = ".".join(map(str, place)).replace(".1", "[1]")
    assert found["error"] == "Refused"
    hint = f" (did you mean {near}?)" if near else ""
    assert found["message"] == f"MindFormers would ignore {where}.{wrong}{hint}."


GUARD = {
    "a tensor is missing": ("WorkFailed", "1 network parameters are not in .*would stay random: .*wq.bias"),
    "a tensor is renamed": ("WorkFailed", "1 network parameters are not in .*would stay random: .*wq.bias"),
    "no name fits": ("WorkFailed", "15 entries of .* have no place in the network: x.model"),
    "another size": ("RuntimeError", r"\(300, 32\).*\(299, 32\)"),
    "LoRA given as a full one": ("WorkFailed", "14 entries of .* have no place .*a LoRA checkpoint given as a full"),
    "a tensor is missing below an adapter": ("WorkFailed", "1 network parameters are not in .*wq.bias"),
    "no rows": ("Refused", "holds 0 rows, fewer than the 8 of one step"),
    "too few rows": ("Refused", "holds 1 rows, fewer than the 8 of one step"),
    "not a MindRecord by name": ("Refused", "only reads files whose name ends in .mindrecord"),
    "no data": ("Refused", "there is no training data"),
    "score: a tensor is renamed": ("WorkFailed", "1 network parameters are not in .*wq.bias"),
    "score: LoRA given as a full one": ("WorkFailed", "14 entries of .* have no place"),
    "score: with the cache": ("WorkFailed", "scoring needs use_past False"),
    "serve: a tensor is missing": ("WorkFailed", "1 network parameters are not in .*wq.bias"),
    "serve: no adapter": ("WorkFailed", "14 network parameters are not in .*mindpet_delta_lora_a"),
}


@pytest.mark.parametrize("name", GUARD)
def test_a_bad_start_is_an_error_before_the_first_step(probed: Dict[str, Any], name: str) -> None:
    kind, said = GUARD[name]
    found = probed["guard"][name]
    assert found["error"] == kind and re.search(said, found["message"], re.DOTALL), found
    assert (found["result"], found["checkpoints"]) == (None, []), "never a trained result"


def test_a_good_start_is_none(probed: Dict[str, Any]) -> None:
    found = probed["guard"]["trained"]
    assert found["error"] == "" and found["result"] == {"steps": 50, "trainable_parameters": 28576}
    assert any("network" in name for name in found["checkpoints"])


def test_two_ranks_train_all_parameters_and_learn(micro: Micro) -> None:
    found = micro.trained()["finetune"]
    losses = found["metrics"]["loss"].tolist()
    assert (found["steps"], len(losses), found["trainable_parameters"]) == (20, 20, 28576)
    assert losses[-1] < 0.9 * losses[0]


def test_two_ranks_train_an_adapter_and_learn(micro: Micro) -> None:
    found = micro.trained()["lora"]
    losses = found["metrics"]["loss"].tolist()
    rank = 16
    per_layer = 4 * (32 + 32) - 2 * 16 + 3 * (32 + 64)  # wq wk wv wo (2 key/value heads of 8), w1 w2 w3
    assert (found["steps"], found["trainable_parameters"]) == (20, rank * per_layer), "the lm_head stays frozen"
    assert sum(losses[-4:]) / 4 < 0.975 * sum(losses[:2]) / 2


def test_both_ranks_end_with_the_same_weights(micro: Micro) -> None:
    import mindspore
    import numpy

    for path in (micro.trained()["finetune"]["checkpoint"], micro.trained()["lora"]["checkpoint"]):
        other = path.parent.parent / "rank_1" / path.name.replace("rank_0", "rank_1")
        one, two = (mindspore.load_checkpoint(str(file)) for file in (path, other))
        assert set(one) == set(two)
        for name in one:
            assert numpy.array_equal(one[name].asnumpy(), two[name].asnumpy()), name


def test_training_again_in_the_same_folder_keeps_the_last_checkpoints_aside(micro: Micro) -> None:
    trained = micro.trained()
    assert trained["finetune"]["checkpoint"].parts[-4] == "output.previous"
    assert trained["finetune"]["checkpoint"].is_file() and trained["lora"]["checkpoint"].is_file()
    run_dir = trained["lora"]["run_dir"]
    assert (run_dir / "earlier" / "1" / "rank_1" / "rank.log").is_file(), "logs are kept, too"
    assert json.loads((run_dir / "job.json").read_text())["config"]["model"]["model_config"]["pet_config"]


@pytest.fixture(scope="session")
def scored(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Dict[str, float]]:
    from qwenlib.engine import single

    return single.score(
        micro.profile,
        load_checkpoint=micro.model_dir,
        mindrecord=micro.mindrecord,
        checkpoints={"finetune": micro.trained()["finetune"]["checkpoint"]},
        run_dir=tmp_path_factory.mktemp("score"),
        **micro.files,
    )


def test_the_score_of_the_base_is_the_loss_that_transformers_computes(
    scored: Dict[str, Any], probed: Dict[str, Any], micro: Micro
) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    from qwenlib import data

    network = Qwen2ForCausalLM.from_pretrained(str(micro.hf), torch_dtype=torch.float32, local_files_only=True).eval()
    total = tokens = right = 0.0
    with torch.no_grad():
        for row in data.read_rows(micro.mindrecord):
            ids, targets = (torch.tensor(row[name]).long() for name in ("input_ids", "target_ids"))
            logits = network(ids[None, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, targets[1:], ignore_index=-100, reduction="sum").item()
            learned = targets[1:] != -100
            tokens += int(learned.sum())
            right += int((logits.argmax(-1) == targets[1:])[learned].sum())
    assert scored["base"]["tokens"] == tokens
    assert scored["base"]["loss"] == pytest.approx(total / tokens, abs=1e-4)
    assert scored["base"]["token_accuracy"] == pytest.approx(right / tokens, abs=1e-3)
    fresh_adapter = probed["guard"]["LoRA scored"]["result"]["base"]
    assert fresh_adapter["loss"] == pytest.approx(total / tokens, abs=1e-4), "an untrained adapter changes nothing"


def test_the_trained_checkpoints_score_better_than_the_base(scored: Dict[str, Any], probed: Dict[str, Any]) -> None:
    assert scored["finetune"]["loss"] < 0.9 * scored["base"]["loss"]
    lora = probed["guard"]["LoRA scored"]["result"]
    assert lora["lora"]["loss"] < 0.98 * lora["base"]["loss"]


def test_logits_equal_transformers_with_grouped_query_heads(micro: Micro, probed: Dict[str, Any]) -> None:
    import numpy

    from qwenlib.engine import prove

    assert micro.profile.model.n_kv_heads == 2 < micro.profile.model.num_heads
    with numpy.load(probed["guard"]["logits"]["result"]) as found:
        ours = found["logits"]
    theirs = prove.reference_logits(micro.hf, prove.sample_tokens(297, rows=2, length=128))
    assert ours.shape == theirs.shape == (2, 128, 300)
    assert numpy.abs(ours - theirs).max() <= 1e-4 and (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_logits_equal_transformers_with_tied_embeddings(micro: Micro, tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from qwenlib import weights
    from qwenlib.engine import prove, work

    torch.manual_seed(1)
    config = Qwen2Config.from_pretrained(str(micro.hf), local_files_only=True)
    config.tie_word_embeddings, config.num_key_value_heads = True, 4
    config.initializer_range = 0.3  # logits far from 0
    network = Qwen2ForCausalLM(config)
    for layer in network.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(part.bias)
    network.save_pretrained(str(tmp_path / "tied"), safe_serialization=True)
    converted = weights.convert(tmp_path / "tied", tmp_path / "model_dir", dtype="float32")
    found = prove.same_logits(
        work.with_sizes(micro.profile, converted["sizes"]),
        torch_ckpt_dir=tmp_path / "tied",
        load_checkpoint=tmp_path / "model_dir",
        run_dir=tmp_path / "logits",
        rows=2,
        **micro.files,
    )
    assert found["max_abs_diff"] <= 1e-4 and found["argmax_equal"]
    assert found["tokens"] == 2 * 128 and len(found["per_position"]) == 128


@pytest.mark.parametrize("change", [2e-4, "argmax"])
def test_logits_that_differ_are_not_taken_for_the_same(
    micro: Micro, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    from qwenlib.engine import prove, single

    def logits(profile: Any, ids: Any, **_: Any) -> Any:
        found = prove.reference_logits(micro.hf, ids).copy()
        if change == "argmax":
            best = found[1, 5].argmax()
            found[1, 5, [best, best - 1]] = found[1, 5, [best - 1, best]]
        else:
            found[1, 5, 7] += change
        return found

    monkeypatch.setattr(single, "logits", logits)
    with pytest.raises(WorkFailed, match=r"model_dir is not the network of .*hf: the logits differ by"):
        prove.same_logits(
            micro.profile,
            torch_ckpt_dir=micro.hf,
            load_checkpoint=micro.model_dir,
            run_dir="unused",
            tolerance=1.0 if change == "argmax" else prove.TOLERANCE,
            **micro.files,
        )


def test_a_killed_rank_is_named_and_no_process_is_left(micro: Micro, tmp_path: Path) -> None:
    from qwenlib import launch
    from qwenlib import profile as profiles
    from qwenlib.engine import work

    endless = profiles.load("smoke", [*SETTINGS, "finetune.epochs=100000"])
    killed: List[float] = []

    def kill_after_a_step() -> None:
        log = tmp_path / "rank_1" / "rank.log"
        while not killed:
            time.sleep(0.1)
            if log.exists() and b"step:[" in log.read_bytes():
                status = launch.read_status(tmp_path)
                assert status is not None
                killed.append(time.monotonic())
                os.kill(status["ranks"][1]["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill_after_a_step, daemon=True)
    thread.start()
    with pytest.raises(WorkFailed, match=r"rank 1 of 2 was killed by SIGKILL .*The other ranks were ended") as failed:
        work.finetune(
            endless,
            "finetune",
            load_checkpoint=micro.model_dir,
            train_dataset=micro.mindrecord,
            run_dir=tmp_path,
            **micro.files,
        )
    assert time.monotonic() - killed[0] < 15, "a dead rank is seen at once, not by a timeout"
    assert str(tmp_path / "rank_1" / "rank.log") in str(failed.value)
    assert not (tmp_path / "result.json").exists()
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(tmp_path) in " ".join(process.cmdline()) + process.environ().get("QWENLIB_RANK_DIR", ""):
                left.append(process)
    assert left == []
    shutil.rmtree(tmp_path)
