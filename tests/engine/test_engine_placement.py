"""Which ranks are this host's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qwenlib import profile as profiles
from qwenlib.engine.placement import place, profile_print
from qwenlib.errors import Refused

NODES = ("10.1.1.1", "10.1.1.2")


@pytest.fixture
def smoke():
    return profiles.load("smoke", [])


def test_one_host_needs_no_placement(smoke):
    assert place(smoke, "lora") == {} and place(smoke, "lora", nodes=NODES[:1]) == {}


def test_each_host_starts_its_share(smoke):
    first, second = (place(smoke, "lora", nodes=NODES, node_rank=number) for number in (0, 1))
    assert (first["first_rank"], first["ranks"], first["world_size"]) == (0, 1, 2)
    assert (second["first_rank"], second["node"], second["sched_host"]) == (1, 1, "10.1.1.1")
    assert first["prints"] == second["prints"]


def test_this_host_is_found_by_its_address(smoke):
    assert place(smoke, "lora", nodes=("10.1.1.1", "127.0.0.1"))["node"] == 1
    with pytest.raises(Refused, match="is none of the nodes"):
        place(smoke, "lora", nodes=NODES)
    with pytest.raises(Refused, match="more than one"):
        place(smoke, "lora", nodes=("127.0.0.1", "127.0.0.1"))


@pytest.mark.parametrize(
    ("nodes", "node_rank", "words"),
    [
        ((*NODES, "10.1.1.3"), 0, "cannot be shared out"),
        (NODES, 2, "node_rank must be 0 to 1, found 2"),
        ((), 3, "node_rank 3 is one of"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(smoke, nodes, node_rank, words):
    with pytest.raises(Refused, match=words):
        place(smoke, "lora", nodes=nodes, node_rank=node_rank)


def test_every_setting_is_in_the_print(smoke):
    other = replace(smoke, seed=smoke.seed + 1)
    assert profile_print(smoke, "lora") != profile_print(other, "lora") != profile_print(other, "finetune")


def table(path, servers=2):
    entries = []
    for number in range(servers):
        devices = [
            {"device_id": str(card), "device_ip": f"192.{card % 4 + 1}.{number}.{card + 1}", "rank_id": f"{rank}"}
            for card, rank in ((card, number * 8 + card) for card in range(8))
        ]
        entries.append({"server_id": f"10.0.0.{number + 1}", "device": devices, "host_nic_ip": "reserve"})
    tree = {"version": "1.0", "server_count": str(servers), "server_list": entries, "status": "completed"}
    path.write_text(json.dumps(tree))
    return path


def test_the_servers_of_the_rank_table_are_the_nodes(tmp_path, monkeypatch):
    profile = profiles.load("finetune_7b_910a", [])
    path = table(tmp_path / "jobstart_hccl.json")
    found = []
    for address in ("10.0.0.1", "10.0.0.2"):
        monkeypatch.setenv("MA_CURRENT_HOST_IP", address)
        found.append(place(profile, "finetune", path))
    assert [(item["node"], item["first_rank"], item["ranks"]) for item in found] == [(0, 0, 8), (1, 8, 8)]
    assert found[1]["device_ids"] == list(range(8)) and found[1]["sched_host"] == "10.0.0.1"
    assert found[0]["prints"] == found[1]["prints"] and set(found[0]["prints"]) == {"profile", "rank table"}
    monkeypatch.setenv("MA_CURRENT_HOST_IP", "10.9.9.9")
    with pytest.raises(Refused, match="this host is none of the 2 servers"):
        place(profile, "finetune", path)
    assert place(profile, "finetune", table(tmp_path / "one.json", servers=1)) == {}


def test_the_cards_of_a_table_for_one_host_are_opened(tmp_path, monkeypatch):
    profile, path = profiles.load("lora_7b_910a"), table(tmp_path / "one.json", servers=1)
    document = json.loads(path.read_text())
    document["server_list"][0]["device"] = document["server_list"][0]["device"][4:]
    for rank, card in enumerate(document["server_list"][0]["device"]):
        card["rank_id"] = str(rank)
    path.write_text(json.dumps(document))
    plan = replace(profile.lora.parallel, model_parallel=1, data_parallel=4, pipeline_stage=1)
    profile = replace(profile, lora=replace(profile.lora, parallel=plan))
    assert place(profile, "lora", path) == {}  # the cards of a container are counted from 0
    monkeypatch.setattr("qwenlib.ascend.devices.device_nodes", lambda root="/": list(range(8)))
    assert place(profile, "lora", path) == {"device_ids": [4, 5, 6, 7]}
    monkeypatch.setattr("qwenlib.ascend.devices.device_nodes", lambda root="/": [0, 1, 2, 3])
    with pytest.raises(Refused, match="only 0, 1, 2, 3 are here"):
        place(profile, "lora", path)
