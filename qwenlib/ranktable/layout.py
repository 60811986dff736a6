"""From a profile and a machine to the layout of the ranks: find, wait for or generate the table; check; who am I."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple, Union

from qwenlib.ascend.devices import device_nodes
from qwenlib.errors import Refused, WorkFailed
from qwenlib.profile import Profile
from qwenlib.ranktable.check import CheckReport, check
from qwenlib.ranktable.find import find
from qwenlib.ranktable.generate import generate, write_table
from qwenlib.ranktable.model import RankTable
from qwenlib.ranktable.rules import brief
from qwenlib.ranktable.wait import TIMEOUT, look, wait_for
from qwenlib.ranktable.whoami import PER_RANK, SCRUB, Me, rank_environments, who_am_i


@dataclass(frozen=True)
class Layout:
    """What the launch needs to know. ``path`` "" : the ranks are started without a rank table."""

    reason: str
    ranks: int
    path: str = ""
    table: Optional[RankTable] = None
    me: Optional[Me] = None
    environments: List[Dict[str, str]] = field(default_factory=list)
    report: Optional[CheckReport] = None
    scrub: List[str] = field(default_factory=list)
    """Variables of the platform that the ranks must not inherit."""

    @property
    def device_ids(self) -> List[int]:
        """Logical card of each rank of this host, in rank order ([] on the CPU)."""
        return [int(item["DEVICE_ID"]) for item in self.environments]

    @property
    def first_rank(self) -> int:
        """Global number of this host's first rank."""
        return int(self.environments[0].get("RANK_ID", "0")) if self.environments else 0

    def text(self, width: int = 0) -> str:
        """The layout in sentences, folded at ``width`` columns (0: not at all)."""
        lines = [self.reason]
        if self.report is not None:
            lines += [item.text() for item in self.report.problems]
            lines.append(f"sha256 {self.report.sha256} (must be the same on every node)")
        if self.me is not None:
            who = self.me.server.server_id if self.me.server else "none of the servers"
            lines.append(f"this host is {who}: {self.me.reason}")  # its warning is a problem of the report
        if self.scrub:
            lines.append(f"taken away from the ranks' environment: {', '.join(self.scrub)}")
        if width > 40:
            fold = textwrap.TextWrapper(width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
            lines = [part for line in lines for part in fold.wrap(line)]
        return "\n".join(lines)


def planned_ranks(profile: Profile) -> int:
    """The most ranks that a training task of the profile starts (1 when it has none)."""
    return max([profile.task(name).parallel.ranks for name in profile.tasks()] or [1])


def resolve_layout(
    profile: Profile,
    folder: Union[str, Path],
    rank_table: Union[str, Path] = "",
    device_num: str = "",
    server_ip: str = "",
    wait_seconds: float = TIMEOUT,
    root: Union[str, Path] = "/",
    environ: Mapping[str, str] = os.environ,
) -> Layout:
    """Find, wait for, or generate the rank table, check it, and lay the ranks out. Files are written to ``folder``.

    On the CPU, and for one rank, no table is needed; one that is there is still read and shown.

    Raises:
        Refused: the table is bad (all problems), is of another machine, or cannot be generated.
        WorkFailed: the platform did not complete the table in ``wait_seconds``, or tables of other servers lack.
    """
    ranks, cpu = planned_ranks(profile), profile.device_target == "CPU"
    found = find(rank_table, environ, root)
    own = {name: value for name, value in environ.items() if name not in PER_RANK}  # of one rank: not of this process
    if rank_table and found.path is not None and not found.path.parent.is_dir():
        raise Refused(f"rank_table {rank_table}: there is no folder {found.path.parent}. Correct the path.")
    if cpu or ranks == 1:
        reason = _no_table(profile, ranks, bool(device_nodes(root)))
        scrub = sorted(name for name in SCRUB if name in environ)
        missing = _missing(found.path)
        if found.path is None or missing:
            if rank_table:
                raise Refused(f"rank_table {rank_table}: {missing}.")
            return Layout(reason, ranks, environments=[] if cpu else [{"DEVICE_ID": "0"}], scrub=scrub)
        report = check(found.path, None, root, own)
        reason += f" There is one at {found.path} ({found.reason}); it is shown below and not used."
        me = who_am_i(report.table, environ) if report.table else None
        shown = [] if cpu else [{"DEVICE_ID": "0"}]
        return Layout(reason, ranks, table=report.table, me=me, report=report, scrub=scrub, environments=shown)
    if found.path is not None:
        wait_for(found.path, wait_seconds)
        path, reason = found.path, f"rank table {found.path} ({found.reason})."
    else:
        path, reason = _generated(Path(folder), ranks, device_num, server_ip, root, environ, found.reason)
    report = check(path, profile, root, own)
    if report.fails or report.table is None:
        raise Refused(f"rank table {path} has {len(report.fails)} problem(s): {brief(report.fails)}.")
    table = report.table
    if table.source_format == "v0":
        path = write_table(table, Path(folder) / "jobstart_hccl.json")
        reason += f" It is in the v0 format; the v1.0 conversion is {path}."
    me = who_am_i(table, environ)
    environments = rank_environments(table, me, path, device_nodes(root), environ)
    return Layout(reason, table.ranks, str(path), table, me, environments, report)


def _missing(path: Optional[Path]) -> str:
    """Why a table that is not needed cannot be shown ("": it can); one that cannot be read stops nobody."""
    try:
        document, missing, _ = look(path) if path is not None else (None, "there is none", False)
    except Refused as error:
        return str(error).rstrip(".")
    return "" if document is not None else missing


def _generated(
    folder: Path,
    ranks: int,
    device_num: str,
    server_ip: str,
    root: Union[str, Path],
    environ: Mapping[str, str],
    why: str,
) -> Tuple[Path, str]:
    nodes = device_nodes(root)
    local = min(ranks, 8)
    visible = ",".join(map(str, nodes)) if nodes else "0,1,2,3,4,5,6,7"
    name, table, notes = generate(device_num or f"[0,{local})", visible, server_ip, root=root, environ=environ)
    path = write_table(table, folder / name)
    reason = f"rank table {path}: generated, because {why} ({'; '.join(notes)})."
    if table.ranks < ranks and not device_num:
        raise WorkFailed(
            f"{path} holds the {table.ranks} cards of this server, the profile needs {ranks} ranks: do the same "
            "on the other "
            "server(s), merge the files (qwenlib ranktable merge), and give the result to every node as rank_table."
        )
    return path, reason


def _no_table(profile: Profile, ranks: int, ascend: bool) -> str:
    if profile.device_target == "CPU":
        here = "Ascend cards are here, but this profile runs on the CPU" if ascend else "no Ascend"
        return (
            f"{here}: no rank table is needed, and nothing is simulated: the {ranks} rank(s) of profile "
            f"{profile.name} are "
            "real processes that meet over MindSpore's dynamic cluster on the loopback."
        )
    return f"profile {profile.name} runs on one card: no rank table is needed; DEVICE_ID 0 is the first card in here."
