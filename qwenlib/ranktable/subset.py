"""Cut a table down to fewer servers or cards; ranks are counted anew."""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Sequence, Union

from qwenlib.errors import Refused
from qwenlib.ranktable.model import RankTable, Server
from qwenlib.ranktable.parse import parse


def subset(
    table: RankTable,
    servers: Union[int, Sequence[str], None] = None,
    cards: Optional[Sequence[int]] = None,
) -> RankTable:
    """The part of ``table`` on some servers and cards, renumbered; addresses stay as they are.

    Args:
        servers: how many (the first N by rank) or which, by server_id; None: all.
        cards: physical device ids to take on every server; None: all.

    Raises:
        Refused: a server or a card that the table does not have, or a result that breaks the rules (card counts,
            910A groups).
    """
    chosen = _servers(table, servers)
    if cards is not None:
        chosen = [_cut(server, cards) for server in chosen]
    chosen = [
        dataclasses.replace(server, devices=tuple(sorted(server.devices, key=lambda item: item.rank_id)))
        for server in chosen
    ]  # whatever the order in the file, the ranks keep theirs
    result = RankTable(tuple(chosen), table.source_format).renumbered()
    parse(result.to_dict(), "the smaller table")
    return result


def _servers(table: RankTable, wanted: Union[int, Sequence[str], None]) -> List[Server]:
    ordered = table.by_rank
    if wanted is None:
        return ordered
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(ordered):
            raise Refused(f"the table has {len(ordered)} server(s); it cannot be cut to {wanted}.")
        return ordered[:wanted]
    known = [server.server_id for server in ordered]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise Refused(
            f"the table has no server {', '.join(unknown) or '(none given)'}; it has: {', '.join(known[:20])}."
        )
    return [server for server in ordered if server.server_id in wanted]


def _cut(server: Server, cards: Sequence[int]) -> Server:
    have = {device.device_id: device for device in server.devices}
    unknown = [number for number in cards if number not in have]
    if unknown or not cards:
        raise Refused(
            f"server {server.server_id} has no card {', '.join(map(str, unknown)) or '(none given)'}; it has the "
            f"physical ids {', '.join(map(str, have))}."
        )
    return dataclasses.replace(server, devices=tuple(d for d in server.devices if d.device_id in set(cards)))
