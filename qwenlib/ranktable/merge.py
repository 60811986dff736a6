"""Merge the tables of several servers, as MindFormers' ``merge_hccl.py`` does, and refuse what it lets through."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Dict, List, Sequence, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.ranktable.model import RankTable, Server
from qwenlib.ranktable.parse import load, parse


def merge(tables: Sequence[RankTable], keep_order: bool = False) -> RankTable:
    """One table of all servers, ranks counted anew from 0.

    Servers are sorted by server_id (addresses by value: 10.0.0.9 before 10.0.0.10), so every node gets the same table
    whatever the order of the arguments; ``keep_order`` takes the servers as given, as upstream does.

    Raises:
        Refused: no table, the same server or address twice, or unequal card counts.
    """
    servers = [server for table in tables for server in table.servers]
    if not servers:
        raise Refused("there is nothing to merge.")
    if not keep_order:
        servers.sort(key=_sort_key)
    merged = RankTable(tuple(servers)).renumbered()
    parse(merged.to_dict(), "the merged table")
    return merged


def merge_files(paths: Sequence[Union[str, Path]], keep_order: bool = False) -> RankTable:
    """:func:`merge` for files; a server that stands in two of them is told with both names.

    Raises:
        Refused: see :func:`merge`, and :func:`qwenlib.ranktable.parse.load` for each file.
    """
    tables: List[RankTable] = []
    bad: List[str] = []
    for path in paths:
        try:
            tables.append(load(path))
        except Refused as error:
            bad.append(str(error))
    if bad:
        raise Refused("; ".join(text.rstrip(".") for text in bad) + ".")
    homes: Dict[Tuple[str, str], Union[str, Path]] = {}
    doubles: List[str] = []
    for path, table in zip(paths, tables):
        for server in table.servers:
            for kind, value in [("server", server.server_id), *(("address", d.device_ip) for d in server.devices)]:
                if value and (kind, value) in homes:
                    doubles.append(f"{kind} {value} is in {homes[kind, value]} and in {path}")
                    if kind == "server":
                        break  # its addresses are doubled, too
                homes.setdefault((kind, value), path)
    if doubles:
        more = f"; and {len(doubles) - 6} more" if len(doubles) > 6 else ""
        raise Refused(
            f"these tables do not belong together: {'; '.join(doubles[:6])}{more}. Merge one table a server; a "
            "glob such as hccl*.json also takes the result of an earlier merge."
        )
    return merge(tables, keep_order)


def _sort_key(server: Server) -> Tuple[int, Tuple[Tuple[int, Union[int, str]], ...]]:
    try:
        address = ipaddress.ip_address(server.server_id)
        return address.version, ((0, int(address)),)
    except ValueError:
        parts = re.findall(r"[0-9]+|[^0-9]+", server.server_id)
        return 9, tuple((0, int(part)) if part[0] in "0123456789" else (1, part) for part in parts)
