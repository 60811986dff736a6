"""Readers of npu-smi, hccn_tool, hccn.conf and version files, on real output."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlib.ascend import (
    cann,
    chips,
    device_nodes,
    driver,
    family,
    firmware,
    npu_info,
    parse_hccn_conf,
    parse_info,
    parse_ip,
    parse_keyed,
    run_tool,
    under,
)
from qwenlib.ascend.hccn import parse_link, parse_net_health, parse_tls

A2 = """
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                             |
| 0     910B1               | OK            | 271.1       41                0    / 0             |
| 0                         | 0000:C1:00.0  | 55          0    / 0          65099/ 65536         |
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 0       0                 | 1333928       |                          | 37709                   |
"""
PLAIN_B = """
| 0     910B                | OK            | 71.1        41                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           2382 / 15038      0    / 32768         |
"""
NARROW = """
| npu-smi 22.0.4.1     Version: 22.0.4.1 |
| NPU  Name | Health | Power(W) Temp(C) Hugepages-Usage(page) |
| Chip | Bus-Id | AICore(%) Memory-Usage(MB) HBM-Usage(MB) |
| 0 910ProB | Warning | NA 39 0 / 0 |
| 0 | 0000:C1:00.0 | 0 1413/15137 3/32768 |
"""


def test_eight_busy_cards(sample):
    info = parse_info(sample("npu_smi_8x910PremiumA_busy.txt"))
    assert info.version == "23.0.rc2" and len(info.cards) == len(info.processes) == 8
    first = info.cards[0]
    assert (first.npu, first.name, first.health, first.power_w, first.temperature_c) == (
        0,
        "910PremiumA",
        "OK",
        143.7,
        39,
    )
    assert (first.bus_id, first.aicore_percent, first.ddr_used, first.ddr_total) == ("0000:C1:00.0", 11, 1413, 15137)
    assert (first.hbm_used, first.hbm_total) == (31842, 32768)
    assert info.occupied()[7] == "pid 5153 (python) with 31912 MB"


def test_one_idle_card_whose_number_is_3(sample):
    info = parse_info(sample("npu_smi_1x910A_npu3_idle.txt"))
    assert [(card.npu, card.name, card.hbm_used) for card in info.cards] == [(3, "910A", 0)]
    assert info.processes == () and info.occupied() == {}


def test_other_layouts():
    info = parse_info(A2)
    assert (info.cards[0].hbm_used, info.processes[0].pid, info.processes[0].name) == (65099, 1333928, "")
    card = parse_info(NARROW).cards[0]
    assert (card.name, card.health, card.power_w, card.hbm_used, card.ddr_total) == (
        "910ProB",
        "Warning",
        None,
        3,
        15137,
    )


def test_memory_held_by_nobody_listed_is_still_occupied():
    text = PLAIN_B.replace("0    / 32768", "30000/ 32768")
    assert "not listed" in parse_info(text).occupied()[0]


@pytest.mark.parametrize(
    ("name", "key"),
    [("910PremiumA", "910A"), ("910ProA", "910A"), ("910A", "910A"), ("910ProB", "910A"), ("910B", "910A"),
     ("910B1", "A2"), ("910B2C", "A2"), ("910B3", "A2"), ("910B4-1", "A2"), ("9391", "A3"), ("310P3", "other"),
     ("Ascend910B", "910A"), ("Ascend910B2", "A2"), ("911", "unknown"), ("", "unknown"), ("910BX", "unknown")],
)  # fmt: skip
def test_families(name, key):
    assert family(name).key == key


def test_plain_b_is_first_generation_by_its_ddr():
    card = parse_info(PLAIN_B).cards[0]
    assert chips.family(card.name, card.ddr_total).key == "910A"
    assert chips.family("910B", 0).key == "unknown"


def test_keyed_output(sample):
    found = parse_keyed(sample("npu_smi_t.txt"))
    assert found["Health Status"] == "OK" and found["Firmware Version"] == "7.1.0.7.220"
    assert found["PCI Device ID"] == "0xD801" and found["HBM Capacity(MB)"] == "32768"
    assert found["PCIe Bus Info"] == "0000:61:00.0" and found["HBM Double Bit Error Count"] == "0"


def test_hccn_output(sample):
    text = sample("hccn_tool.txt")
    assert (parse_link(text), parse_net_health(text), parse_tls(text)) == ("UP", "Init", "0")
    assert parse_ip("ipaddr:192.1.27.6\nnetmask:255.255.255.0\n") == "192.1.27.6"
    assert parse_ip(text) == ""  # the published sample is anonymised: 10.xx.xx.10 is no address
    assert parse_hccn_conf(sample("hccn.conf")) == {0: "1.1.1.0", 7: "1.1.1.7"}


def test_version_files(tmp_path, sample, fake_root):
    root = fake_root(cann="8.1.RC1")
    assert driver(root).version == "24.1.rc1" and driver(root).extra == "[7.0.0,7.2.99]"
    path = root / "usr/local/Ascend/driver/version.info"
    path.write_text(path.read_text() + "package_version=24.1.rc2.2\n")
    assert driver(root).version == "24.1.rc2.2" and firmware(root).version == ""
    found = cann(root, {})
    assert found.version == "8.1.RC1" and found.source.endswith("ascend_toolkit_install.info")


def test_ascend_home_path_is_looked_at_first(fake_root):
    root = fake_root()
    home = root / "opt/cann/compiler"
    home.mkdir(parents=True)
    (home / "version.info").write_text("Version=7.1.0.3.220\n")
    (home.parent / "ascend_toolkit_install.info").write_text("version=7.0.0\n")
    found = cann(root, {"ASCEND_HOME_PATH": "/opt/cann"})
    assert (found.version, found.extra) == ("7.0.0", "7.1.0.3.220") and "/opt/cann" in found.source


def test_the_driver_may_be_installed_elsewhere(fake_root):
    root = fake_root()
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/ascend_install.info").write_text("Driver_Install_Path_Param=/opt/Ascend\n")
    (root / "opt/Ascend/driver").mkdir(parents=True)
    (root / "opt/Ascend/driver/version.info").write_text("Version=23.0.0\n")
    assert driver(root).version == "23.0.0"


def test_device_nodes(fake_root):
    assert device_nodes(fake_root("one")) == [3]


def test_paths_below_a_root(tmp_path):
    assert str(under(tmp_path, "/a/b")) == f"{tmp_path}/a/b" == str(under(tmp_path, f"{tmp_path}/a/b"))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("echo 'dcmi module initialize failed. ret is -8005'; exit 255", "-8005"),
        ("echo 'dcmi module initialize failed. ret is -8005'", "-8005"),
        ("printf '\\377\\376|||\\n| x |'", "no card could be read"),
        ("exit 0", "it said: nothing"),
    ],
)
def test_a_failing_tool_is_told(body, told, tmp_path):
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    info = npu_info("/", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert told in info.problem and info.cards == () and info.found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_hanging_tool_is_ended_with_its_children(tmp_path):
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/child\nsleep 60\n")
    tool.chmod(0o755)
    environ, noted, begun = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, tmp_path / "child", time.monotonic()
    for seconds in (0.5, 4.0, 16.0):
        answer = run_tool("npu-smi", ["info"], environ=environ, timeout=seconds)
        assert f"did not answer within {seconds:g} s" in answer.problem
        if noted.exists() and noted.read_text().strip():  # else: the machine stood still before the tool had begun
            break
    assert time.monotonic() - begun < 55, "it was ended, and did not end by itself"
    child, until = noted.read_text().strip(), time.monotonic() + 20
    while alive(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(child)


def test_a_tool_that_cannot_be_run(tmp_path):
    tool = tmp_path / "npu-smi"
    tool.write_bytes(b"\x7fELF not really")
    tool.chmod(0o755)
    assert "cannot be run" in npu_info("/", {"PATH": str(tmp_path)}).problem
    assert not npu_info(tmp_path / "empty", {"PATH": ""}).found


@pytest.mark.parametrize("digits", ["9" * 5000, "\u00b2", "\u0663"])
def test_odd_digits_in_a_table(digits, sample):
    text = sample("npu_smi_8x910PremiumA_busy.txt")
    for old in ("5139", "31913", "31842", "15137", "| 7     910"):
        info = parse_info(text.replace(old, old.replace("7", digits) if "|" in old else digits))
        assert info.cards and info.occupied() is not None
    assert parse_hccn_conf(f"address_{digits}=1.1.1.1\n") == {}


LINES = st.lists(
    st.sampled_from([*A2.splitlines(), *PLAIN_B.splitlines(), *NARROW.splitlines(), "|", "|||", "| a | b |"])
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=300), LINES.map("\n".join), st.text(alphabet="|0 /9AO:.\n", max_size=200)))
def test_no_text_gives_a_traceback(text):
    info = parse_info(text)
    assert bool(info.cards) != bool(info.problem)
    info.occupied()
    parse_keyed(text), parse_ip(text), parse_hccn_conf(text)
