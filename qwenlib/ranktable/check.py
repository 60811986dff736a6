"""Check a rank table file: all problems at once, each with its JSON path, the rule and what HCCL would have said."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from qwenlib.ascend.devices import device_nodes
from qwenlib.ascend.hccn import device_ips
from qwenlib.ascend.tools import TIMEOUT
from qwenlib.errors import Refused
from qwenlib.profile import Profile
from qwenlib.ranktable.draft import Walk
from qwenlib.ranktable.model import RankTable
from qwenlib.ranktable.parse import decode, foreign, format_of, parse, read_raw
from qwenlib.ranktable.rules import FAIL, NOT_CHECKED, OK, RULES, WARN, Problem, ranges, shown
from qwenlib.ranktable.shape import shape_problems
from qwenlib.ranktable.whoami import Me, visible_ids, who_am_i

HOST_RULES = (16, 17, 19, 22, 24, 25, 26, 27)
"""Rules about this machine or a profile: checked only when there is something to compare with."""

MANY = 8
"""More rules than these that were not checked for one reason are told in one line, by their numbers."""


@dataclass(frozen=True)
class CheckReport:
    """The result of :func:`check`. ``table`` is None when the file has a FAIL of form."""

    path: str
    sha256: str
    format: str
    problems: Tuple[Problem, ...]
    not_checked: Dict[int, str]
    table: Optional[RankTable] = None

    @property
    def fails(self) -> List[Problem]:
        """What must be mended."""
        return [item for item in self.problems if item.level == FAIL]

    @property
    def warnings(self) -> List[Problem]:
        """What is worth a look."""
        return [item for item in self.problems if item.level == WARN]

    def state(self, rule: int) -> str:
        """OK, FAIL, WARN or "not checked" for one rule."""
        levels = {item.level for item in self.problems if item.rule == rule}
        if FAIL in levels:
            return FAIL
        if rule in self.not_checked:
            return NOT_CHECKED
        return WARN if WARN in levels else OK

    def text(self) -> str:
        """The report for people: the problems, then the rules that could not be checked, then the hash."""
        lines = [
            f"{self.path}: format {self.format}, {f'{self.table.ranks} ranks' if self.table else 'not usable as it is'}"
        ]
        lines += [item.text() for item in self.problems]
        whys: Dict[str, List[int]] = {}
        for rule, why in sorted(self.not_checked.items()):
            whys.setdefault(why, []).append(rule)
        for why, rules in whys.items():
            if len(rules) > MANY:
                lines.append(f"not checked: rules {ranges(rules)} ({why})")
            else:
                lines += [f"not checked: rule {rule}: {RULES[rule].title} ({why})" for rule in rules]
        states = [self.state(rule) for rule in RULES]
        lines.append(
            f"{states.count(OK)} rules OK, {states.count(FAIL)} FAIL, {states.count(WARN)} WARN, "
            f"{states.count(NOT_CHECKED)} not checked"
        )
        if self.sha256:
            lines.append(f"sha256 {self.sha256} (must be the same on every node)")
        return "\n".join(lines)

    def to_dict(self) -> Dict[str, Any]:
        """For ``--json``."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "format": self.format,
            "ok": not self.fails,
            "ranks": self.table.ranks if self.table else None,
            "servers": len(self.table.servers) if self.table else None,
            "problems": [item.to_dict() for item in self.problems],
            "rules": [
                {
                    "rule": rule.number,
                    "title": rule.title,
                    "state": self.state(rule.number),
                    "reason": self.not_checked.get(rule.number, ""),
                }
                for rule in RULES.values()
            ],
        }


def check(
    path: Union[str, Path],
    profile: Optional[Profile] = None,
    root: Union[str, Path] = "/",
    environ: Mapping[str, str] = os.environ,
    here: bool = True,
    addresses: Optional[Sequence[str]] = None,
    timeout: float = TIMEOUT,
) -> CheckReport:
    """Check the table in ``path`` against every rule that can be checked here; never raises for a bad table.

    Args:
        profile: compare the ranks with the plans of its training tasks.
        here: compare with this machine (who am I, ``/dev/davinci*``, hccn_tool); False: the file alone.
        addresses: this host's addresses (default: asked from the system).
    """
    path = Path(path)
    problems: List[Problem] = []
    off: Dict[int, str] = {rule: "needs a readable table" for rule in RULES if rule > 3}
    if path.suffix != ".json":
        problems.append(Problem(FAIL, "", 1, f"is called {path.name}; HCCL reads *.json only"))
    try:
        raw = read_raw(path)
    except OSError as error:
        problems.append(Problem(FAIL, "", 2, f"{path} cannot be read: {error.strerror}"))
        return CheckReport(str(path), "", "unknown", tuple(problems), {**off, 3: "needs a file that can be read"})
    digest = hashlib.sha256(raw).hexdigest()
    try:
        document = decode(raw, path.name)
    except Refused as error:
        problems.append(Problem(FAIL, "", 3, str(error)))
        return CheckReport(str(path), digest, "unknown", tuple(problems), off)
    try:
        kind = format_of(document, path.name)
    except Refused as error:
        other, _ = foreign(document)
        rule = 4 if not other and document.get("status") == "initializing" else 33
        problems.append(Problem(FAIL, "status" if rule == 4 else other, rule, str(error), "" if other else None))
        off.pop(rule)
        return CheckReport(str(path), digest, "unknown", tuple(problems), off)
    walk = Walk(document, kind)
    problems += walk.problems + shape_problems(walk.servers)
    if kind == "v0":
        message = "is v0: HCCL takes it, MindFormers' launchers do not; 01_env writes the v1.0 conversion"
        problems.append(Problem(WARN, "group_list", 34, message))
    off = {21: f"a {kind} table has no super pods"}
    off.update(
        {32: "a v0 table has no version", 6: "a v0 table has no server_count", 35: "v1.0 only"}
        if kind == "v0"
        else {31: "v0 only"}
    )
    table = None
    if any(item.level == FAIL and item.rule not in (1,) for item in problems):
        off.update(dict.fromkeys(HOST_RULES, "the table itself has a FAIL"))
    else:
        table = parse(document, str(path))
        paths = {card.rank_id: card.path for server in walk.servers for card in server.cards}
        _profile(table, profile, problems, off)
        if here:
            _host(table, paths, Path(root), environ, addresses, timeout, problems, off)
        else:
            off.update({rule: "the file alone was checked" for rule in HOST_RULES if rule != 24})
    return CheckReport(str(path), digest, kind, tuple(problems), off, table)


def _profile(table: RankTable, profile: Optional[Profile], problems: List[Problem], off: Dict[int, str]) -> None:
    if profile is None or not profile.tasks():
        off[24] = "no profile was given" if profile is None else f"profile {profile.name} has no training task"
        return
    for name in profile.tasks():
        plan = profile.task(name).parallel
        if plan.ranks != table.ranks:
            message = (
                f"has {table.ranks} ranks, but {name} of profile {profile.name} needs {plan.ranks} (data_parallel "
                f"{plan.data_parallel} x model_parallel {plan.model_parallel} x pipeline_stage {plan.pipeline_stage}); "
                "cut the table with qwenlib ranktable subset, or change the plan"
            )
            problems.append(Problem(FAIL, _lists(table), 24, message))


def _host(
    table: RankTable,
    paths: Mapping[Optional[int], str],
    root: Path,
    environ: Mapping[str, str],
    addresses: Optional[Sequence[str]],
    timeout: float,
    problems: List[Problem],
    off: Dict[int, str],
) -> None:
    _rank_variable(table, environ, problems, off)
    me = who_am_i(table, environ, addresses)
    if me.server is None:
        problems.append(Problem(FAIL, _lists(table), 25, f"this host is none of the servers: {me.reason}"))
        off.update(dict.fromkeys((19, 22, 26, 27), "this host is not in the table"))
        return
    if me.warning:
        problems.append(Problem(WARN, _lists(table), 25, me.warning))
    nodes = device_nodes(root)
    if not nodes:
        off[26] = f"there is no {root / 'dev'}/davinci*"
    for device in me.devices if nodes else ():
        if device.device_id not in nodes:
            message = f"card {device.device_id} is not here; /dev has davinci {', '.join(map(str, nodes))}"
            problems.append(Problem(FAIL, f"{paths[device.rank_id]}.device_id", 26, message))
    _opened_card(table, me, paths, nodes, environ, problems, off)
    known, said = device_ips([device.device_id for device in me.devices], root, environ, timeout)
    if not known:
        off[27] = off[22] = "; ".join(said)
    for device in me.devices:
        real = known.get(device.device_id, "")
        if real and real not in [part.strip() for part in device.device_ip.split(",")]:
            message = f"is {device.device_ip or 'missing'}, but card {device.device_id} has {real} ({'; '.join(said)})"
            problems.append(Problem(FAIL, f"{paths[device.rank_id]}.device_ip", 27, message))
    if known:
        off[22] = "HCCL asks the card itself; rule 27 compares what hccn_tool or hccn.conf say"


def _rank_variable(table: RankTable, environ: Mapping[str, str], problems: List[Problem], off: Dict[int, str]) -> None:
    value = environ.get("RANK_ID")
    if value is None:
        off[16] = off[17] = "the variable RANK_ID is not set"
    elif not re.fullmatch("[0-9]{1,9}", value):
        problems.append(Problem(FAIL, "", 16, f"RANK_ID is {shown(value)}"))
        off[17] = "RANK_ID is no number"
    elif int(value) >= table.ranks:
        problems.append(Problem(FAIL, "", 17, f"RANK_ID is {value}, but the table has {table.ranks} ranks"))


def _opened_card(
    table: RankTable,
    me: Me,
    paths: Mapping[Optional[int], str],
    nodes: Sequence[int],
    environ: Mapping[str, str],
    problems: List[Problem],
    off: Dict[int, str],
) -> None:
    """Rule 19 for the process that RANK_ID and DEVICE_ID describe: this one, when the platform has started it."""
    rank, logical = (environ.get(name, "") for name in ("RANK_ID", "DEVICE_ID"))
    if not all(re.fullmatch("[0-9]{1,6}", text) for text in (rank, logical)) or int(rank) >= table.ranks:
        off[19] = "RANK_ID and DEVICE_ID do not both name a rank and its card"
        return
    if not nodes:
        off[19] = "the physical ids of the cards in here are not known"
        return
    path = f"{paths[int(rank)]}.device_id"
    wanted = {device.rank_id: device.device_id for device in me.devices}.get(int(rank))
    visible = visible_ids(nodes, environ)
    if wanted is None:
        problems.append(Problem(FAIL, path, 19, f"RANK_ID {rank} is a rank of another host than this"))
    elif int(logical) >= len(visible):
        message = f"DEVICE_ID {logical} is none of the {len(visible)} card(s) in here: it counts them from 0"
        problems.append(Problem(FAIL, path, 19, message, "invalid device"))
    elif visible[int(logical)] != wanted:
        message = f"is {wanted}, but RANK_ID {rank} with DEVICE_ID {logical} opens card {visible[int(logical)]}"
        problems.append(Problem(FAIL, path, 19, message))


def _lists(table: RankTable) -> str:
    return "server_list" if table.source_format == "v1.0" else "group_list"
