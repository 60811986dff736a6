"""Show a rank table: text for the terminal, a pandas table and a small topology figure for the notebook."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from qwenlib.ranktable.model import RankTable
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


def environment_frame(environments: Sequence[Mapping[str, str]]) -> Any:
    """Per-rank environments as a pandas table, one row a rank of this host."""
    import pandas

    return pandas.DataFrame([dict(item) for item in environments])


def figure(table: RankTable, me: Optional[Me] = None) -> Any:
    """The topology: a row a server, a box a card (rank, physical id, address), coloured by NIC plane, groups framed.

    The server that is this host has a bold frame.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    servers = table.by_rank[:MAX_DRAWN]
    drawing = Figure(figsize=(10, 1.0 + 1.15 * len(servers)), layout="constrained")
    axes = drawing.add_subplot()
    for row, server in enumerate(servers):
        bottom = len(servers) - 1 - row
        mine = me is not None and me.server is not None and me.server.server_id == server.server_id
        for group in (0, 1):
            axes.add_patch(
                Rectangle(
                    (group * 4.2 - 0.06, bottom - 0.02),
                    4.12,
                    0.84,
                    fill=False,
                    lw=2.4 if mine else 0.8,
                    ls="-" if mine else "--",
                    ec="#222222" if mine else "#999999",
                )
            )
        for device in server.devices:
            left = device.device_id + (0.2 if device.device_id > 3 else 0.0)
            colour = PLANE_COLOURS[device.device_id % 4]
            axes.add_patch(Rectangle((left + 0.04, bottom + 0.04), 0.92, 0.72, fc=colour, alpha=0.22, ec=colour))
            axes.text(
                left + 0.5, bottom + 0.56, f"rank {device.rank_id}", ha="center", va="center", fontsize=9, weight="bold"
            )
            axes.text(left + 0.5, bottom + 0.34, f"davinci{device.device_id}", ha="center", va="center", fontsize=7)
            axes.text(left + 0.5, bottom + 0.17, device.device_ip or "no address", ha="center", va="center", fontsize=6)
        name = server.server_id + ("\n(this host)" if mine else "")
        axes.text(-0.15, bottom + 0.4, name, ha="right", va="center", fontsize=8, weight="bold" if mine else "normal")
    axes.set_xlim(-1.6, 8.4)
    axes.set_ylim(-0.1, len(servers))
    axes.axis("off")
    more = f", the first {MAX_DRAWN} drawn" if len(table.servers) > MAX_DRAWN else ""
    axes.set_title(
        f"{table.ranks} ranks on {len(table.servers)} server(s){more}; frames are the groups 0-3 and 4-7", fontsize=10
    )
    planes = sorted({device.device_id % 4 for server in servers for device in server.devices})
    handles = [Patch(fc=PLANE_COLOURS[plane], alpha=0.4, label=f"NIC plane {plane}") for plane in planes]
    drawing.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return drawing


def picture(table: RankTable, me: Optional[Me] = None) -> Any:
    """:func:`figure` as a PNG that every front end shows, headless ones too."""
    import io

    from IPython.display import Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawing = figure(table, me)
    FigureCanvasAgg(drawing)  # drawn without pyplot: no global state, no second copy in a notebook
    stream = io.BytesIO()
    drawing.savefig(stream, format="png", dpi=110)
    servers = ", ".join(server.server_id for server in table.by_rank[:MAX_DRAWN])
    return Image(stream.getvalue(), format="png", alt=f"topology: {table.ranks} ranks on {servers}")
