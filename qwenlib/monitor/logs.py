"""Which logs a run directory holds, and whose they are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.launch import read_status

_LOG = re.compile(r".*\.log(\.\d+)?$|.*proc-rank-\d+.*\.txt$")
_RANK = re.compile(r"(?:^|[/_.-])(?:proc-)?(?:rank|worker)[_-](\d+)(?=$|[/_.-])")
_PLOG = re.compile(r"(?:plog|device)-(\d+)_\d+\.log(?:\.\d+)?$")
_NOT_IN = {"earlier", "configs", "output.previous", "kernel_meta", "supervisor.log"}
_MOST_FILES = 4096


@dataclass(frozen=True)
class Log:
    """One log of a run. ``rank`` None: nothing says whose it is (the scheduler's, for example)."""

    path: Path
    rank: Optional[int]


def find_run(folder: Union[str, Path]) -> Path:
    """The run directory that is meant: ``folder`` itself, or the stage below it that failed last.

    Raises:
        Refused: no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"there is no run directory {folder}.")
    if read_status(folder) is not None or next(_walk(folder), None) is not None:
        return folder
    runs = [(path.parent, read_status(path.parent)) for path in sorted(folder.glob("*/launch.json"))]
    states = [(path, status) for path, status in runs if status is not None]
    if not states:
        raise Refused(
            f"{folder} holds no run: neither launch.json nor logs of ranks (rank_N/rank.log, output/log/rank_N). Give "
            "the stage's folder, e.g. runs/smoke/04_lora."
        )
    failed = [(path, status) for path, status in states if status.get("state") not in ("done", "running", "starting")]
    return max(failed or states, key=lambda item: number(item[1].get("started")) or 0.0)[0]


def find_logs(run_dir: Path, status: Optional[Dict[str, Any]] = None) -> List[Log]:
    """All logs of a run: ``rank_N/``, MindFormers' ``output/log/rank_N/``, plog; not those of earlier launches.

    The driver's plog of the run's processes is found in ``ASCEND_PROCESS_LOG_PATH`` and ``~/ascend/log``, too.
    """
    ranks = {entry["pid"]: entry["rank"] for entry in entries(status) if isinstance(entry.get("pid"), int)}
    found = [Log(path, _rank(path.relative_to(run_dir).as_posix(), ranks)) for path in _walk(run_dir)]
    homes = {os.environ.get("ASCEND_PROCESS_LOG_PATH", ""), str(Path.home() / "ascend" / "log")} - {""}
    for home in sorted(homes) if ranks else []:
        if Path(home).is_dir() and run_dir not in Path(home).parents:
            for path in _walk(Path(home)):
                pid = _PLOG.search(path.name)
                since = number((status or {}).get("started")) or 0.0
                if pid and int(pid[1]) in ranks and path.stat().st_mtime >= since:
                    found.append(Log(path, ranks[int(pid[1])]))
    return found


def entries(status: Optional[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The ranks of a ``launch.json`` that can be used: with a whole number as rank, and a number or None as time."""
    found = (status or {}).get("ranks")
    return [
        {**entry, "finished": number(entry.get("finished"))}
        for entry in (found if isinstance(found, list) else [])
        if isinstance(entry, dict) and type(entry.get("rank")) is int
    ]


def number(value: Any) -> Optional[float]:
    """``value`` as a finite number, or None."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return float(value) if fits else None


def _walk(folder: Path) -> Iterator[Path]:
    """Logs below a folder, sorted; other runs inside it (with a ``launch.json`` of their own) are left out."""
    count = 0
    for place, folders, files in os.walk(folder):
        if Path(place) != folder and "launch.json" in files:
            folders[:] = []
            continue
        folders[:] = sorted(name for name in folders if name not in _NOT_IN and not name.startswith("."))
        for name in sorted(files):
            if _LOG.match(name) and name not in _NOT_IN and count < _MOST_FILES:
                count += 1
                yield Path(place, name)


def _rank(name: str, ranks: Dict[int, int]) -> Optional[int]:
    said = _RANK.findall(name)
    if said:
        return int(said[0])
    plog = _PLOG.search(name)
    return ranks.get(int(plog[1])) if plog else None


def servers(run_dir: Path) -> Dict[int, str]:
    """``{rank: server_id}`` by the rank table of the launch (``spec.json``); {} without one."""
    from qwenlib import ranktable
    from qwenlib.files import read_json

    try:
        names = [
            process.get("env", {}).get("RANK_TABLE_FILE") for process in read_json(run_dir / "spec.json")["processes"]
        ]
        table = ranktable.load(next(name for name in names if name))
    except (Refused, StopIteration, OSError, KeyError, TypeError, AttributeError):
        return {}
    return {device.rank_id: server.server_id for server in table.servers for device in server.devices}


def rank_errors(run_dir: Path) -> Iterator[Tuple[int, Path, Dict[str, Any]]]:
    """What each rank's program left in ``rank_N/error.json``."""
    from qwenlib.launch.failure import ERROR_FILE, read_error

    for path in sorted(run_dir.glob(f"rank_*/{ERROR_FILE}")):
        number, error = path.parent.name[5:], read_error(path.parent)
        if number.isdigit() and error is not None:
            yield int(number), path, error
