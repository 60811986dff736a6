"""``qwenlib status | logs | stop RUN_DIR``: what a launch does, from its run directory alone."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import typer

from qwenlib.errors import Refused, WorkFailed

RUN_DIR = typer.Argument(..., metavar="RUN_DIR", help="The --output_dir of `qwenlib train`, or a stage's folder.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON document on stdout.")
FOLLOW_SECONDS = 0.5
OTHER_NODES_SECONDS = 30.0
_SECONDS = re.compile(r"no step for \d+ s")  # time alone is no change


def register(app: typer.Typer) -> None:
    """Mount the three commands."""
    app.command("status")(status)
    app.command("logs")(logs)
    app.command("stop")(stop)


def status(
    run_dir: Path = RUN_DIR,
    follow: bool = typer.Option(False, "--follow", "-f", help="Print it again whenever it changes, until the end."),
    as_json: bool = AS_JSON,
) -> None:
    """The state of a run and of each rank; exit code 0: waiting, running or done, 1: failed or stopped.

    Example: qwenlib status runs/mine --follow
    """
    from qwenlib.launch import rundir

    folder, last = rundir.find_launch(run_dir), ""
    found = _read(folder)
    while follow:
        text = _text(folder, found)
        seen = _SECONDS.sub("", text)
        if seen != last:
            typer.echo(text, err=as_json)
            last = seen
        if all(item["state"] in rundir.FINAL for item in found):
            break
        time.sleep(FOLLOW_SECONDS)
        found = _read(folder)
    if as_json:
        typer.echo(json.dumps(found[0] if len(found) == 1 else {**found[0], "further_nodes": found[1:]}, indent=2))
    elif not follow:
        typer.echo(_text(folder, found))
    if any(item["state"] in ("failed", "stopped") for item in found):
        raise typer.Exit(1)


def logs(
    run_dir: Path = RUN_DIR,
    rank: str = typer.Option("", "--rank", help="A rank's number, or scheduler or supervisor; all without it."),
    lines: int = typer.Option(20, "--lines", "-n", min=0, help="How many of the last lines; 0: all."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on as the logs grow, until the run ends."),
    as_json: bool = AS_JSON,
) -> None:
    """The last lines of the ranks' logs.

    Example: qwenlib logs runs/mine --rank 0 --follow
    """
    from qwenlib.launch import rundir

    if as_json and follow:
        raise Refused("--json prints one document, --follow goes on: give one of them.")
    folder = rundir.find_launch(run_dir)
    files = _log_files(folder, rank)
    if not (files or follow):
        raise Refused(f"{folder} has no log of a rank (rank_N/rank.log): none has begun yet, or they were removed.")
    tails = {name: _Tail(path, lines) for name, path in files.items()}
    if as_json:
        typer.echo(json.dumps({name: tail.new() for name, tail in tails.items()}, indent=2, ensure_ascii=False))
        return
    while True:
        final = all(item["state"] in rundir.FINAL for item in _read(folder)) if follow else True
        for name, path in {} if rank else _log_files(folder, "").items():  # ranks that begin later
            tails.setdefault(name, _Tail(path, lines))
        for name, tail in tails.items():
            for line in tail.new(last=final):
                typer.echo(f"{name}: {line}" if len(tails) > 1 else line)
        if final:
            return
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)


def stop(run_dir: Path = RUN_DIR, as_json: bool = AS_JSON) -> None:
    """End a run: all its ranks and what they started. Exit code 0: nothing of it is left.

    Example: qwenlib stop runs/mine
    """
    from qwenlib import launch
    from qwenlib.launch import client, rundir

    folder = rundir.find_launch(run_dir)
    places = client.launches(folder)
    ours = [place for place in places if rundir.here(rundir.current(place))]
    if not ours:
        launch.attach(folder).stop()  # refuses, and says where it runs
    results: List[Dict[str, Any]] = []
    for place in [*ours, *(place for place in places if place not in ours)]:
        found = rundir.current(place)
        if place in ours and (found["state"] not in rundir.FINAL or found.get("alive")):
            found = launch.attach(place).stop()
        deadline = time.monotonic() + OTHER_NODES_SECONDS  # they hear of it from this node's supervisor
        while found["state"] not in rundir.FINAL and time.monotonic() < deadline:
            time.sleep(FOLLOW_SECONDS)
            found = rundir.current(place)
        results.append(found)
    left = [pid for item in results for pid in item.get("left") or []]
    if as_json:
        typer.echo(json.dumps({"state": results[0]["state"], "left": left, "run_dir": str(folder)}, indent=2))
    else:
        typer.echo(f"{folder}: {results[0]['state']}")
    if left:
        raise WorkFailed(f"these processes did not end, not even by SIGKILL: {', '.join(map(str, left))}.")


def _read(folder: Path) -> List[Dict[str, Any]]:
    from qwenlib.launch import client, rundir

    return [rundir.current(place) for place in client.launches(folder)]


def _text(folder: Path, found: List[Dict[str, Any]]) -> str:
    from qwenlib.launch import failure

    lines: List[str] = []
    for item in found:
        where = f" (node {item['node']} of {item['nodes']})" if item.get("nodes", 1) > 1 else ""
        tied = "tied to the program that started it" if item.get("tied", True) else "detached"
        lines.append(f"{folder}{where}: {item['state']}" + ("" if item.get("finished") else f", {tied}"))
        for entry in [*item["ranks"], *filter(None, [item.get("scheduler")])]:
            lines.append(f"  {entry['name']}: {_rank(entry)}")
        if item.get("restarts"):
            lines.append(f"  restarted {len(item['restarts'])} time(s); last: {item['restarts'][-1]['message']}")
        if item.get("hanging"):
            lines.append(f"  {item['hanging']['ranks'][0]} {failure.hang_text(item['hanging'])}")
        if item["state"] in ("failed", "stopped"):
            lines.append(failure.paragraph(item))
    return "\n".join(lines)


def _rank(entry: Dict[str, Any]) -> str:
    text = str(entry["state"])
    if entry["state"] == "running":
        text += f" (pid {entry['pid']})"
    elif entry["signal"]:
        text += f" ({entry['signal']})"
    elif entry["exit_code"]:
        text += f" (exit code {entry['exit_code']})"
    if "step" in entry:
        text += f", step {entry['step']}" + (f" of {entry['total']}" if entry.get("total") else "")
    elif entry.get("ready"):
        text += ", ready; compiling the first step"
    return text


def _log_files(folder: Path, rank: str) -> Dict[str, Path]:
    from qwenlib.launch import client, failure, rundir

    files: Dict[str, Path] = {}
    for place in client.launches(folder):
        files.update({path.parent.name: path for path in sorted(place.glob(f"rank_*/{failure.LOG_FILE}"), key=_number)})
    if rank:
        files["scheduler"] = folder / "scheduler" / failure.LOG_FILE
        files["supervisor"] = folder / rundir.SUPERVISOR_LOG
        name = f"rank_{rank}" if rank.isdigit() else rank
        if name not in files or not files[name].exists():
            have = ", ".join(key for key, path in files.items() if path.exists())
            raise Refused(f"{folder} has no log of {name}; there are: {have or 'none'}.")
        return {name: files[name]}
    return files


def _number(path: Path) -> int:
    digits = path.parent.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


class _Tail:
    """The last lines of a growing file, then what is added to it."""

    def __init__(self, path: Path, lines: int):
        self.path, self.lines = path, lines
        self.place = _from_end(path, lines)
        self.rest = b""

    def new(self, last: bool = True) -> List[str]:
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.place)
                data = stream.read()
        except OSError:
            return []
        self.place += len(data)
        *whole, self.rest = (self.rest + data).split(b"\n")
        if last and self.rest:
            whole, self.rest = [*whole, self.rest], b""
        # A carriage return overwrites the line on a terminal: only its last state is worth a line.
        return [line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2] for line in whole]


def _from_end(path: Path, lines: int) -> int:
    """Where the last ``lines`` lines begin (0: the whole file), read from the end in blocks of 64 KiB."""
    try:
        with open(path, "rb") as stream:
            place = stream.seek(0, 2)
            if not lines:
                return 0
            tail = b""
            while place and tail.rstrip(b"\n").count(b"\n") < lines:
                step = min(65536, place)
                place -= step
                stream.seek(place)
                tail = stream.read(step) + tail
    except OSError:
        return 0
    wanted = tail.rstrip(b"\n").split(b"\n")
    skip = max(0, len(wanted) - lines)
    return place + sum(len(line) + 1 for line in wanted[:skip])
