"""Real rank tables (from documentation and public repositories), and a fake hccn_tool that prints like the real one."""

import json
import os
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture(autouse=True)
def no_platform(monkeypatch):
    """No variable of a real platform reaches these tests."""
    for name in list(os.environ):
        if name.startswith(("RANK_", "MA_", "VC_", "BATCH_", "DEVICE_ID", "ASCEND_", "DLS_")):
            monkeypatch.delenv(name)


@pytest.fixture
def sample():
    """The parsed JSON of a sample."""
    return lambda name: json.loads((SAMPLES / f"{name}.json").read_text())


@pytest.fixture
def sample_path():
    """The path of a sample."""
    return lambda name: SAMPLES / f"{name}.json"


@pytest.fixture
def make_table():
    """A valid v1.0 document with some servers and cards, with addresses in four NIC planes."""

    def make(servers=1, cards=(0, 1, 2, 3, 4, 5, 6, 7), first="10.0.0.1"):
        head, last = first.rsplit(".", 1)
        entries, rank = [], 0
        for number in range(servers):
            devices = []
            for card in cards:
                device_ip = f"192.{card % 4 + 1}.{number // 100}.{(number % 100) * 2 + card // 4 + 1}"
                devices.append({"device_id": str(card), "device_ip": device_ip, "rank_id": str(rank)})
                rank += 1
            entries.append({"server_id": f"{head}.{int(last) + number}", "device": devices, "host_nic_ip": "reserve"})
        return {"version": "1.0", "server_count": str(servers), "server_list": entries, "status": "completed"}

    return make


@pytest.fixture
def write(tmp_path):
    """Write a document as JSON and return its path."""

    def write(document, name="table.json", folder=None):
        path = (folder or tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document) if not isinstance(document, str) else document, encoding="utf-8")
        return path

    return write


@pytest.fixture
def hccn(tmp_path, monkeypatch):
    """Put a fake hccn_tool on PATH that answers ``-i N -ip -g`` as the real one does; returns a function to do so."""

    def install(addresses, link="UP"):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        lines = ["#!/bin/sh", 'case "$2" in']
        for number, address in addresses.items():
            lines.append(f'{number}) echo "ipaddr:{address}"; echo "netmask:255.255.255.0";;')
        lines += ['*) echo "invalid device" >&2; exit 1;;', "esac"]
        tool = folder / "hccn_tool"
        tool.write_text("\n".join(lines) + "\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return tool

    return install
