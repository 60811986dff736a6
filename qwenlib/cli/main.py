"""The ``qwenlib`` command: mounts each room's commands and turns our errors into sentences and exit codes."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import typer

from qwenlib import __version__
from qwenlib.cli import shell
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


def main() -> None:
    """Entry point of the console script."""
    shell.prepare()
    with shell.orderly():
        _run()


def _run() -> None:
    try:
        try:
            app(standalone_mode=True)
        except SystemExit as end:
            if not end.code:
                sys.stdout.flush()  # here, where a full disk can still be told
            raise
    except QwenlibError as error:
        print(f"qwenlib: {error.heading}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # who read has had enough, as head has
        sys.exit(1)
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
    finally:
        shell.settle_output()
