"""Every rule has a table that breaks it, told with path, rule and HCCL's own words."""

import dataclasses
import hashlib
import os

import pytest

from qwenlib import profile as profiles
from qwenlib.errors import Refused
from qwenlib.ranktable import RULES, check, load

CARD = "server_list[0].device[3]"


def put(document, path, value):
    """Set (or with ``...`` delete) the place that a JSON path names."""
    steps = [int(s) if s.isdigit() else s for s in path.replace("[", ".").replace("]", "").split(".")]
    for step in steps[:-1]:
        document = document[step]
    if value is ...:
        del document[steps[-1]]
    else:
        document[steps[-1]] = value


BROKEN = [
    (4, "status", "initializing"),
    (4, "status", "done"),
    (4, "status", ...),
    (5, "server_count", 2),
    (5, f"{CARD}.device_id", 3),
    (5, f"{CARD}.rank_id", None),
    (5, "server_list[0].host_nic_ip", 1),
    (6, "server_count", "3"),
    (6, "server_count", "two"),
    (7, "server_list", []),
    (8, "server_list[0].server_id", ""),
    (8, "server_list[0].server_id", ...),
    (8, "server_list[0].server_id", "n" * 65),
    (8, "server_list[1].server_id", "10.0.0.1"),
    (9, "server_list[0].device", []),
    (10, f"{CARD}.device_id", "8"),
    (10, f"{CARD}.device_id", "-1"),
    (10, f"{CARD}.device_id", ...),
    (11, f"{CARD}.device_ip", "192.168.1.300"),
    (11, f"{CARD}.device_ip", "0.0.0.0"),
    (12, f"{CARD}.device_ip", "192.1.0.1"),
    (13, f"{CARD}.device_ip", ...),
    (13, f"{CARD}.device_ip", ""),
    (14, f"{CARD}.device_ip", "192.4.0.1,192.4.9.9"),
    (15, f"{CARD}.rank_id", "three"),
    (15, f"{CARD}.rank_id", ...),
    (18, f"{CARD}.rank_id", "16"),
    (18, f"{CARD}.rank_id", "4"),
    (20, CARD, ...),
    (23, f"{CARD}.device_id", "2"),
    (32, "version", ...),
    (32, "version", "1.1"),
    (33, "server_list", {}),
    (33, "server_list[0].device", "none"),
    (33, "server_list[0]", "10.0.0.1"),
    (33, CARD, []),
]


@pytest.mark.parametrize(("rule", "path", "value"), BROKEN)
def test_a_broken_rule_is_told_with_its_path(rule, path, value, make_table, write):
    document = make_table(2)
    put(document, path, value)
    report = check(write(document), here=False)
    hits = [item for item in report.fails if item.rule == rule and item.path.startswith(path.rsplit("[", 1)[0])]
    assert hits, report.text()
    assert report.state(rule) == "FAIL" and report.table is None
    if rule != 8:  # whose words differ from case to case
        assert RULES[rule].hccl in hits[0].text()


@pytest.mark.parametrize(
    ("server_id", "words"),
    [("10.0.0.1", "The serverId is used repeatedly."), ("", "serverId[] is empty"), ("n" * 65, ""), (..., "")],
)
def test_hccl_is_quoted_with_what_it_says_in_this_very_case(server_id, words, make_table, write):
    document = make_table(2)
    put(document, "server_list[1].server_id", server_id)
    told = [item for item in check(write(document), here=False).fails if item.rule == 8]
    assert [item.hccl for item in told] == [words] and told[0].to_dict()["hccl_text"] == words
    assert ("[HCCL EI0004: " in told[0].text()) == bool(words)


@pytest.mark.parametrize("address", ["127.0.0.9", ""])
def test_a_warning_promises_no_error_of_hccl(address, make_table, write):
    document = make_table(1, (0,))
    document["server_list"][0]["device"][0]["device_ip"] = address
    report = check(write(document), here=False)
    assert not report.fails and report.warnings and "[HCCL" not in report.text()


@pytest.mark.parametrize("name", ["xx.xx.xx.xx", "10.*.*.*", "10.0.0.300"])
def test_a_server_id_like_an_address_that_is_none_is_a_warning(name, make_table, write):
    document = make_table(2)
    put(document, "server_list[0].server_id", name)
    report = check(write(document), here=False)
    assert not report.fails and [(item.rule, item.path) for item in report.warnings] == [
        (8, "server_list[0].server_id")
    ]


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"version": "1.2", "server_list": []}, "version"),
        ({"version": "1.2", "server_list": [], "super_pod_list": []}, "super_pod_list"),
        ({"server_list": [{"device": [{"super_device_id": "1"}]}]}, "server_list[0].device[0].super_device_id"),
        ({"status": "initializing", "server_group_list": []}, "server_group_list"),
        ({"rank_list": []}, "rank_list"),
        ({"rank_count": "1"}, "rank_count"),
    ],
)
def test_a_foreign_format_is_told_at_the_key_that_tells_it(document, path, write):
    report = check(write(document), here=False)
    assert [(item.rule, item.path, item.hccl) for item in report.fails] == [(33, path, "")]
    assert "qwenlib ranktable generate" in report.text()


def test_many_unchecked_rules_of_one_reason_are_one_line(write):
    report = check(write("{"), here=False)
    assert "not checked: rules 4-35 (needs a readable table)" in report.text()
    assert report.text().count("\n") < 6 and len(report.to_dict()["rules"]) == len(RULES)


def test_long_values_are_cut_in_messages(make_table, write):
    document = make_table(2)
    for path in ("server_count", f"{CARD}.device_id", f"{CARD}.device_ip", f"{CARD}.rank_id", "version", "status"):
        put(document, path, "9" * 5000)
    put(document, "server_list[0].host_nic_ip", int("9" * 4000))
    report = check(write(document), here=False)
    assert len(report.fails) >= 7 and max(map(len, report.text().splitlines())) < 400


def test_fields_of_other_generators(make_table, write):
    document = make_table(2)
    document["server_list"][0].update(container_ip="192.168.247.11", host_ip="10.0.0.1")
    for server in document["server_list"]:
        for card in server["device"]:
            card["device_ip"] += "," + card["device_ip"].replace("192.", "172.")
    report = check(write(document), here=False)
    assert not report.fails  # container_ip is passed over, a card may have two addresses
    assert [(item.rule, item.path) for item in report.warnings] == [(35, "server_list[0].host_ip")]
    assert report.table.to_dict()["server_list"][0]["container_ip"] == "192.168.247.11"


def test_a_pipe_and_a_checkpoint_are_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "model.json").touch()
    os.truncate(tmp_path / "model.json", 15 * 2**30)  # sparse
    for name, told in (("pipe.json", "no ordinary file"), ("model.json", "15360 MiB")):
        report = check(tmp_path / name)
        assert [item.rule for item in report.fails] == [2] and told in report.text() and "sha256" not in report.text()
        with pytest.raises(Refused, match=told):
            load(tmp_path / name)


def test_a_good_table_has_no_problem_and_every_rule_a_state(make_table, write):
    path = write(make_table(2))
    report = check(path, here=False)
    assert report.problems == () and report.table.ranks == 16
    assert {report.state(rule) for rule in RULES} == {"OK", "not checked"}
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.sha256 in report.text() and "not checked: rule 19" in report.text()


def test_duplicate_device_id_of_the_published_failure_is_found(sample_path):
    fails = check(sample_path("v1_duplicate_device_id"), here=False).fails
    assert [(item.rule, item.path) for item in fails] == [(23, "server_list[0].device[1].device_id")]
    assert "server_list[0].device[0].device_id" in fails[0].message


def test_the_guides_two_node_sample_is_refused(sample_path):
    fails = check(sample_path("v1_guide_two_nodes_wrong"), here=False).fails
    assert {8, 12} == {item.rule for item in fails}
    assert len([item for item in fails if item.rule == 12]) == 4


@pytest.mark.parametrize("cards", [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1), (2, 3), (6,), tuple(range(8))])
def test_legal_sets_of_cards(cards, make_table, write):
    assert not check(write(make_table(1, cards)), here=False).fails


@pytest.mark.parametrize(("cards", "rule"), [((2, 3, 4, 5), 28), ((3, 4), 28), ((0, 1, 2), 20), (tuple(range(6)), 20)])
def test_illegal_sets_of_cards(cards, rule, make_table, write):
    assert rule in {item.rule for item in check(write(make_table(1, cards)), here=False).fails}


def test_the_card_of_the_wrong_group_is_named(make_table, write):
    [fail] = check(write(make_table(1, (0, 1, 2, 4))), here=False).fails
    assert fail.path == "server_list[0].device" and "(server_list[0].device[3].device_id)" in fail.message
    [fail] = check(write(make_table(1, (3, 4))), here=False).fails
    assert "(server_list[0].device[0].device_id, server_list[0].device[1].device_id)" in fail.message


def test_interleaving_ranks_are_refused(make_table, write):
    document = make_table(2)
    one, two = document["server_list"][0]["device"][7], document["server_list"][1]["device"][0]
    one["rank_id"], two["rank_id"] = two["rank_id"], one["rank_id"]
    fails = check(write(document), here=False).fails
    assert {item.rule for item in fails} == {30} and fails[0].path == "server_list[0].device[7].rank_id"


def test_nic_planes_are_warnings_only(make_table, write):
    document = make_table(2)
    document["server_list"][1]["device"][5]["device_ip"] = "172.16.0.9"
    report = check(write(document), here=False)
    assert not report.fails
    assert [(item.rule, item.path) for item in report.warnings] == [(29, "server_list[1].device[5].device_ip")]
    assert report.state(29) == "WARN"


@pytest.mark.parametrize("name", ["v0_two_nodes_out_of_order", "v1_guide_eight_cards", "v0_eight_cards_handwritten"])
def test_real_nic_planes_do_not_warn(name, sample_path):
    assert 29 not in {item.rule for item in check(sample_path(name), here=False).problems}


def test_a_missing_address_on_one_server_is_a_warning(make_table, write):
    document = make_table(1, (0,))
    del document["server_list"][0]["device"][0]["device_ip"]
    report = check(write(document), here=False)
    assert not report.fails and [item.rule for item in report.warnings] == [13]


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("group_list[0].device_count", "15", 31),
        ("group_list[0].instance_count", "3", 31),
        ("group_count", "2", 31),
        ("group_list[0].instance_list[1].pod_name", "fake-job-pod-1", 31),
        ("group_list[0].instance_list[1].devices[2].device_ip", "192.1.194.107", 12),
        ("group_list[0].instance_list[1].devices[2].device_id", "9", 10),
        ("group_list[0].instance_list", [], 7),
    ],
)
def test_v0_tables_obey_the_same_rules(path, value, rule, sample, write):
    document = sample("v0_two_nodes_out_of_order")
    put(document, path, value)
    fails = check(write(document), here=False).fails
    told = [item.path + item.message for item in fails if item.rule == rule]
    assert any(path in text for text in told), fails


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [("t.txt", "{}", 1), ("t.json", "{ // no\n}", 3), ("t.json", "{", 3), ("t.json", '{"status":"initializing"}', 4)],
)
def test_files_that_are_no_table(name, text, rule, write):
    report = check(write(text, name), here=False)
    assert rule in {item.rule for item in report.fails}
    assert report.to_dict()["ok"] is False


def test_a_missing_file_is_rule_2(tmp_path):
    assert [item.rule for item in check(tmp_path / "no.json").fails] == [2]


def test_ranks_are_compared_with_the_profile(make_table, write):
    path, lora = write(make_table(1)), profiles.load("lora_7b_910a")
    assert check(path, lora, here=False).state(24) == "OK"
    fails = check(path, profiles.load("finetune_7b_910a"), here=False).fails
    assert fails[0].rule == 24 and "16" in fails[0].message and "data_parallel 2" in fails[0].message
    assert check(path, dataclasses.replace(lora, lora=None), here=False).state(24) == "not checked"


@pytest.fixture
def host(tmp_path):
    """A root with device nodes and hccn.conf."""

    def make(cards, conf=""):
        (tmp_path / "dev").mkdir()
        for card in cards:
            (tmp_path / "dev" / f"davinci{card}").touch()
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "hccn.conf").write_text(conf)
        return tmp_path

    return make


def test_cards_and_addresses_are_compared_with_the_host(make_table, write, host):
    addresses = {card: f"192.{card % 4 + 1}.0.{card // 4 + 1}" for card in range(8)}
    addresses[5] = "192.2.0.77"
    root = host(
        range(7),
        "".join(f"address_{card}={address}\nnetmask_{card}=255.255.0.0\n" for card, address in addresses.items()),
    )
    report = check(write(make_table(2)), root=root, environ={"PATH": "/nonexistent"}, addresses=["10.0.0.1"])
    assert [(item.rule, item.path) for item in report.fails] == [
        (26, "server_list[0].device[7].device_id"),
        (27, "server_list[0].device[5].device_ip"),
    ]
    assert "192.2.0.77" in report.text()


def test_what_cannot_be_compared_is_said_to_be_not_checked(make_table, write, tmp_path):
    report = check(write(make_table(2)), root=tmp_path, environ={"PATH": ""}, addresses=["10.0.0.2"])
    assert not report.fails
    for rule in (16, 17, 19, 22, 24, 26, 27):
        assert report.state(rule) == "not checked" and report.not_checked[rule]


def test_a_stranger_is_told(make_table, write, tmp_path):
    report = check(write(make_table(2)), root=tmp_path, environ={}, addresses=["10.9.9.9"])
    assert [item.rule for item in report.fails] == [25]
    assert "MA_CURRENT_HOST_IP is not set" in report.fails[0].message


@pytest.mark.parametrize(
    ("rank", "device", "nodes", "more", "told"),
    [
        ("9", "1", range(8), {}, None),
        ("9", "5", range(8), {}, "is 1, but RANK_ID 9 with DEVICE_ID 5 opens card 5"),
        ("1", "1", range(8), {}, "RANK_ID 1 is a rank of another host"),
        ("9", "9", range(8), {}, "DEVICE_ID 9 is none of the 8 card(s)"),
        ("9", "0", range(8), {"ASCEND_RT_VISIBLE_DEVICES": "1,2"}, None),
        ("9", "1", range(8), {"ASCEND_RT_VISIBLE_DEVICES": "1,2"}, "opens card 2"),
    ],
)
def test_the_card_that_a_started_process_opens(rank, device, nodes, more, told, make_table, write, host):
    environ = {"PATH": "", "RANK_ID": rank, "DEVICE_ID": device, **more}
    report = check(write(make_table(2)), root=host(nodes), environ=environ, addresses=["10.0.0.2"])
    assert report.state(19) == ("FAIL" if told else "OK")
    for item in report.fails:
        assert told in item.message and item.path == f"server_list[{int(rank) // 8}].device[{int(rank) % 8}].device_id"


@pytest.mark.parametrize(("value", "rule"), [("x", 16), ("8", 17), ("\u00b2", 16), ("9" * 5000, 16)])
def test_the_variable_rank_id(value, rule, make_table, write, tmp_path):
    report = check(write(make_table(1)), root=tmp_path, environ={"RANK_ID": value}, addresses=["10.0.0.1"])
    assert [item.rule for item in report.fails] == [rule]


def test_the_codes_are_those_of_hccls_parser():
    """CANN 8.0's parser, rule by rule; "parameter error" and "internal error" reach the user without a code."""
    codes = dict.fromkeys(range(1, 23), "EI0004")
    codes.update(dict.fromkeys((5, 9, 10, 14, 20), "parameter error"))
    codes.update({1: "internal error", 4: "timeout", 13: "EI0004/EI0014", 21: "EI0004/EI0014", 22: "EJ0004"})
    assert {rule: RULES[rule].code for rule in codes} == codes
