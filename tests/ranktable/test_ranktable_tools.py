"""generate, merge and subset; the first two against upstream's own scripts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlib.errors import Refused
from qwenlib.ranktable import check, generate, load, merge, merge_files, parse, subset, write_table
from qwenlib.ranktable.generate import device_range, table_name

ADDRESSES = {card: f"192.{card % 4 + 1}.27.{6 + card // 4}" for card in range(8)}


def upstream(script, arguments, cwd):
    """Run MindFormers' own script; returns the files it wrote."""
    spec = importlib.util.find_spec("mindformers")
    assert spec is not None and spec.origin
    before = set(cwd.iterdir())
    path = Path(spec.origin).parent / "tools" / script
    done = subprocess.run([sys.executable, str(path), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [path for path in cwd.iterdir() if path not in before]


ALL = "0,1,2,3,4,5,6,7"


@pytest.mark.stack
@pytest.mark.parametrize(
    ("device_num", "visible"),
    [("[0,8)", ALL), ("[0,4)", ALL), ("[4,8)", ALL), ("[2,4)", ALL), ("[5,6)", ALL), ("[0,4)", "1,0,3,2"),
     ("[0,8)", "7,6,5,4,3,2,1,0")],
)  # fmt: skip
def test_generate_writes_what_hccl_tools_writes(device_num, visible, hccn, tmp_path):
    hccn(ADDRESSES)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    arguments = ["--device_num", device_num, "--visible_devices", visible, "--server_ip", "10.0.0.1"]
    [written] = upstream("hccl_tools.py", arguments, theirs)
    name, table, _ = generate(device_num, visible, "10.0.0.1")
    path = write_table(table, ours / name)
    assert path.name == written.name and path.read_bytes() == written.read_bytes()


READS = """
import builtins, runpy, sys
script, conf = sys.argv[1:3]
plain = builtins.open
builtins.open = lambda path, *more, **named: plain(conf if path == "/etc/hccn.conf" else path, *more, **named)
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
"""
"""hccl_tools.py as it is, with /etc/hccn.conf somewhere else."""


@pytest.mark.stack
@pytest.mark.parametrize(
    ("device_num", "visible"), [("[0,8)", ALL), ("[0,4)", "4,5,6,7"), ("[0,1)", "3"), ("[2,4)", "4,5,7,6")]
)
def test_generate_reads_hccn_conf_as_hccl_tools_does(device_num, visible, tmp_path, monkeypatch):
    root = conf(tmp_path / "root", ADDRESSES)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no hccn_tool
    script = Path(importlib.util.find_spec("mindformers").origin).parent / "tools" / "hccl_tools.py"
    arguments = ["--device_num", device_num, "--visible_devices", visible, "--server_ip", "10.0.0.1"]
    command = [sys.executable, "-c", READS, script, root / "etc" / "hccn.conf", *arguments]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    name, table, _ = generate(device_num, visible, "10.0.0.1", root=root)
    assert write_table(table, tmp_path / "ours" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.stack
def test_cards_of_the_second_group_work_where_hccl_tools_asks_for_the_wrong_ones(hccn, tmp_path):
    hccn(ADDRESSES)
    path = Path(importlib.util.find_spec("mindformers").origin).parent / "tools" / "hccl_tools.py"
    command = [sys.executable, path, "--device_num", "[0,4)", "--visible_devices", "4,5,6,7", "--server_ip", "10.0.0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode and "KeyError: '4'" in done.stderr  # it asks hccn_tool for 0 to 3
    _, table, _ = generate("[0,4)", "4,5,6,7", "10.0.0.1")
    assert [(d.device_id, d.device_ip) for d in table.servers[0].devices] == [(c, ADDRESSES[c]) for c in (4, 5, 6, 7)]


@pytest.mark.stack
def test_generate_takes_the_host_name_as_hccl_tools_does(hccn, tmp_path):
    hccn(ADDRESSES)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    [written] = upstream("hccl_tools.py", [], theirs)
    name, table, _ = generate()
    assert name == written.name and table.to_dict() == json.loads(written.read_text())


@pytest.mark.stack
def test_merge_writes_what_merge_hccl_writes(make_table, write, tmp_path):
    paths = [write(make_table(1, first=f"10.0.0.{n}"), f"{n}.json") for n in (9, 10)]
    for index, path in enumerate(paths):
        document = json.loads(path.read_text())
        for card in document["server_list"][0]["device"]:
            card["device_ip"] = card["device_ip"].replace("192.", f"{100 + index}.")
        document["server_list"][0]["rack"] = "r1"
        write(document, path.name)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for order in (paths, paths[::-1]):
        [written] = upstream("merge_hccl.py", map(str, order), theirs)
        merged = merge_files(order, keep_order=True)
        assert merged.to_dict() == json.loads(written.read_text()) and table_name(merged) == written.name
        written.unlink()
    assert merge_files(paths) == merge_files(paths[::-1]) == merge_files(paths, keep_order=True)


def test_every_bad_file_of_a_merge_is_told(make_table, write, tmp_path):
    good, bad = write(make_table(1), "a.json"), write("{", "b.json")
    with pytest.raises(Refused, match=r"b.json, line 1.*there is no rank table .*c.json"):
        merge_files([good, bad, tmp_path / "c.json"])


def test_sorting_compares_addresses_by_value(make_table):
    tables = [parse(make_table(1, (n,), f"10.0.0.{n + 7}")) for n in range(4)]
    assert [s.server_id for s in merge(tables[::-1]).servers] == ["10.0.0.7", "10.0.0.8", "10.0.0.9", "10.0.0.10"]


def test_host_names_are_sorted_by_their_numbers_whatever_else_is_in_them(make_table):
    names, tables = ["n2", "n10", "n\u00b2", "n\u0663"], []
    for number, name in enumerate(names):
        document = make_table(1, (number,), "10.0.0.1")
        document["server_list"][0]["server_id"] = name
        tables.append(parse(document))
    assert [s.server_id for s in merge(tables).servers] == [s.server_id for s in merge(tables[::-1]).servers]
    assert [s.server_id for s in merge(tables).servers][:2] == ["n2", "n10"]


def conf(root, addresses):
    (root / "etc").mkdir(parents=True)
    lines = "".join(f"address_{card}={address}\nnetmask_{card}=255.255.0.0\n" for card, address in addresses.items())
    (root / "etc" / "hccn.conf").write_text(lines + "netdetect_0=1.2.3.4\n")
    return root


def test_hccn_conf_comes_next(tmp_path):
    root = conf(tmp_path, ADDRESSES)
    _, table, notes = generate(server_ip="10.0.0.1", root=root, environ={"PATH": ""})
    assert [d.device_ip for d in table.servers[0].devices] == list(ADDRESSES.values())
    assert "hccn.conf gave 8 addresses" in " ".join(notes)


def test_hccn_tool_is_asked_first(tmp_path, hccn):
    hccn(ADDRESSES)
    root = conf(tmp_path / "root", dict.fromkeys(range(8), "1.1.1.1"))
    _, table, _ = generate(server_ip="10.0.0.1", root=root)
    assert table.servers[0].devices[0].device_ip == ADDRESSES[0]


def test_visible_devices_are_physical(tmp_path):
    root = conf(tmp_path, ADDRESSES)
    name, table, _ = generate("[0,4)", "4,5,6,7", "10.0.0.1", root=root, environ={"PATH": ""})
    assert name == "hccl_4p_0123_10.0.0.1.json"
    assert next((d.device_id, d.device_ip, d.rank_id) for d in table.servers[0].devices) == (4, ADDRESSES[4], 0)


def test_no_address_is_ever_invented(tmp_path):
    with pytest.raises(Refused, match="no address was found for the card") as caught:
        generate(server_ip="10.0.0.1", root=tmp_path, environ={"PATH": ""})
    assert "hccn_tool" in str(caught.value) and "hccn.conf" in str(caught.value)
    root = conf(tmp_path / "few", {card: ADDRESSES[card] for card in range(7)})
    with pytest.raises(Refused, match=r"card\(s\) 7"):
        generate(server_ip="10.0.0.1", root=root, environ={"PATH": ""})


def test_a_hanging_hccn_tool_is_given_up(tmp_path, monkeypatch):
    tool = tmp_path / "hccn_tool"
    tool.write_text("#!/bin/sh\nsleep 60\n")
    tool.chmod(0o755)
    with pytest.raises(Refused, match=r"did not answer within 0.3 s"):
        generate(server_ip="10.0.0.1", root=tmp_path, environ={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, timeout=0.3)


@pytest.mark.parametrize(
    "bad",
    [
        "[3,6)",
        "[0,6)",
        "[2,8)",
        "[0,9)",
        "[4,4)",
        "[6,4)",
        "0-8",
        "",
        "[a,b)",
        "[0,3)",
        "[-1,4)",
        "[\u0660,\u0668)",
        "[0,9999)",
    ],
)
def test_bad_ranges_are_refused(bad):
    with pytest.raises(Refused, match="device_num"):
        device_range(bad)


def test_ranges():
    assert device_range("[4,8)") == device_range("[4,8]") == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "server_ip", ["10.0.0.300", "10.0.0", "1.2.3.4.5", "a b", "../x", "x\n", "n" * 65, "\u0661.1.1.1"]
)
def test_bad_server_addresses_are_refused(server_ip, tmp_path):
    with pytest.raises(Refused, match="server_ip"):
        generate(server_ip=server_ip, root=conf(tmp_path, ADDRESSES), environ={"PATH": ""})


@pytest.mark.parametrize("number", [0, -3, 17, 10**9])
def test_bad_numbers_of_cards_a_node_are_refused(number):
    with pytest.raises(Refused, match="device_num_per_node must be 1 to 16"):
        device_range("[0,1)", number)


@pytest.mark.parametrize("visible", ["", "0,0", "a", "0,1,2", "2,3,4,5", "\u0664,5,6,7", "4_4,5,6,7"])
def test_bad_visible_devices_are_refused(visible, tmp_path):
    with pytest.raises(Refused):
        generate("[0,4)", visible, "10.0.0.1", root=conf(tmp_path, ADDRESSES), environ={"PATH": ""})


def test_merging_refuses_what_upstream_lets_through(make_table, write):
    one, same = write(make_table(1), "a.json"), write(make_table(1), "b.json")
    with pytest.raises(Refused, match=r"server 10.0.0.1 is in .*a.json and in .*b.json"):
        merge_files([one, same])
    addresses = write(make_table(1, first="10.0.0.2"), "c.json")
    with pytest.raises(Refused, match=r"address 192.1.0.1 is in"):
        merge_files([one, addresses])
    document = make_table(1, (0, 1, 2, 3), "10.0.0.3")
    for card in document["server_list"][0]["device"]:
        card["device_ip"] = card["device_ip"].replace("192.", "172.")
    with pytest.raises(Refused, match="same number"):
        merge_files([one, write(document, "d.json")])


def test_the_result_of_an_earlier_merge_is_noticed(make_table, write, tmp_path):
    whole = parse(make_table(2))
    paths = [write_table(subset(whole, [s.server_id]), tmp_path / f"{s.server_id}.json") for s in whole.servers]
    merged = write_table(merge_files(paths), tmp_path / "hccl_2s_16p.json")
    with pytest.raises(Refused, match="earlier merge"):
        merge_files([*paths, merged])


def test_subset_renumbers_and_keeps_addresses(make_table):
    small = subset(parse(make_table(3)), 2, [4, 5, 6, 7])
    assert [s.server_id for s in small.servers] == ["10.0.0.1", "10.0.0.2"] and small.ranks == 8
    assert next((d.rank_id, d.device_id, d.device_ip) for d in small.servers[1].devices) == (4, 4, "192.1.0.4")


def test_subset_keeps_the_order_of_the_ranks_whatever_the_order_in_the_file(make_table):
    document = make_table(1)
    document["server_list"][0]["device"].reverse()
    assert [d.device_id for d in subset(parse(document), cards=[4, 5, 6, 7]).servers[0].devices] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("servers", "cards", "told"),
    [(4, None, "3 server"), (0, None, "3 server"), (["x"], None, "no server x"), (1, [9], "no card 9"),
     (1, [0, 1, 2], "1, 2, 4 or 8"), (1, [3, 4], "both groups"), (1, [], "none given")],
)  # fmt: skip
def test_impossible_subsets_are_refused(servers, cards, told, make_table):
    with pytest.raises(Refused, match=told):
        subset(parse(make_table(3)), servers, cards)


def test_generate_check_merge_subset_check(hccn, tmp_path):
    paths = []
    for number in (1, 2):
        hccn({card: f"192.{card % 4 + 1}.{number}.{card // 4 + 1}" for card in range(8)})
        name, table, _ = generate(server_ip=f"10.0.0.{number}")
        paths.append(write_table(table, tmp_path / name))
        assert not check(paths[-1], here=False).problems
    merged = write_table(merge_files(paths[::-1]), tmp_path / "hccl_2s_16p.json")
    assert not check(merged, here=False).problems
    for number, path in zip((1, 2), paths):
        part = subset(load(merged), [f"10.0.0.{number}"])
        assert write_table(part, tmp_path / "part.json").read_bytes() == path.read_bytes()
        assert not check(tmp_path / "part.json", here=False).problems
