"""Show a rank table: text for the terminal, a pandas table and a small topology figure for the notebook."""

from __future__ import annotations

import textwrap
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from qwenlib.ranktable.model import RankTable, Server
from qwenlib.ranktable.whoami import Me

MAX_DRAWN = 16
"""Servers in the figure; more are told in the title."""

PLANE_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")


def rows(table: RankTable) -> List[Dict[str, Any]]:
    """One row a rank: rank_id, server, server_id, device_id, device_ip, group and NIC plane of the card."""
    return [
        {
            "rank_id": device.rank_id,
            "server": index,
            "server_id": server.server_id,
            "device_id": device.device_id,
            "device_ip": device.device_ip,
            "group": "0-3" if device.device_id < 4 else "4-7",
            "plane": device.device_id % 4,
        }
        for index, server in enumerate(table.by_rank)
        for device in sorted(server.devices, key=lambda item: item.rank_id)
    ]


def text(table: RankTable) -> str:
    """A table for the terminal."""
    found = rows(table)
    columns = list(found[0])
    cells = [columns] + [[str(row[name]) for name in columns] for row in found]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def frame(table: RankTable) -> Any:
    """:func:`rows` as a pandas table with rank_id as index."""
    import pandas

    return pandas.DataFrame(rows(table)).set_index("rank_id")


def shared(environments: Sequence[Mapping[str, str]]) -> Dict[str, str]:
    """The variables that have one value for all of several ranks ({} for a single rank)."""
    if len(environments) < 2:
        return {}
    return {
        name: value for name, value in environments[0].items() if all(item.get(name) == value for item in environments)
    }


def environment_frame(environments: Sequence[Mapping[str, str]]) -> Any:
    """What differs between the ranks of this host as a pandas table, one row a rank; the rest: :func:`shared`."""
    import pandas

    same = shared(environments)
    return pandas.DataFrame(
        [{name: value for name, value in item.items() if name not in same} for item in environments],
        index=pandas.RangeIndex(len(environments), name="local rank"),
    )


def figure(table: RankTable, me: Optional[Me] = None) -> Any:
    """The topology: a row a server, a box a card (rank, physical id, address), coloured by NIC plane, groups framed.

    The server that is this host has a bold frame.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    servers = _drawn(table, me)
    drawing = Figure(figsize=(10, 1.0 + 1.15 * len(servers)), layout="constrained")
    axes = drawing.add_subplot()
    for row, server in enumerate(servers):
        bottom = len(servers) - 1 - row
        mine = _is_me(server, me)
        for group in (0, 1):
            empty = all(device.device_id // 4 != group for device in server.devices)
            bold = mine and not empty
            axes.add_patch(
                Rectangle(
                    (group * 4.2 - 0.06, bottom - 0.02),
                    4.12,
                    0.84,
                    fill=False,
                    lw=2.4 if bold else 0.8,
                    ls="-" if bold else "--",
                    ec="#222222" if bold else "#999999",
                )
            )
            if empty:
                centre = (group * 4.2 + 2.0, bottom + 0.4)
                axes.text(*centre, "no card of this table", ha="center", va="center", fontsize=8, color="#777777")
        for device in server.devices:
            left = device.device_id + (0.2 if device.device_id > 3 else 0.0)
            colour = PLANE_COLOURS[device.device_id % 4]
            axes.add_patch(Rectangle((left + 0.04, bottom + 0.04), 0.92, 0.72, fc=colour, alpha=0.22, ec=colour))
            address, small = _address(device.device_ip)
            for height, words, size, weight in (
                (0.58, f"rank {device.rank_id}", 9, "bold"),
                (0.36, f"davinci{device.device_id}", 7, "normal"),
                (0.17, address, 5 if small else 6.5, "normal"),
            ):
                place = (left + 0.5, bottom + height)
                axes.text(*place, words, ha="center", va="center", fontsize=size, weight=weight, parse_math=False)
        name = _folded(server.server_id) + ("\n(this host)" if mine else "")
        weight = "bold" if mine else "normal"
        axes.text(-0.15, bottom + 0.4, name, ha="right", va="center", fontsize=8, weight=weight, parse_math=False)
    axes.set_xlim(-1.6, 8.4)
    axes.set_ylim(-0.1, len(servers))
    axes.axis("off")
    more = f", {MAX_DRAWN} of them drawn" if len(table.servers) > MAX_DRAWN else ""
    what = f"{_count(table.ranks, 'rank')} on {_count(len(table.servers), 'server')}{more}"
    axes.set_title(f"{what}; frames are the groups 0-3 and 4-7", fontsize=10)
    planes = sorted({device.device_id % 4 for server in servers for device in server.devices})
    handles = [Patch(fc=PLANE_COLOURS[plane], alpha=0.4, label=f"NIC plane {plane}") for plane in planes]
    drawing.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return drawing


def _drawn(table: RankTable, me: Optional[Me]) -> List[Server]:
    """The first servers, and this host in the place of the last when it comes later."""
    servers = table.by_rank
    drawn, hidden = servers[:MAX_DRAWN], servers[MAX_DRAWN:]
    return drawn[:-1] + mine if (mine := [server for server in hidden if _is_me(server, me)]) else drawn


def _is_me(server: Server, me: Optional[Me]) -> bool:
    return me is not None and me.server is not None and me.server.server_id == server.server_id


def _folded(name: str) -> str:
    """A long pod name on up to three lines."""
    lines = textwrap.wrap(name, 22, break_on_hyphens=True) or [""]
    return "\n".join(lines if len(lines) < 4 else [*lines[:2], "…" + lines[-1]])


def _address(device_ip: str) -> Tuple[str, bool]:
    """An address or several of them, on as many lines as they need; and whether they need small letters."""
    parts = [part.strip() for part in device_ip.split(",") if part.strip()] or ["no address"]
    lines = [line for part in parts for line in textwrap.wrap(part, 18)][:3]
    return "\n".join(lines), len(lines) > 1 or len(lines[0]) > 15


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def picture(table: RankTable, me: Optional[Me] = None) -> Any:
    """:func:`figure` as a PNG that every front end shows, headless ones too."""
    import io

    from IPython.display import Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawing = figure(table, me)
    FigureCanvasAgg(drawing)  # drawn without pyplot: no global state, no second copy in a notebook
    stream = io.BytesIO()
    drawing.savefig(stream, format="png", dpi=110)
    servers = ", ".join(server.server_id for server in _drawn(table, me))
    return Image(stream.getvalue(), format="png", alt=f"topology: {_count(table.ranks, 'rank')} on {servers}")
