"""The ``qwenlib`` command: mounts each room's commands and turns our errors into sentences and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import signal
import sys
import threading
from typing import Iterator

import typer

from qwenlib import __version__
from qwenlib.errors import QwenlibError

ROOMS = (
    "workbook",
    "doctor",
    "ranktable",
    "weights",
    "data",
    "hold_out",
    "config",
    "train",
    "runs",
    "diagnose",
    "predict",
    "chat",
    "evaluate",
)
"""Modules of ``qwenlib.cli``, in the order of ``--help``; each has ``register(app)``."""

INTERRUPTED = "qwenlib: interrupted."

app = typer.Typer(
    name="qwenlib",
    help="Fine-tune Qwen1.5 on Ascend 910 (and, with a tiny model, on a CPU).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qwenlib {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Exit codes: 0 done; 1 the work failed; 2 the input or the command was refused."""


for room in ROOMS:
    if importlib.util.find_spec(f"qwenlib.cli.{room}"):
        importlib.import_module(f"qwenlib.cli.{room}").register(app)


def _ended(number: int, _frame: object) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal says it twice
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # who asks again does not want to wait
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"qwenlib: ended by {signal.Signals(number).name}.", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    """After SIGTERM, or when the terminal is closed, what was begun is put in order, as after Ctrl-C."""
    numbers = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in ours:
        signal.signal(number, _ended)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """Entry point of the console script."""
    with _orderly():
        _run()


def _run() -> None:
    try:
        app(standalone_mode=True)
    except QwenlibError as error:
        print(f"qwenlib: {error.heading}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk, a permission, a place that is no folder: nothing that a traceback explains
        place = f"{error.filename}: " if error.filename else ""
        print(f"qwenlib: failed: {place}{error.strerror or error}.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if end.code == 130:  # typer takes the interrupt key itself and says nothing
            print(INTERRUPTED, file=sys.stderr)
        raise
