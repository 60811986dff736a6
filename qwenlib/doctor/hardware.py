"""Checks of cards, driver and CANN."""

from __future__ import annotations

import os
from typing import Dict, Iterator, List

from qwenlib.ascend import chips, versions
from qwenlib.ascend.devices import device_nodes, missing_managers, visible_devices
from qwenlib.ascend.hccn import parse_link, parse_tls
from qwenlib.ascend.npu_smi import parse_keyed
from qwenlib.ascend.tools import run_tool
from qwenlib.doctor.context import Context
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN, Finding
from qwenlib.doctor.versions_table import CANN

HBM_910A_MB = 32768


def chip_family(context: Context) -> Iterator[Finding]:
    """Which chips, and whether they are first-generation 910."""
    npu = context.npu
    if not npu.cards:
        if context.ascend:
            yield Finding("chips", FAIL, f"no Ascend card was found: {npu.problem}; device_target is Ascend")
        elif npu.found:
            yield Finding("chips", WARN, f"npu-smi is here but of no use: {npu.problem}; the profile runs on the CPU")
        else:
            yield Finding("chips", SKIP, "no Ascend here (there is no npu-smi); the profile runs on the CPU")
        return
    names = sorted({card.name for card in npu.cards})
    kinds = {card.npu: chips.family(card.name, card.ddr_total) for card in npu.cards}
    keys = {kind.key for kind in kinds.values()}
    text = f"{len(npu.cards)} x {', '.join(names)} (npu ids {_list([card.npu for card in npu.cards])}); "
    text += "; ".join(sorted({kind.text for kind in kinds.values()}))
    small = [card.npu for card in npu.cards if card.hbm_total and card.hbm_total < HBM_910A_MB]
    needed = context.local_ranks
    if not context.ascend:
        yield Finding("chips", OK, f"{text}; the profile does not use them")
    elif keys != {"910A"}:
        yield Finding("chips", WARN, f"{text}; the shipped profiles are for the 910A family only")
    elif len(npu.cards) < needed:
        yield Finding("chips", FAIL, f"{text}; the profile starts {needed} ranks on a server and needs as many cards")
    elif small:
        yield Finding("chips", WARN, f"{text}; npu {_list(small)} has less than {HBM_910A_MB} MB HBM")
    else:
        yield Finding("chips", OK, text)


def health(context: Context) -> Iterator[Finding]:
    """The health column of npu-smi."""
    if not context.npu.cards:
        yield Finding("chip health", SKIP, "no card could be read")
        return
    ill = [card for card in context.npu.cards if card.health != "OK"]
    if not ill:
        yield Finding("chip health", OK, f"{_all(len(context.npu.cards))} OK")
        return
    worst = any(card.health in ("Alarm", "Critical") for card in ill)
    told = "; ".join(f"npu {card.npu}: {card.health}{_why_ill(card.npu, context)}" for card in ill)
    yield Finding("chip health", FAIL if worst else WARN, told)


def _why_ill(npu: int, context: Context) -> str:
    answer = run_tool(
        "npu-smi", ["info", "-t", "health", "-i", str(npu)], context.root, context.environ, context.timeout
    )
    found = parse_keyed(answer.output)
    parts = [found.get(key, "") for key in ("Error Code", "Error Information")]
    known = [part for part in parts if part and part != "NA"]
    return f" ({', '.join(known)})" if known else ""


def hbm(context: Context) -> Iterator[Finding]:
    """HBM in use, and by whom; cards that another job occupies."""
    cards = context.npu.cards
    if not cards:
        yield Finding("HBM in use", SKIP, "no card could be read")
        yield Finding("occupied cards", SKIP, "no card could be read")
        return
    used = "; ".join(f"npu {c.npu}: {c.hbm_used}/{c.hbm_total} MB" for c in cards if c.hbm_used is not None)
    yield Finding("HBM in use", OK if used else WARN, used or "npu-smi gave no HBM column")
    occupied = context.npu.occupied()
    if occupied:
        text = "; ".join(f"npu {number}: {by}" for number, by in sorted(occupied.items()))
        host = [p.pid for p in context.npu.processes if not os.path.isdir(context.root / "proc" / str(p.pid))]
        if host:
            text += (
                f"; pid {_list(host[:8])} is not in this container's /proc: a pid of the host, or another container's"
            )
        text += ". End that work first (and wait 10 s), or the ranks fail with EJ0001"
        yield Finding("occupied cards", FAIL if context.ascend else WARN, text)
    else:
        yield Finding("occupied cards", OK, f"{_all(len(cards))} free")


def links(context: Context) -> Iterator[Finding]:
    """State of the cards' network ports, and the TLS switch (it must be the same on all nodes)."""
    name = "NIC links"
    if not context.ascend or context.ranks == 1:
        yield Finding(name, SKIP, "concerns several ranks on Ascend")
        return
    states: Dict[int, str] = {}
    switches = set()
    for number in device_nodes(context.root):
        link = ["-i", str(number), "-link", "-g"]
        answer = run_tool("hccn_tool", link, context.root, context.environ, context.timeout)
        if not answer.found or "did not answer" in answer.problem:
            yield Finding(name, SKIP, f"not checked: {answer.problem} (usual in notebook containers)")
            return
        states[number] = parse_link(answer.output) or "unknown"
        tls = run_tool("hccn_tool", ["-i", str(number), "-tls", "-g"], context.root, context.environ, context.timeout)
        switches.add(parse_tls(tls.output))
    down = [number for number, state in states.items() if state == "DOWN"]
    unknown = [number for number, state in states.items() if state == "unknown"]
    tls_text = "; TLS switch " + ", ".join(sorted(filter(None, switches))) if any(switches) else ""
    if not states:
        yield Finding(name, SKIP, "not checked: no card is mapped into here")
    elif down:
        several = context.ranks > 8
        text = (
            f"card {_list(down)} is DOWN: {'HCCL fails with EJ0002' if several else 'one server works, several do not'}"
        )
        yield Finding(name, FAIL if several else WARN, text + tls_text)
    elif len([switch for switch in switches if switch]) > 1:
        yield Finding(name, FAIL, f"the TLS switch differs between cards{tls_text}: EI0016 or EI0006 will follow")
    elif unknown:
        yield Finding(name, SKIP, f"not checked: hccn_tool said nothing about card {_list(unknown)}")
    else:
        yield Finding(name, OK, f"UP on {len(states)} cards{tls_text}")


def nodes(context: Context) -> Iterator[Finding]:
    """``/dev/davinci*`` against npu-smi, MA_NUM_GPUS and the variables that renumber."""
    found = device_nodes(context.root)
    if not found:
        if context.ascend:
            yield Finding(
                "device nodes", FAIL, f"there is no {context.root / 'dev'}/davinciN: no card is mapped into here"
            )
        else:
            yield Finding("device nodes", SKIP, "no /dev/davinciN; the profile runs on the CPU")
        return
    notes: List[str] = []
    missing = missing_managers(context.root)
    if missing:
        notes.append(f"missing: {', '.join(missing)}")
    if context.npu.cards and len(context.npu.cards) != len(found):
        notes.append(f"npu-smi shows {len(context.npu.cards)} cards, /dev {len(found)}")
    told = context.environ.get("MA_NUM_GPUS", "")
    if told and told.strip() != str(len(found)):
        notes.append(f"MA_NUM_GPUS says {told[:20]}")
    if visible_devices(context.environ):
        notes.append(f"ASCEND_RT_VISIBLE_DEVICES={visible_devices(context.environ)} renumbers logical ids")
    text = f"davinci {_list(found)} (physical ids; DEVICE_ID counts from 0)"
    yield Finding("device nodes", WARN if notes else OK, "; ".join([text, *notes]))


def software(context: Context) -> Iterator[Finding]:
    """Driver, firmware and CANN."""
    driver, firmware = versions.driver(context.root), versions.firmware(context.root)
    cann = versions.cann(context.root, context.environ)
    if not context.ascend and not (driver.version or cann.version):
        for name in ("driver", "firmware", "CANN"):
            yield Finding(name, SKIP, "no Ascend software here; the profile runs on the CPU")
        return
    smi = context.npu.version
    if driver.version:
        yield Finding("driver", OK, f"{driver.version} ({driver.source})")
    elif smi:
        yield Finding("driver", OK, f"{smi} (from npu-smi; {driver.source} is not here, as usual in containers)")
    else:
        yield Finding("driver", WARN, f"unknown: no {driver.source}")
    if firmware.version and versions.outside(firmware.version, driver.extra):
        text = f"{firmware.version} is outside {driver.extra}, which driver {driver.version} works with"
        yield Finding("firmware", WARN, text)
    elif firmware.version:
        yield Finding("firmware", OK, f"{firmware.version} ({firmware.source})")
    else:
        yield _asked_firmware(context, firmware.source)
    if not cann.version and not cann.extra:
        yield Finding("CANN", FAIL if context.ascend else SKIP, f"not found in {cann.source}")
    elif cann.version.startswith(CANN) or (not cann.version and cann.extra.startswith("7.1")):
        yield Finding("CANN", OK, f"{cann.version or 'compiler ' + cann.extra} ({cann.source})")
    else:
        shown = cann.version or f"compiler {cann.extra}"
        yield Finding(
            "CANN", FAIL if context.ascend else WARN, f"{shown} ({cann.source}); MindSpore 2.2.13 needs {CANN[0]}"
        )


def _asked_firmware(context: Context, source: str) -> Finding:
    """The firmware that the first card tells: the installer's file is not in a container."""
    if context.npu.cards:
        board = ["info", "-t", "board", "-i", str(context.npu.cards[0].npu)]
        answer = run_tool("npu-smi", board, context.root, context.environ, context.timeout)
        version = parse_keyed(answer.output).get("Firmware Version", "")
        if version:
            return Finding("firmware", OK, f"{version} (from npu-smi; {source} is not here, as usual in containers)")
    return Finding("firmware", SKIP, f"not checked: no {source} (usual in containers)")


def _all(count: int) -> str:
    return f"all {count} cards are" if count > 1 else "the card is"


def _list(numbers: List[int]) -> str:
    return ", ".join(map(str, numbers))
