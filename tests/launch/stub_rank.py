"""A rank in plain Python that does what the tests ask: ``stub_rank.py ACTION [ACTION …]``, one per rank
(the last one counts for all further ranks). Parts of an action are joined by ``+`` and done in turn."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time


def main() -> None:
    rank = int(os.environ.get("RANK_ID", "0"))
    actions = sys.argv[1:]
    for part in actions[min(rank, len(actions) - 1)].split("+"):
        name, _, value = part.partition(":")
        ACTIONS[name](value)


def _raise(message: str) -> None:
    from qwenlib.launch import record_error

    try:
        raise ValueError(message)
    except ValueError as error:
        record_error(error, 4)
    time.sleep(0.3)  # tearing down takes its time, and the other ranks see it
    sys.exit(4)


def _record(message: str) -> None:
    from qwenlib.launch import record_error

    record_error(ValueError(message))


def _ignore(_: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _environment(_: str) -> None:
    with open("environment.json", "w", encoding="utf-8") as stream:
        json.dump({"cwd": os.getcwd(), "environ": dict(os.environ), "sid": os.getsid(0), "pid": os.getpid()}, stream)


def _daemon(_: str) -> None:
    """A grandchild in a session of its own whose parent has ended: the way out of every process group."""
    code = "import subprocess; subprocess.Popen(['sleep', '100'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _daemon_on_term(_: str) -> None:
    def on_term(*_: object) -> None:
        subprocess.Popen(["sleep", "100"], start_new_session=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, on_term)


def _record_on_term(message: str) -> None:
    def on_term(*_: object) -> None:
        _record(message)
        os._exit(1)

    signal.signal(signal.SIGTERM, on_term)


def _behead(path: str) -> None:
    """End the first thread alone, as SYS_exit does it: the process looks like a zombie while another one lives on."""
    number = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    threading.Thread(target=time.sleep, args=(60,)).start()
    _ready(path)
    ctypes.CDLL(None).syscall(number, 0)


def _ready(path: str) -> None:
    with open(path, "w", encoding="utf-8"):
        pass


def _await(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def _bytes(_: str) -> None:
    sys.stdout.buffer.write(b"caf\xe9 \xff\xfe\r100%\rlast words \x80\n")
    sys.stdout.buffer.flush()


def _spam(count: str) -> None:
    line = "x" * 80 + "\n"
    for _ in range(int(count) // 1000):
        sys.stdout.write(line * 1000)


def _report(_: str) -> None:
    from qwenlib.launch import report_ready

    report_ready()


def _steps(text: str) -> None:
    """``steps:COUNT/SECONDS``."""
    from qwenlib.launch import heartbeat

    heartbeat.MIN_SECONDS = 0.0
    count, seconds = text.split("/")
    for step in range(1, int(count) + 1):
        time.sleep(float(seconds))
        heartbeat.report_step(step, 1000)


def _fail_first(code: str) -> None:
    if not os.environ.get("QWENLIB_RESTART"):
        sys.exit(int(code))
    print("restart", os.environ["QWENLIB_RESTART"])


ACTIONS = {
    "report": _report,
    "steps": _steps,
    "fail_first": _fail_first,
    "segfault": lambda _: faulthandler._sigsegv(),
    "abort": lambda _: os.abort(),
    "exit": lambda code: sys.exit(int(code)),
    "print": print,
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "kill": lambda name: os.kill(os.getpid(), getattr(signal, name)),
    "fork": lambda _: subprocess.Popen(["sleep", "100"]),
    "raise": _raise,
    "record": _record,
    "ignore": _ignore,
    "environment": _environment,
    "daemon": _daemon,
    "daemon_on_term": _daemon_on_term,
    "record_on_term": _record_on_term,
    "behead": _behead,
    "ready": _ready,
    "await": _await,
    "bytes": _bytes,
    "spam": _spam,
}

if __name__ == "__main__":
    main()
