"""What is to be launched: the command, how many ranks, and the exact environment of each of them.

The variables are those of MindSpore's two ways to meet: a rank table (HCCL, Ascend) and the dynamic cluster
(one scheduler process and N workers; the CPU).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from qwenlib.errors import Refused

SINGLE, DYNAMIC_CLUSTER, RANK_TABLE = RENDEZVOUS = ("single", "dynamic_cluster", "rank_table")
SPEC_FILE, STATE_FILE = "spec.json", "launch.json"
"""In the run directory: what the supervisor is to start, and the state that it keeps."""
SCHEDULER = "scheduler"
"""Name and folder of the dynamic cluster's scheduler process."""

STALE = (
    "RANK_ID",
    "RANK_SIZE",
    "DEVICE_ID",
    "ASCEND_DEVICE_ID",
    "DEVICE_NUM",
    "RANK_TABLE_FILE",
    "RANK_TABLE_FILE_V_1_0",
    "MINDSPORE_HCCL_CONFIG_PATH",
    "MS_ROLE",
    "MS_NODE_ID",
    "MS_WORKER_NUM",
    "MS_SERVER_NUM",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "QWENLIB_RESTART",
)
"""Variables of another job that would send a rank to the wrong place; taken out of every rank's environment first."""

Environment = Dict[str, Optional[str]]
"""Variables to set; None: to take away."""

MEET = "import mindspore as ms; ms.set_context(device_target='CPU'); ms.communication.init()"
"""All that a scheduler has to run; it serves inside ``init`` until the workers have gone."""


@dataclass(frozen=True)
class Plan:
    """A launch on this host.

    Every rank runs ``command`` in ``run_dir/rank_N`` with stdout and stderr in ``run_dir/rank_N/rank.log``.
    """

    command: List[str]
    """Program and arguments, the same for every rank (no shell in between)."""
    ranks: int = 1
    """Rank processes on this host."""
    run_dir: Union[str, Path] = "."
    rendezvous: str = SINGLE
    """``single``, ``dynamic_cluster`` (MindSpore on the CPU) or ``rank_table`` (Ascend)."""
    env: Dict[str, str] = field(default_factory=dict)
    """Variables for every rank; they win over everything that is derived."""
    rank_table: Optional[Union[str, Path]] = None
    port: int = 0
    """Port of the dynamic cluster's scheduler; 0: a free one."""
    device_ids: Optional[List[int]] = None
    """Logical card of each rank (0 is the first card this container sees); None: 0, 1, 2 …"""
    device_target: str = "CPU"
    share_devices: bool = False
    """The cards may be shared with others who say so, too (models that answer); a training never shares."""
    grace: float = 10.0
    """Seconds that all processes together have to end after SIGTERM, before SIGKILL."""
    first_rank: int = 0
    """Global number of this host's first rank."""
    world_size: int = 0
    """Ranks over all hosts; 0: those of this host."""
    sched_host: str = "127.0.0.1"
    """Address of node 0 as every node reaches it; the scheduler, and the meeting of the nodes, are there."""
    scheduler_command: Optional[List[str]] = None
    """What the scheduler process runs; None: this Python with nothing but MindSpore's ``init``."""
    node: int = 0
    nodes: int = 1
    """This host's number, and how many there are; see :mod:`qwenlib.launch.nodes`."""
    node_port: int = 8118
    """Port of ``sched_host`` at which the nodes meet."""
    node_timeout: float = 1800.0
    """Seconds that the nodes wait for one another."""
    prints: Dict[str, str] = field(default_factory=dict)
    """``{"profile": sha256, "rank table": sha256}``: a node where one of them differs is refused."""
    job: str = ""
    """What the ranks do, as a hash: by it, who asks for the same again knows it in ``spec.json``."""
    ready_timeout: float = 0.0
    """Seconds until every rank must have called ``report_ready``; 0: no such deadline."""
    hang_factor: float = 0.0
    """A rank without a step for this many times its usual step time is reported as hanging; 0: never."""
    hang_floor: float = 120.0
    """Seconds without a step below which no rank is said to hang."""
    end_on_hang: bool = False
    """A hang ends the run as a failure, rather than only being reported."""
    max_restarts: int = 0
    """How often all ranks are started again after a failure; they see the count in ``QWENLIB_RESTART``."""

    @property
    def folder(self) -> Path:
        """``run_dir``, absolute; on a further node ``run_dir/node_N``, so that the nodes may share the disk."""
        base = Path(self.run_dir).expanduser().absolute()
        return base / f"node_{self.node}" if self.node else base

    @property
    def world(self) -> int:
        """Ranks over all hosts."""
        return self.world_size or self.ranks

    @property
    def rank_ids(self) -> List[int]:
        """Global numbers of this host's ranks."""
        return list(range(self.first_rank, self.first_rank + self.ranks))

    @property
    def has_scheduler(self) -> bool:
        """The host of rank 0 runs the scheduler, too."""
        return self.rendezvous == DYNAMIC_CLUSTER and self.first_rank == 0

    def describe(self) -> str:
        """The dry run: folder, command and environment of every process, as shell lines; nothing is started.

        Raises:
            Refused: the plan cannot work.
        """
        check(self)
        lines = [f"# {self.ranks} of {self.world} ranks, {self.rendezvous}, in {self.folder}"]
        if self.nodes > 1:
            lines.append(f"# node {self.node} of {self.nodes}; they meet at {self.sched_host}:{self.node_port}")
        if self.rendezvous == DYNAMIC_CLUSTER and not self.port:
            lines.append("# MS_SCHED_PORT 0: a free port is taken at the start")
        for process in processes(self):
            environment = process["env"]
            gone = [name for name in environment if environment[name] is None and name in os.environ]
            lines.append(f"\n# {process['name']}")
            lines.append(f"cd {shlex.quote(str(self.folder / process['name']))}")
            lines += [f"unset {name}" for name in gone]
            lines += [f"export {name}={shlex.quote(text)}" for name, text in environment.items() if text is not None]
            lines.append(shlex.join(process["command"]))
        return "\n".join(lines) + "\n"


def rank_environment(plan: Plan, rank: int) -> Environment:
    """Every variable that the launcher sets (a text) or takes away (None) for the global rank ``rank``.

    All else is inherited from the caller. ``plan.env`` wins.
    """
    environment = _common(plan, f"rank_{rank}")
    local = rank - plan.first_rank
    device = plan.device_ids[local] if plan.device_ids else local
    if plan.rendezvous == SINGLE:
        environment["DEVICE_ID"] = str(device) if plan.device_target != "CPU" else None
    elif plan.rendezvous == DYNAMIC_CLUSTER:
        environment.update(_cluster(plan), MS_ROLE="MS_WORKER", MS_NODE_ID=str(rank))
        environment.update(RANK_ID=str(rank), RANK_SIZE=str(plan.world), DEVICE_ID="0")
    else:
        environment.update(
            RANK_TABLE_FILE=str(Path(str(plan.rank_table)).expanduser().absolute()),
            RANK_ID=str(rank),
            RANK_SIZE=str(plan.world),
            DEVICE_ID=str(device),
            # The first compilation of a large graph outlasts HCCL's own 120 s and MindSpore's 600 s.
            HCCL_CONNECT_TIMEOUT=os.environ.get("HCCL_CONNECT_TIMEOUT", "1800"),
            ASCEND_PROCESS_LOG_PATH=str(plan.folder / f"rank_{rank}" / "ascend"),
        )
    environment.update(plan.env)
    return environment


def scheduler_environment(plan: Plan) -> Environment:
    """The same for the dynamic cluster's scheduler process."""
    environment = {**_common(plan, SCHEDULER), **_cluster(plan), "MS_ROLE": "MS_SCHED"}
    environment.update(plan.env)
    return environment


def processes(plan: Plan) -> List[Dict[str, Any]]:
    """``{name, rank, command, env}`` of every process, in the order of their start."""
    found: List[Dict[str, Any]] = []
    if plan.has_scheduler:
        command = plan.scheduler_command or [sys.executable, "-c", MEET]
        found.append(
            {"name": SCHEDULER, "rank": None, "command": _absolute(command), "env": scheduler_environment(plan)}
        )
    for rank in plan.rank_ids:
        environment = rank_environment(plan, rank)
        found.append({"name": f"rank_{rank}", "rank": rank, "command": _absolute(plan.command), "env": environment})
    return found


def check(plan: Plan) -> None:
    """Raises:
    Refused: with every reason why the plan cannot work.
    """
    problems: List[str] = []
    if plan.rendezvous not in RENDEZVOUS:
        problems.append(f"rendezvous must be one of {', '.join(RENDEZVOUS)}, found {plan.rendezvous!r}")
    if plan.ranks < 1:
        problems.append(f"ranks must be at least 1, found {plan.ranks}")
    if plan.first_rank < 0 or plan.first_rank + plan.ranks > plan.world:
        problems.append(f"ranks {plan.first_rank} to {plan.first_rank + plan.ranks - 1} do not fit into {plan.world}")
    if plan.rendezvous == SINGLE and plan.world != 1:
        problems.append(f"rendezvous single is for one rank, found {plan.world}; use dynamic_cluster or rank_table")
    if plan.rendezvous == RANK_TABLE and (plan.rank_table is None or not Path(plan.rank_table).expanduser().is_file()):
        problems.append(f"rank_table must be an existing file, found {plan.rank_table}")
    if plan.device_ids is not None and (
        len(plan.device_ids) != plan.ranks or len(set(plan.device_ids)) != plan.ranks or min(plan.device_ids) < 0
    ):
        problems.append(f"device_ids must be {plan.ranks} different numbers from 0 on, found {plan.device_ids}")
    if not 0 <= plan.port < 65536:
        problems.append(f"port must be 0 to 65535, found {plan.port}")
    if plan.grace < 0:
        problems.append(f"grace must not be negative, found {plan.grace}")
    if not 0 <= plan.node < plan.nodes:
        problems.append(f"node must be 0 to {plan.nodes - 1}, found {plan.node}")
    if not 0 < plan.node_port < 65536:
        problems.append(f"node_port must be 1 to 65535, found {plan.node_port}")
    for name in ("node_timeout", "ready_timeout", "hang_factor", "hang_floor", "max_restarts"):
        if getattr(plan, name) < 0:
            problems.append(f"{name} must not be negative, found {getattr(plan, name)}")
    if plan.nodes > 1 and plan.max_restarts:
        problems.append("max_restarts is for one node; on several, start the same command on each of them again")
    for name, text in plan.env.items():
        if not name or "=" in name or "\0" in f"{name}{text}" or not isinstance(text, str):
            problems.append(f"env: {name!r}={text!r} cannot be an environment variable")
    if plan.rendezvous == RANK_TABLE:
        problems += _connect_timeout(plan)
    for command in (plan.command, plan.scheduler_command):
        if command is not None and not (command and shutil.which(command[0])):
            problems.append(f"there is no program {command[0] if command else ''!r}")
    if problems:
        raise Refused("cannot launch: " + "; ".join(problems) + ".")


def _connect_timeout(plan: Plan) -> List[str]:
    """HCCL takes 120 to 7200 whole seconds and would refuse the rest as EI0001, minutes later on every rank."""
    text = plan.env.get("HCCL_CONNECT_TIMEOUT", os.environ.get("HCCL_CONNECT_TIMEOUT", "1800"))
    if text.isdigit() and 120 <= int(text) <= 7200:
        return []
    return [f"the environment variable HCCL_CONNECT_TIMEOUT must be 120 to 7200 (seconds), found {text!r}"]


def with_port(plan: Plan) -> Plan:
    """The plan with a port that was free just now, when it needs one.

    Raises:
        Refused: ``plan.port``, or the port at which the nodes are to meet, is in use.
    """
    if plan.nodes > 1 and plan.node == 0:
        free_port(plan.sched_host, plan.node_port, meeting=True)
    if not plan.has_scheduler:
        return plan
    return replace(plan, port=free_port(plan.sched_host, plan.port))


def free_port(host: str, port: int = 0, meeting: bool = False) -> int:
    """``port`` when it is free, else (0) a free one.

    Raises:
        Refused: it is no port, is in use, or ``host`` is no address of this machine.
    """
    if not 0 <= port < 65536:
        raise Refused(f"port must be 0 to 65535, found {port}.")
    with socket.socket() as probe:
        # As a server does it: connections in TIME_WAIT do not count, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = error.strerror
            if meeting:
                raise Refused(
                    f"port {port} of {host} cannot be used for the meeting of the nodes ({why}). End the program that "
                    "holds it, or give all nodes another node_port."
                ) from None
            raise Refused(
                f"port {port} of {host} cannot be used for the scheduler ({why}). "
                "End the program that holds it, or choose another port (0: a free one)."
            ) from None
        return int(probe.getsockname()[1])


def python_path() -> Dict[str, str]:
    """Used from a checkout: the children, who stand in other folders, must find the same qwenlib."""
    root = Path(__file__).resolve().parent.parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])}


def _absolute(command: List[str]) -> List[str]:
    """The program by its whole path: a rank stands in another folder than the caller."""
    program = shutil.which(command[0])
    return [os.path.abspath(program), *command[1:]] if program else command


def _common(plan: Plan, name: str) -> Environment:
    environment: Environment = dict.fromkeys(STALE)
    environment.update(
        PYTHONUNBUFFERED="1",  # a killed rank must not take its last lines with it
        PYTHONFAULTHANDLER="1",  # a segmentation fault leaves a Python stack in the log
        QWENLIB_RANK_DIR=str(plan.folder / name),
    )
    environment.update(python_path())
    if plan.rendezvous == DYNAMIC_CLUSTER and plan.device_target == "CPU":
        environment["OMP_NUM_THREADS"] = "1"  # ranks that share a few cores fight with more
    return environment


def _cluster(plan: Plan) -> Environment:
    return {
        "MS_WORKER_NUM": str(plan.world),
        "MS_SCHED_HOST": plan.sched_host,
        "MS_SCHED_PORT": str(plan.port),
    }


def read_spec(folder: Path) -> Dict[str, Any]:
    """What was started in ``folder``; {} when it cannot be read."""
    try:
        spec = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}
