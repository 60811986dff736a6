"""Reading tables of every format, by keys."""

import json

import pytest

from qwenlib.errors import Refused
from qwenlib.ranktable import load, parse

GOOD = {
    "v0_one_card_device_4": ("v0", 1, 1),
    "v1_one_card_device_4": ("v1.0", 1, 1),
    "v0_one_card": ("v0", 1, 1),
    "v1_notebook_one_card": ("v1.0", 1, 1),
    "v0_two_nodes_out_of_order": ("v0", 2, 16),
    "v0_eight_cards_handwritten": ("v0", 1, 8),
    "v1_hccl_guide": ("v1.0", 1, 2),
    "v0_hccl_guide_no_suffix": ("v0", 2, 2),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_sample_is_read(name, sample_path):
    table = load(sample_path(name))
    assert (table.source_format, len(table.servers), table.ranks) == GOOD[name]
    assert sorted(d.rank_id for s in table.servers for d in s.devices) == list(range(table.ranks))


def test_the_file_name_says_nothing_about_the_format(sample_path, tmp_path):
    for number, name in enumerate(("v0_one_card", "v1_notebook_one_card")):
        path = tmp_path / str(number) / "jobstart_hccl.json"
        path.parent.mkdir()
        path.write_bytes(sample_path(name).read_bytes())
        assert load(path).source_format == GOOD[name][0]


def test_conversion_equals_huaweis(sample):
    ours = parse(sample("v0_two_nodes_out_of_order")).to_dict()
    assert ours == sample("v0_two_nodes_converted_by_huawei")


def test_single_card_keeps_its_physical_id_and_equals_the_documented_conversion(sample):
    assert parse(sample("v0_one_card_device_4")).to_dict() == sample("v1_one_card_device_4")


def test_pods_without_number_keep_list_order(sample):
    table = parse(sample("v0_hccl_guide_no_suffix"))
    assert [server.server_id for server in table.servers] == ["node_0", "node_1"]


def v0(groups):
    return {"status": "completed", "group_count": str(len(groups)), "group_list": groups}


def group(pods, **changes):
    instances = [
        {
            "pod_name": name,
            "server_id": server,
            "devices": [{"device_id": str(c), "device_ip": f"192.{c % 4 + 1}.{server[-1]}.{c + 1}"} for c in cards],
        }
        for name, server, cards in pods
    ]
    total = sum(len(cards) for _, _, cards in pods)
    made = {"group_name": "g", "device_count": str(total), "instance_count": str(len(pods)), "instance_list": instances}
    return {**made, **changes}


def test_two_pods_on_one_server_become_one_server():
    table = parse(v0([group([("job-1", "10.0.0.1", range(4, 8)), ("job-0", "10.0.0.1", range(4))])]))
    assert len(table.servers) == 1
    assert [(d.device_id, d.rank_id, d.pod) for d in table.servers[0].devices][3:5] == [
        (3, 3, "job-0"),
        (4, 4, "job-1"),
    ]


def test_several_groups_and_groups_without_cards():
    empty = group([("job-ps-0", "10.0.0.9", [])], device_count="0")
    first, second = group([("job-a-0", "10.0.0.1", range(8))]), group([("job-b-0", "10.0.0.2", range(8))])
    table = parse(v0([first, empty, second]))
    assert [server.server_id for server in table.servers] == ["10.0.0.1", "10.0.0.2"]
    assert table.servers[1].first_rank == 8


def test_pod_numbers_are_compared_as_numbers():
    pods = [(f"job-{n}", f"10.0.0.{n}", range(8)) for n in (10, 2, 1)]
    document = v0([group(pods)])
    for index, entry in enumerate(document["group_list"][0]["instance_list"]):
        for card in entry["devices"]:
            card["device_ip"] = f"192.{int(card['device_id']) % 4 + 1}.{index}.{int(card['device_id']) + 1}"
    assert [server.server_id for server in parse(document).servers] == ["10.0.0.1", "10.0.0.2", "10.0.0.10"]


def test_byte_order_mark_and_key_order(make_table, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(make_table(), sort_keys=True), encoding="utf-8-sig")
    assert load(path).ranks == 8


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ("v12_super_pod", "v1.2"),
        ({"version": "1.2", "server_list": []}, "v1.2"),
        ({"status": "completed", "server_group_list": []}, "MindIE"),
        ({"version": "2.0", "rank_count": "1", "rank_list": [{"rank_id": 0, "local_id": 0}]}, "A5"),
    ],
)
def test_foreign_formats_are_refused_by_name_with_advice(document, name, sample):
    with pytest.raises(Refused, match=name) as caught:
        parse(sample(document) if isinstance(document, str) else document)
    assert "qwenlib ranktable generate" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"status": "completed", // done\n}', "no comments"),
        ("", "line 1"),
        ("[]", "JSON object"),
        ("[" * 100000, "nested too deeply|not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "number too long|neither server_list"),
        ('{"a": 1}', "neither server_list"),
    ],
)
def test_what_is_no_table_is_refused(text, told, write):
    with pytest.raises(Refused, match=told):
        load(write(text))


def test_other_encodings_folders_and_missing_files(tmp_path, make_table):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(make_table()), encoding="utf-16")
    for bad, told in ((path, "UTF-8"), (tmp_path, "folder"), (tmp_path / "no.json", "there is no")):
        with pytest.raises(Refused, match=told):
            load(bad)


def test_all_problems_are_told_at_once(make_table):
    document = make_table(2)
    document["server_count"] = "3"
    document["server_list"][0]["device"][2]["device_ip"] = "192.3.0.400"
    document["server_list"][1]["device"][5]["rank_id"] = 13
    with pytest.raises(Refused) as caught:
        parse(document)
    for path in ("server_count", "server_list[0].device[2].device_ip", "server_list[1].device[5].rank_id"):
        assert path in str(caught.value)
