"""Read ``npu-smi info`` and ``npu-smi info -t …``.

The table is split on ``|``, never on fixed columns: layouts differ between drivers (22.0 to 24.1), ``31842/ 32768``
comes without a space, process names may be blank and process ids may be those of the host.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple, Union

from qwenlib.ascend.tools import TIMEOUT, run_tool

FREE_HBM_MB = 200
"""A card with less HBM in use than this, and no process, is free (drivers hold 0 to 18 MB themselves)."""


@dataclass(frozen=True)
class Card:
    """One chip of ``npu-smi info``; sizes in MB, None where the table did not say."""

    npu: int
    name: str
    health: str
    chip: int = 0
    bus_id: str = ""
    power_w: Optional[float] = None
    temperature_c: Optional[float] = None
    aicore_percent: Optional[float] = None
    ddr_used: Optional[int] = None
    ddr_total: Optional[int] = None
    hbm_used: Optional[int] = None
    hbm_total: Optional[int] = None


@dataclass(frozen=True)
class Process:
    """One row of the process table; ``pid`` may be a pid of the host, ``name`` may be blank."""

    npu: int
    chip: int
    pid: int
    name: str
    memory_mb: Optional[int]


@dataclass(frozen=True)
class NpuInfo:
    """A whole ``npu-smi info``; ``problem`` says why there are no cards."""

    version: str = ""
    cards: Tuple[Card, ...] = ()
    processes: Tuple[Process, ...] = ()
    problem: str = ""
    found: bool = True
    """False when there is no npu-smi at all."""

    def occupied(self) -> Dict[int, str]:
        """``{npu: by whom}`` of every card that has a process or more HBM in use than an idle driver holds."""
        result: Dict[int, str] = {}
        for card in self.cards:
            by = [p for p in self.processes if (p.npu, p.chip) == (card.npu, card.chip)]
            if by:
                result[card.npu] = ", ".join(
                    f"pid {p.pid}{f' ({p.name})' if p.name else ''} with {p.memory_mb} MB" for p in by
                )
            elif (card.hbm_used or 0) >= FREE_HBM_MB:
                result[card.npu] = f"{card.hbm_used} MB in use by a process not listed here (another container?)"
        return result


def parse_info(text: str) -> NpuInfo:
    """Read the table of ``npu-smi info``. Garbage gives an :class:`NpuInfo` with a ``problem``, never an exception."""
    version = ""
    cards: List[Card] = []
    processes: List[Process] = []
    draft: Optional[Dict[str, object]] = None
    for line in text.splitlines():
        match = re.search(r"\|\s*npu-smi\s+(\S+)\s+Version:\s*(\S+)", line)
        if match:
            version = match.group(2)
            continue
        if not line.lstrip().startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4:
            process = _process(cells)
            if process:
                processes.append(process)
        elif len(cells) == 3 and re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]", cells[1]):
            if draft is not None:
                cards.append(_card(draft, cells))
                draft = None
        elif len(cells) == 3:
            draft = _first_row(cells)
    if not cards:
        said = " ".join(text.split())[:160] or "nothing"
        return NpuInfo(version, problem=f"no card could be read from npu-smi info; it said: {said}")
    return NpuInfo(version, tuple(cards), tuple(processes))


def _first_row(cells: List[str]) -> Optional[Dict[str, object]]:
    match = re.fullmatch(r"([0-9]{1,6})\s+(\S+)", cells[0])
    if not match:
        return None
    numbers = re.match(r"([\d.]+|\S+)\s+([\d.]+|\S+)", cells[2])
    return {
        "npu": int(match.group(1)),
        "name": match.group(2),
        "health": cells[1],
        "power_w": _float(numbers.group(1)) if numbers else None,
        "temperature_c": _float(numbers.group(2)) if numbers else None,
    }


def _card(draft: Dict[str, object], cells: List[str]) -> Card:
    pairs = [(int(a), int(b)) for a, b in re.findall(r"(?<![0-9])([0-9]{1,9})\s*/\s*([0-9]{1,9})(?![0-9])", cells[2])]
    hbm: Tuple[Optional[int], Optional[int]] = pairs[-1] if pairs else (None, None)
    ddr: Tuple[Optional[int], Optional[int]] = pairs[0] if len(pairs) > 1 else (None, None)
    first = cells[2].split()
    chip = re.match("[0-9]{1,6}", cells[0])
    return Card(
        chip=int(chip.group()) if chip else 0,
        bus_id=cells[1],
        aicore_percent=_float(first[0]) if first else None,
        ddr_used=ddr[0],
        ddr_total=ddr[1],
        hbm_used=hbm[0],
        hbm_total=hbm[1],
        **draft,  # type: ignore[arg-type]
    )


def _process(cells: List[str]) -> Optional[Process]:
    where = re.fullmatch(r"([0-9]{1,6})\s+([0-9]{1,6})", cells[0])
    if not where or not re.fullmatch("[0-9]{1,18}", cells[1]):
        return None
    memory = int(cells[3]) if re.fullmatch("[0-9]{1,9}", cells[3]) else None
    return Process(int(where.group(1)), int(where.group(2)), int(cells[1]), cells[2], memory)


def _float(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None


def parse_keyed(text: str) -> Dict[str, str]:
    """``{key: value}`` of the ``key : value`` lines of ``npu-smi info -t health|board|usages|ecc``."""
    found: Dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip():
            found.setdefault(key.strip(), value.strip())
    return found


def npu_info(
    root: Union[str, Path] = "/", environ: Mapping[str, str] = os.environ, timeout: float = TIMEOUT
) -> NpuInfo:
    """Run ``npu-smi info`` (20 s at most) and read it."""
    answer = run_tool("npu-smi", ["info"], root, environ, timeout)
    if answer.problem:
        return NpuInfo(problem=answer.problem, found=answer.found)
    return parse_info(answer.output)
