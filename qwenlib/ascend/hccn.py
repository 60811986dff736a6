"""Addresses of the cards' network ports: ``hccn_tool -i N -ip -g`` and ``/etc/hccn.conf``. N is the physical id."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Dict, List, Mapping, Sequence, Tuple, Union

from qwenlib.ascend.tools import TIMEOUT, run_tool


def is_ip(text: str) -> bool:
    """Whether ``text`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_ip(text: str) -> str:
    """The address in the output of ``hccn_tool -i N -ip -g`` ("" when there is none)."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip().lower() in ("ipaddr", "ipaddr6") and is_ip(value.strip()):
            return value.strip()
    return ""


def parse_link(text: str) -> str:
    """UP, DOWN or "" from ``hccn_tool -i N -link -g``."""
    match = re.search(r"link status\s*:\s*(\w+)", text)
    return match.group(1).upper() if match else ""


def parse_net_health(text: str) -> str:
    """Success, Init, Socket fail, … from ``hccn_tool -i N -net_health -g`` ("" when there is none)."""
    match = re.search(r"net health status\s*:\s*(\S[^\n]*)", text)
    return match.group(1).strip() if match else ""


def parse_tls(text: str) -> str:
    """The TLS switch "0" or "1" from ``hccn_tool -i N -tls -g``; it must be the same on all nodes ("" unknown)."""
    match = re.search(r"tls switch\[(\d)\]", text)
    return match.group(1) if match else ""


def parse_hccn_conf(text: str) -> Dict[int, str]:
    """``{physical id: address}`` from the ``address_N=IP`` lines of hccn.conf; everything else is ignored."""
    found: Dict[int, str] = {}
    for line in text.splitlines():
        match = re.match(r"\s*address_([0-9]{1,6})\s*=\s*(\S+)\s*$", line)
        if match and is_ip(match.group(2)):
            found[int(match.group(1))] = match.group(2)
    return found


def read_hccn_conf(root: Union[str, Path] = "/") -> Tuple[Dict[int, str], str]:
    """Addresses from ``/etc/hccn.conf`` and, when there are none, the reason."""
    path = Path(root) / "etc" / "hccn.conf"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}, f"there is no {path}"
    except OSError as error:
        return {}, f"{path} cannot be read: {error.strerror}"
    found = parse_hccn_conf(text)
    return found, "" if found else f"{path} has no address_N line"


def device_ips(
    ids: Sequence[int],
    root: Union[str, Path] = "/",
    environ: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
) -> Tuple[Dict[int, str], List[str]]:
    """Addresses of the cards ``ids`` (physical), and how they were found or why not, one sentence a source.

    hccn_tool is asked first. When it misses a card, hccn.conf is read and what it says wins, as in upstream's
    ``hccl_tools.py``. No address is ever made up: a card without one is simply absent from the result.
    """
    found: Dict[int, str] = {}
    said: List[str] = []
    for number in ids:
        answer = run_tool("hccn_tool", ["-i", str(number), "-ip", "-g"], root, environ, timeout)
        address = parse_ip(answer.output)
        if address:
            found[number] = address
            continue
        said.append(answer.problem or f"{answer.path} -i {number} -ip -g gave no address")
        if not answer.found or "did not answer" in answer.problem:
            break
    if len(found) == len(ids):
        return found, [f"hccn_tool gave the addresses of {len(found)} cards"]
    conf, why = read_hccn_conf(root)
    found.update({number: address for number, address in conf.items() if number in ids})
    said.append(why or f"{Path(root) / 'etc' / 'hccn.conf'} gave {len(conf)} addresses")
    return found, said
