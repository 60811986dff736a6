"""Make or repair a virtual environment from a lock file; do nothing when it is already whole.

    tools/make_venv.py .venv                                  # the CPU stack of this interpreter's version
    tools/make_venv.py .venv-py39 --lock requirements/min-py39.txt

The file ``DIR/qwenlib-installed.json`` is written last and taken away first, so that its presence says that the
environment is whole: what it was made from stands in it. An interrupted install has none and is made anew.
Standard library only; run it with the interpreter that the environment is for (see tools/find_python).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
STAMP = "qwenlib-installed.json"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
BEAT_SECONDS = 10.0
FREE_SPACE = {"cpu": 6 * 2**30, "min": 2**29}
"""Bytes wanted free before an install, by the first word of the lock's name: what the environment takes, the wheels
that pip unpacks beside it, and some room."""


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path, metavar="DIR", help="the virtual environment")
    parser.add_argument("--lock", type=Path, help="default: requirements/cpu-pyXY.txt for the running interpreter")
    parser.add_argument("--project", type=Path, default=ROOT, help="the checkout to install, editable (default: ours)")
    args = parser.parse_args()
    lock = args.lock or ROOT / "requirements" / f"cpu-py{VERSION.replace('.', '')}.txt"
    if not lock.is_file():
        return refuse(f"there is no lock file {lock} for Python {VERSION}; make lock writes them")
    os.environ.update(clean_environment())
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX"):
        os.environ.pop(name, None)
    # Two makes at once: the second waits, then finds everything installed.
    with open(args.project / "pyproject.toml", "rb") as pyproject:
        try:
            fcntl.flock(pyproject, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another install into {args.venv} to end", flush=True)
            fcntl.flock(pyproject, fcntl.LOCK_EX)
        # The steps hold the lock too: should this process be killed alone, pip may go on for a while.
        os.set_inheritable(pyproject.fileno(), True)
        return install(args.venv.absolute(), lock.resolve(), args.project.resolve())


def install(venv: Path, lock: Path, project: Path) -> int:
    """Bring ``venv`` to what ``lock`` and ``project`` ask for; 0 when it is so in the end."""
    wanted = fingerprint(venv, lock, project)
    found = read_stamp(venv)
    if found == wanted and runs(venv):
        return 0
    began = time.monotonic()
    keep = found is not None and all(found.get(key) == wanted[key] for key in ("python", "venv")) and runs(venv)
    packages = not (keep and found and found.get("lock") == wanted["lock"])
    if packages:
        needed = FREE_SPACE.get(lock.name.split("-")[0], 0)
        free = shutil.disk_usage(venv.parent).free
        if free < needed and not keep:
            return refuse(
                f"{venv} needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free below {venv.parent}: "
                "free some space, or clone to another disk"
            )
    if found is not None:
        (venv / STAMP).unlink()
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    steps = [] if keep else [("create it", [sys.executable, "-m", "venv", "--clear", str(venv)])]
    if packages:
        count = sum(1 for line in lock.read_text(encoding="utf-8").splitlines() if line[:1].isalnum())
        steps.append((f"install the {count} pinned packages of {lock.name}", [*pip, "-r", str(lock)]))
    # The build backend is one of the pinned packages: nothing is downloaded, nothing resolved here.
    steps.append(("install qwenlib", [*pip, "--no-deps", "--no-build-isolation", "--editable", str(project)]))
    print(f"{venv.name}: Python {sys.version.split()[0]} at {sys.executable}", flush=True)
    for number, (what, command) in enumerate(steps, 1):
        print(f"{venv.name}: step {number} of {len(steps)}: {what}", flush=True)
        code = run(command, venv)
        if code:
            print(
                f"qwenlib: failed: step {number} of {len(steps)} ({what}) ended with exit code {code}; "
                f"the lines above say why. {venv} is not whole, and the next call begins it anew.",
                file=sys.stderr,
            )
            return 1
    part = venv / f".{STAMP}.part"
    part.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    part.replace(venv / STAMP)
    print(f"{venv.name}: whole, after {time.monotonic() - began:.0f} s", flush=True)
    return 0


def run(command: Sequence[str], venv: Path) -> int:
    """Run one step to its end; its exit code. pip says nothing while it unpacks for a minute: count what is there."""
    began, told = time.monotonic(), 2  # pip and setuptools come with the environment
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False) as process:
        while True:
            try:
                return process.wait(timeout=BEAT_SECONDS)
            except subprocess.TimeoutExpired:
                count = sum(1 for _ in venv.glob("lib/python*/site-packages/*.dist-info"))
                if count != told:
                    seconds = time.monotonic() - began
                    print(f"{venv.name}: {count} packages are in place after {seconds:.0f} s", flush=True)
                told = count


def fingerprint(venv: Path, lock: Path, project: Path) -> Dict[str, str]:
    """What an environment is made from. A moved one is no longer whole: its scripts hold absolute paths."""
    return {
        "python": VERSION,
        "venv": str(venv),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "pyproject": hashlib.sha256((project / "pyproject.toml").read_bytes()).hexdigest(),
    }


def read_stamp(venv: Path) -> Optional[Dict[str, str]]:
    """What ``venv`` says it was made from; None when it is not whole."""
    try:
        found = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def runs(venv: Path) -> bool:
    """True when the environment's interpreter starts (the one it was made with may have been removed)."""
    try:
        return subprocess.call([str(venv / "bin" / "python"), "-c", ""], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def clean_environment() -> Dict[str, str]:
    """Settings under which nothing of the user's own site leaks into the environment."""
    return {"PYTHONNOUSERSITE": "1", "PIP_USER": "0"}


def refuse(sentence: str) -> int:
    """Say why nothing was done; the exit code for that."""
    print(f"qwenlib: refused: {sentence}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("qwenlib: failed: interrupted; the next call begins the install anew.")
