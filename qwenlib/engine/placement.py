"""Which of a training's ranks are this host's: from the rank table (Ascend) or from the list of nodes (CPU)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import socket
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from qwenlib.errors import Refused
from qwenlib.profile import Profile
from qwenlib.ranktable.model import RankTable


def place(
    profile: Profile,
    task_name: str,
    rank_table: Optional[Union[str, Path]] = None,
    nodes: Sequence[str] = (),
    node_rank: Optional[int] = None,
) -> Dict[str, Any]:
    """The fields of :class:`qwenlib.launch.Plan` that tell this host's part; {} when there is one host only.

    Args:
        nodes: address of each node, node 0 first (CPU). With a rank table, its servers are the nodes.
        node_rank: this host's number among ``nodes``; None: found by its own addresses.

    Raises:
        Refused: this host is none of the nodes, or the ranks cannot be shared out.
    """
    ranks = profile.task(task_name).parallel.ranks
    if rank_table and profile.device_target != "CPU" and ranks > 1:
        return _by_table(profile, task_name, Path(rank_table), ranks)
    if len(nodes) < 2:
        if node_rank:
            raise Refused(f"node_rank {node_rank} is one of several nodes: name all of them with nodes, node 0 first.")
        return {}
    if profile.device_target != "CPU":
        raise Refused("nodes are for the CPU; several Ascend hosts are told by the servers of the rank table.")
    if ranks % len(nodes) or ranks < 2:
        raise Refused(f"{ranks} rank(s) cannot be shared out evenly among {len(nodes)} nodes.")
    if node_rank is not None and not 0 <= node_rank < len(nodes):
        raise Refused(f"node_rank must be 0 to {len(nodes) - 1}, found {node_rank}.")
    node = _mine(nodes) if node_rank is None else node_rank
    local = ranks // len(nodes)
    return {
        "ranks": local,
        "first_rank": node * local,
        "world_size": ranks,
        "node": node,
        "nodes": len(nodes),
        "sched_host": _address(nodes[0]),
        "prints": {"profile": profile_print(profile, task_name)},
    }


def profile_print(profile: Profile, task_name: str) -> str:
    """SHA-256 of what the nodes must agree about: the profile with all overrides, and the task."""
    tree = {"task": task_name, "profile": dataclasses.asdict(profile)}
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def _by_table(profile: Profile, task_name: str, path: Path, ranks: int) -> Dict[str, Any]:
    from qwenlib.ascend.devices import device_nodes
    from qwenlib.ranktable.parse import load
    from qwenlib.ranktable.whoami import rank_environments, who_am_i

    try:
        table: RankTable = load(path)
    except Refused:
        return {}  # a plan is only told; the start refuses
    nodes = _table_nodes(table)
    if len(nodes) < 2:
        return _cards(table, path) if table.ranks == ranks else {}
    if table.ranks != ranks:
        raise Refused(f"{path} holds {table.ranks} ranks, {task_name} of profile {profile.name} needs {ranks}.")
    environments = rank_environments(table, who_am_i(table), path, device_nodes())
    mine = [int(item["RANK_ID"]) for item in environments]
    if mine != list(range(mine[0], mine[0] + len(mine))):
        raise Refused(f"{path}: the ranks of this host ({mine}) do not follow one another; number them by server.")
    return {
        "ranks": len(mine),
        "first_rank": mine[0],
        "world_size": ranks,
        "device_ids": [int(item["DEVICE_ID"]) for item in environments],
        "node": nodes.index(mine[0]),
        "nodes": len(nodes),
        "sched_host": table.by_rank[0].server_id,
        "prints": {
            "profile": profile_print(profile, task_name),
            "rank table": hashlib.sha256(json.dumps(table.to_dict(), sort_keys=True).encode()).hexdigest(),
        },
    }


def _cards(table: RankTable, path: Path) -> Dict[str, Any]:
    """The cards of the only host, when they are not simply 0, 1, 2, …: a table may hold 4 to 7 of eight."""
    from qwenlib.ascend.devices import device_nodes
    from qwenlib.ranktable.whoami import rank_environments, who_am_i

    environments = rank_environments(table, who_am_i(table), path, device_nodes())
    cards = [int(item["DEVICE_ID"]) for item in environments]
    return {} if cards == list(range(len(cards))) else {"device_ids": cards}


def _table_nodes(table: RankTable) -> List[int]:
    """The first rank of each host (pod, where the table knows pods), in rank order."""
    first: Dict[Any, int] = {}
    for server in table.servers:
        for device in server.devices:
            key = (server.server_id, device.pod)
            first[key] = min(device.rank_id, first.get(key, device.rank_id))
    return sorted(first.values())


def _mine(nodes: Sequence[str]) -> int:
    import psutil

    own = {item.address for items in psutil.net_if_addrs().values() for item in items} | {socket.gethostname()}
    found = [number for number, name in enumerate(nodes) if name in own or _address(name) in own]
    if len(found) != 1:
        raise Refused(
            f"this host ({', '.join(sorted(address for address in own if '.' in address))}) is "
            f"{'none' if not found else 'more than one'} of the nodes {', '.join(nodes)}. Say which by node_rank."
        )
    return found[0]


def _address(name: str) -> str:
    with contextlib.suppress(OSError):
        return socket.gethostbyname(name)
    return name
