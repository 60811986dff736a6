"""``qwenlib ranktable show|check|generate|merge|subset``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Optional, Sequence

import typer

from qwenlib.errors import Refused


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    room = typer.Typer(
        help="HCCL rank tables: show, check, generate, merge, cut.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in (show, check, generate, merge, subset):
        room.command(command.__name__)(command)
    app.add_typer(room, name="ranktable")


_JSON = typer.Option(False, "--json", help="Print one JSON document on stdout.")
_ROOT = typer.Option(Path("/"), "--root", help="File system root to look in.")
_TABLE = typer.Argument("", help="Rank table file; left out: found as 01_env finds it.", show_default=False)
_OUT = typer.Option("", "--output", "-o", help="Output file or folder; default: upstream's file name, here.")
_WAIT = typer.Option(0.0, "--wait_seconds", help="Wait so many seconds for the platform to complete the table.")


def show(
    table: str = _TABLE,
    root: Path = _ROOT,
    wait_seconds: float = _WAIT,
    as_json: bool = _JSON,
) -> None:
    """Print the table, which server this host is, and the environment of its ranks.

    Example: qwenlib ranktable show /user/config/jobstart_hccl.json
    """
    from qwenlib.ascend.devices import device_nodes
    from qwenlib.files import sha256
    from qwenlib.ranktable import load, rank_environments, who_am_i
    from qwenlib.ranktable.show import shared, text

    path, reason = _find(table, root, wait_seconds)
    value = load(path)
    me = who_am_i(value)
    environments, trouble = [], ""
    if me.server is not None:
        try:
            environments = rank_environments(value, me, path, device_nodes(root))
        except Refused as error:
            trouble = str(error)
    who = me.server.server_id if me.server else None
    if as_json:
        _print(
            {
                "path": str(path),
                "reason": reason,
                "sha256": sha256(path),
                "format": value.source_format,
                "table": value.to_dict(),
                "this_server": who,
                "this_server_reason": me.reason,
                "environments": environments,
                "environments_problem": trouble,
            }
        )
        return
    typer.echo(f"{path} ({reason}), format {value.source_format}, sha256 {sha256(path)}")
    typer.echo(text(value))
    typer.echo(f"this host: {who or 'none of the servers'} ({me.reason})" + (f"; {me.warning}" if me.warning else ""))
    same = shared(environments)
    if same:
        typer.echo("every rank here: " + " ".join(f"{key}={value}" for key, value in same.items()))
    for item in environments:
        typer.echo(" ".join(f"{key}={item[key]}" for key in item if key not in same))
    if trouble:
        typer.echo(f"no environment: {trouble}")


def check(
    table: str = _TABLE,
    profile: str = typer.Option("", "--profile", help="Also compare the ranks with this profile's plans."),
    root: Path = _ROOT,
    here: bool = typer.Option(True, "--here/--file-only", help="Compare with this machine, or look at the file alone."),
    wait_seconds: float = _WAIT,
    as_json: bool = _JSON,
) -> None:
    """Tell all problems of a table at once: JSON path, rule, HCCL's own error. Exit code 1 when there is a FAIL.

    Example: qwenlib ranktable check hccl_8p_01234567_10.0.0.1.json --profile lora_7b_910a
    """
    from qwenlib import profile as profiles
    from qwenlib.ranktable.check import check as examine

    path, _ = _find(table, root, wait_seconds)
    if not path.exists():
        raise Refused(f"there is no rank table {path}.")
    report = examine(path, profiles.load(profile) if profile else None, root, here=here)
    if as_json:
        _print(report.to_dict())
    else:
        typer.echo(report.text())
    if report.fails:
        raise typer.Exit(1)


def generate(
    device_num: str = typer.Option("[0,8)", "--device_num", help="Logical cards, the end not included; quote it."),
    visible_devices: str = typer.Option(
        "0,1,2,3,4,5,6,7", "--visible_devices", help="Physical ids of the logical cards."
    ),
    server_ip: str = typer.Option("", "--server_ip", help="This server's address; default: of the host name."),
    device_num_per_node: int = typer.Option(8, "--device_num_per_node", help="Cards a server has."),
    output: str = _OUT,
    root: Path = _ROOT,
    as_json: bool = _JSON,
) -> None:
    """Make this server's table from hccn_tool, or /etc/hccn.conf; file name and content as hccl_tools.py's.

    Example: qwenlib ranktable generate --device_num "[0,8)" --server_ip 10.0.0.1
    """
    from qwenlib.ranktable import generate as make

    name, table, notes = make(device_num, visible_devices, server_ip, device_num_per_node, root)
    _write(table, output, name, notes, as_json)


def merge(
    file_list: List[str] = typer.Argument(..., help="One table a server."),
    keep_order: bool = typer.Option(
        False, "--keep_order", help="Ranks in argument order; default: sorted by server_id."
    ),
    output: str = _OUT,
    as_json: bool = _JSON,
) -> None:
    """Merge the tables of several servers; the same server or address twice, or unequal card counts, are refused.

    Example: qwenlib ranktable merge hccl_8p_01234567_10.0.0.1.json hccl_8p_01234567_10.0.0.2.json
    """
    from qwenlib.ranktable import merge_files

    table = merge_files(file_list, keep_order)
    order = "arguments" if keep_order else "server_id"
    name = f"hccl_{len(table.servers)}s_{table.ranks}p.json"
    more = f" and {len(table.servers) - 16} more" if len(table.servers) > 16 else ""
    note = f"ranks in the order of the {order}: {', '.join(s.server_id for s in table.servers[:16])}{more}"
    _write(table, output, name, [note], as_json, file_list)


def subset(
    table: str = typer.Argument(..., help="Rank table file."),
    nodes: int = typer.Option(0, "--nodes", help="Take the first N servers; 0: all."),
    servers: str = typer.Option("", "--servers", help="Take these server_ids (comma between)."),
    device_num: str = typer.Option("", "--device_num", help='Take these physical cards of each server, like "[0,4)".'),
    devices: str = typer.Option("", "--devices", help='Take these physical cards of each server, like "4,5".'),
    output: str = _OUT,
    as_json: bool = _JSON,
) -> None:
    """Cut a table down to fewer servers or cards; ranks are counted anew.

    Example: qwenlib ranktable subset hccl_2s_16p.json --nodes 1 --device_num "[0,4)"
    """
    from qwenlib.ranktable import load
    from qwenlib.ranktable import subset as cut
    from qwenlib.ranktable.generate import card_ids, device_range, table_name

    if (nodes and servers) or (device_num and devices):
        raise Refused("give --nodes or --servers, and --device_num or --devices, not both.")
    if nodes < 0:
        raise Refused(f"--nodes must be at least 1, found {nodes}.")
    names = [part.strip() for part in servers.split(",") if part.strip()]
    if servers and not names:
        raise Refused(f"--servers must name servers by their server_id, found {servers!r}.")
    wanted: Any = nodes or names or None
    cards: Optional[Sequence[int]] = None
    if device_num or devices:
        cards = device_range(device_num) if device_num else card_ids(devices, "--devices")
    small = cut(load(table), wanted, cards)
    _write(small, output, table_name(small), [], as_json, [table])


def _find(table: str, root: Path, wait_seconds: float) -> Any:
    from qwenlib.ranktable import find, wait_for

    if not root.is_dir():
        raise Refused(f"--root {root} is no folder.")
    found = find(table, root=root)
    if found.path is None:
        raise Refused(f"no rank table was found: {found.reason}. Give a file, or: qwenlib ranktable generate")
    if wait_seconds:
        wait_for(found.path, wait_seconds)
    return found.path, found.reason


def _write(table: Any, output: str, name: str, notes: Sequence[str], as_json: bool, inputs: Sequence[str] = ()) -> None:
    from qwenlib.files import sha256
    from qwenlib.ranktable import write_table

    path = Path(output or ".")
    if path.is_dir() or output.endswith("/"):
        path = path / name
    if path.suffix != ".json":
        raise Refused(f"--output {path} must end with .json (HCCL reads nothing else), or be a folder.")
    if path.exists() and any(path.samefile(item) for item in inputs):
        raise Refused(f"{path} is an input; choose another name with --output.")
    write_table(table, path)
    if as_json:
        _print({"path": str(path), "sha256": sha256(path), "notes": list(notes), "table": table.to_dict()})
        return
    for note in notes:
        typer.echo(note)
    typer.echo(f"{path}: {len(table.servers)} server(s), {table.ranks} ranks, sha256 {sha256(path)}")


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
