"""What a shell hands to a command: closed descriptors, a ~ that it left as it is, and signals that end the command."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from typing import Iterator, List, Sequence

_HOME = re.compile(r"((?:--?[\w-]+=)?(?:[\w.]+=)?)(~(?:/.*)?)", re.DOTALL)
_TEXTS = ("--predict_data", "--system")
"""Options that take a text, not a path."""


def prepare() -> None:
    """Make the process one that needs no care: before anything is opened or started."""
    open_standard_files()
    sys.argv[1:] = expand_home(sys.argv[1:])


def _ended(number: int, _frame: object) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal says it twice
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # who asks again does not want to wait
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"qwenlib: ended by {signal.Signals(number).name}.", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
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


def open_standard_files() -> None:
    """Give stdin, stdout and stderr a file each where they are closed (``>&-``, some job runners).

    Else the next file that is opened, be it the output, gets their number, and what libraries print lands in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


def settle_output() -> None:
    """Where stdout or stderr takes nothing any more, drop what waits for it: else the interpreter tries again, and ends
    with a code of its own.
    """
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def expand_home(arguments: Sequence[str]) -> List[str]:
    """The arguments with ``~`` and ``~/…`` as the home folder, also behind ``--option=`` and ``-p name=``.

    Shells expand it at the beginning of a word only, and would let ``--output_path=~/x`` make a folder named ``~``.
    """
    found = []
    before = ""
    for argument in arguments:
        match = _HOME.fullmatch(argument)
        text = before in _TEXTS or argument.partition("=")[0] in _TEXTS
        found.append(match.group(1) + os.path.expanduser(match.group(2)) if match and not text else argument)
        before = argument
    return found
