"""Several ranks that answer with one network: the plan for cards, and the lockstep on two real CPU ranks."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from micro import SENTENCE, Micro

from qwenlib import infer, launch
from qwenlib import profile as profiles
from qwenlib.engine import serving
from qwenlib.errors import Refused, WorkFailed
from qwenlib.files import write_json


def rank_table(path: Path, cards: int) -> Path:
    devices = [
        {"device_id": str(card), "device_ip": f"192.168.{card}.1", "rank_id": str(card)} for card in range(cards)
    ]
    server = {"server_id": "10.0.0.1", "device": devices, "host_nic_ip": "reserve"}
    write_json(path, {"version": "1.0", "server_count": "1", "server_list": [server], "status": "completed"})
    return path


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """A vocabulary and a model_dir as far as a plan looks at them."""
    write_json(tmp_path / "vocab.json", {"a": 0, "b": 1})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "model_dir" / "rank_0").mkdir(parents=True)
    (tmp_path / "model_dir" / "rank_0" / "qwen1_5.ckpt").write_bytes(b"x")
    return {
        "vocab_file": tmp_path / "vocab.json",
        "merges_file": tmp_path / "merges.txt",
        "load_checkpoint": tmp_path / "model_dir",
        "run_dir": tmp_path / "run",
        "socket": tmp_path / "engine",
    }


def test_two_cards_share_a_network_as_the_rank_table_says(tmp_path: Path, files: Any) -> None:
    profile = profiles.load("infer_7b_910a", ["predict.model_parallel=2"])
    plan = serving.serve_plan(profile, rank_table=rank_table(tmp_path / "table.json", 2), **files)
    told = plan.describe()
    assert "# 2 of 2 ranks, rank_table" in told
    for rank in (0, 1):
        part = told.split(f"# rank_{rank}\n")[1]
        assert f"export RANK_ID={rank}\n" in part and "export RANK_SIZE=2\n" in part
        assert f"export DEVICE_ID={rank}\n" in part and f"RANK_TABLE_FILE={tmp_path / 'table.json'}\n" in part
    job = json.loads((tmp_path / "run" / "job.json").read_text())
    config = job["config"]
    assert config["use_parallel"] is True and config["auto_trans_ckpt"] is True
    assert config["parallel"]["parallel_mode"] == 1 and config["parallel_config"]["model_parallel"] == 2
    assert job["load_checkpoint"] == str(tmp_path / "model_dir"), "the folder, which MindFormers slices"


def test_one_card_is_as_in_the_guide_but_for_its_mistake(files: Any) -> None:
    plan = serving.serve_plan(profiles.load("infer_7b_910a"), **files)
    assert (plan.ranks, plan.rendezvous, plan.rank_table) == (1, "single", None)
    job = json.loads((files["run_dir"] / "job.json").read_text())
    assert job["config"]["use_parallel"] is False and job["config"]["auto_trans_ckpt"] is False
    assert job["load_checkpoint"].endswith("qwen1_5.ckpt")


def test_what_cannot_be_shared_is_refused(tmp_path: Path, files: Any) -> None:
    profile = profiles.load("infer_7b_910a", ["predict.model_parallel=2"])
    with pytest.raises(Refused, match="2 Ascend ranks need a rank table"):
        serving.serve_plan(profile, **files)
    with pytest.raises(Refused, match=r"holds 4 ranks on 1 host\(s\); predict\.model_parallel 2 needs as many"):
        serving.serve_plan(profile, rank_table=rank_table(tmp_path / "four.json", 4), **files)
    files["load_checkpoint"] = tmp_path / "model_dir" / "rank_0" / "qwen1_5.ckpt"
    with pytest.raises(Refused, match="several ranks need a model_dir"):
        serving.serve_plan(profile, rank_table=rank_table(tmp_path / "two.json", 2), **files)
    with pytest.raises(Refused, match=r"predict\.model_parallel must be 1 on the CPU"):
        profiles.load("smoke", ["predict.model_parallel=2"])
    with pytest.raises(Refused, match=r"model\.num_heads 32 is not a multiple of predict\.model_parallel"):
        profiles.load("infer_7b_910a", ["predict.model_parallel=3"])


def test_settings_of_answering_are_checked_with_the_profile() -> None:
    with pytest.raises(Refused, match=r"predict\.temperature must be above 0, .*; predict\.top_p must be .* found 2"):
        profiles.load("smoke", ["predict.temperature=0", "predict.top_p=2"])


@pytest.fixture(scope="module")
def pair(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Iterator[infer.Session]:
    """The speaker on two CPU ranks. They hold the network twice (a CPU cannot slice it), yet go in lockstep."""
    plan_of_one = serving.serve_plan

    def plan_of_two(*arguments: Any, **more: Any) -> launch.Plan:
        plan = plan_of_one(*arguments, **more)
        job_file = Path(plan.command[-1])
        job = json.loads(job_file.read_text())
        job["config"]["use_parallel"] = True
        job["config"]["parallel_config"]["data_parallel"] = 2
        write_json(job_file, job)
        return dataclasses.replace(plan, ranks=2, rendezvous="dynamic_cluster")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "serve_plan", plan_of_two)
        session = infer.Session(
            micro.profile,
            load_checkpoint=micro.speaker(),
            run_dir=tmp_path_factory.mktemp("pair"),
            name="pair",
            **micro.files,
        )
    with session:
        session.wait_ready()
        yield session


@pytest.mark.stack
def test_two_ranks_answer_stop_and_refuse_together(pair: infer.Session) -> None:
    assert [rank["name"] for rank in pair._run.poll()["ranks"]] == ["rank_0", "rank_1"]
    assert pair.ask("Hello")["text"] == SENTENCE
    for _ in range(20):  # on a busy machine an answer may end before it is stopped
        answer = pair.ask("x", chat=False, max_new_tokens=120, stopped=lambda: True)
        if answer["finish"] == "asked":
            break
    assert answer["finish"] == "asked" and answer["answer_tokens"] < 120
    with pytest.raises(WorkFailed, match="'x y' is not one token"):
        pair.ask("x", chat=False, stop=["x y"])
    with pytest.raises(WorkFailed, match="temprature"):
        pair.ask("x", chat=False, temprature=1.0)
    drawn = [pair.ask("x", chat=False, do_sample=True, temperature=50.0, seed=3)["text"] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert pair.ask("q", chat=False, max_new_tokens=5)["text"] == "\ufffd" * 5
    assert pair.ask("Hello")["text"] == SENTENCE and pair.alive


@pytest.mark.stack
def test_the_other_rank_really_answered_along(pair: infer.Session) -> None:
    """MindFormers logs each generation; both ranks have begun as many, the stopped and the refused ones included."""

    def generations(rank: int) -> int:
        return pair._run.rank_log(rank).read_text(errors="replace").count("Generation Config is")

    pair.ask("Hello")
    deadline = time.monotonic() + 60
    while generations(1) < generations(0) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert generations(1) == generations(0) > 2
