"""The boot script of a ModelArts training job: ``python -m qwenlib.jobs.modelarts --profile lora_7b_910a …``.

One run of the workbook per node, whether the platform starts one process there or one per card; inputs are copied from
OBS first, the run directory is uploaded at the end, after a failure too; the exit code is the run's.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from qwenlib import modelarts
from qwenlib.errors import QwenlibError, Refused
from qwenlib.jobs import obs, once, scrub

JOB_NAMES = ("MA_VJ_NAME", "BATCH_JOB_ID", "MA_JOB_DIR", "DLS_JOB_ID")
RANKS = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "ASCEND_DEVICE_ID")
"""Of this one process, when the platform starts one per card; the workbook lays the ranks out anew."""


def parser() -> argparse.ArgumentParser:
    """The boot script's own options; every other ``--name value`` is a parameter of the notebooks."""
    made = argparse.ArgumentParser(
        "python -m qwenlib.jobs.modelarts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options are notebook parameters: --epochs 3, or --04_lora.epochs 3 for one stage only.\n"
        "Example: python -m qwenlib.jobs.modelarts --profile lora_7b_910a --copy_in obs://bucket/Qwen1.5-7B=/cache/hf "
        "--torch_ckpt_dir /cache/hf --train_url obs://bucket/runs/1",
        allow_abbrev=False,
    )
    made.add_argument("--profile", default="smoke", help="a shipped profile, or a .yaml file")
    made.add_argument(
        "--output", default="", help="run directory on the local disk (default: in /cache, else runs/job)"
    )
    made.add_argument("--only", action="append", metavar="STAGE", help="run this stage only; repeatable")
    made.add_argument("--copy_in", action="append", default=[], metavar="FROM=TO", help="copy first; repeatable")
    made.add_argument("--train_url", default="", help="obs://… or a folder: the run directory goes there at the end")
    made.add_argument("--notebooks", default="", help="folder with the stage folders (default: the project's)")
    made.add_argument("--resume", action="store_true", help="skip stages of which nothing changed")
    made.add_argument("--lock_dir", default="", help="a folder of this node alone (default: in the temporary folder)")
    return made


def assignments(rest: Sequence[str]) -> List[str]:
    """``["--epochs", "3", "--04_lora.port=1"]`` as ``["epochs=3", "04_lora.port=1"]``.

    Raises:
        Refused: a word that belongs to no option, an option without a value, or a secret: it would be written into the
            executed notebook.
    """
    found, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise Refused(f"{word!r} belongs to no option; notebook parameters read --name value or --name=value.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise Refused(f"--{name} has no value; notebook parameters read --name value or --name=value.")
            value = words.pop(0)
        if modelarts.is_secret(name.split(".")[-1].upper()):
            raise Refused(
                f"--{name} looks like a secret, and parameters are written into the notebooks: set a variable."
            )
        found.append(f"{name}={value}")
    return found


def main(arguments: Optional[Sequence[str]] = None, environ: Optional[Mapping[str, str]] = None) -> int:
    """Run the job; returns the exit code (0 done, 1 failed, 2 refused)."""
    environ = os.environ if environ is None else environ
    begun = _started()
    options, rest = parser().parse_known_args(arguments)
    try:
        parameters, copies = assignments(rest), [_pair(text) for text in options.copy_in]
        for url in [options.train_url, *(url for pair in copies for url in pair)]:
            obs.require(url)
        job = next((environ[name] for name in JOB_NAMES if environ.get(name)), "local")
        folder = options.lock_dir or str(Path(tempfile.gettempdir()) / f"qwenlib-jobs-{os.getuid()}")
        return once.once(folder, job, lambda: work(options, parameters, copies, environ), begun)
    except QwenlibError as error:
        print(f"qwenlib: {error.heading}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        print(f"qwenlib: failed: {error.filename}: {error.strerror}.", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("qwenlib: interrupted.", file=sys.stderr, flush=True)
        return 130


def work(
    options: argparse.Namespace, parameters: List[str], copies: List[Tuple[str, str]], environ: Mapping[str, str]
) -> int:
    """Copy in, run the workbook, hide secrets, upload; the exit code.

    Raises:
        Refused: something about the run is wrong; what there is of it is uploaded all the same.
        WorkFailed: a copy failed.
    """
    from qwenlib.workbook import runner, stages

    output = Path(options.output or _default_output(environ)).absolute()
    for name in RANKS:
        os.environ.pop(name, None)
    signal.signal(signal.SIGTERM, _stop)
    code = 1
    try:
        for source, target in copies:
            print(f"copying {source} to {target}", flush=True)
            obs.copy(source, target)
        content = runner.run(
            options.profile,
            output,
            stages.from_assignments(parameters),
            options.only,
            options.resume,
            notebooks=options.notebooks or None,
        )
        code = exit_code(content)
    finally:
        _upload(output, options.train_url, environ)
    return code


def exit_code(content: Dict[str, Any]) -> int:
    """0 done; 2 when a stage refused its input; 1 otherwise. Says why on stderr."""
    if content["state"] == "done":
        return 0
    failure = content.get("first_failure") or {}
    if failure:
        from qwenlib.workbook import banner

        told = f"stage {failure['stage']}: {banner.sentence(failure)}"
        print(f"qwenlib: {told}", file=sys.stderr, flush=True)
    return 2 if failure.get("kind") == "cell" and failure.get("ename") == "Refused" else 1


def _upload(output: Path, url: str, environ: Mapping[str, str]) -> None:
    if not output.is_dir():
        return
    for path in scrub.scrub(output, environ):
        print(f"a secret was taken out of {path}", flush=True)
    if url:
        from qwenlib.ranktable.whoami import worker_index

        number = worker_index(environ)[0]
        target = url.rstrip("/") + (f"/node_{number}" if number is not None else "")
        print(f"uploading {output} to {target}", flush=True)
        obs.copy(str(output), target)


def _default_output(environ: Mapping[str, str]) -> Path:
    cache = Path(modelarts.CACHE)
    if cache.is_dir() and os.access(cache, os.W_OK):
        return cache / "qwenlib" / "run"
    return Path.cwd() / "runs" / "job"  # qwenlib/ may be the package, in a checkout


def _pair(text: str) -> Tuple[str, str]:
    source, equals, target = text.partition("=")
    if not (source and equals and target):
        raise Refused(f"--copy_in must read FROM=TO, found {text!r}.")
    return source, target


def _stop(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)  # the platform stops the job: the upload below still happens


def _started() -> float:
    """When this process was started, on the clock of time.time(); late by a hundredth of a second, never early.

    psutil's create_time() stands on a boot time in whole seconds: a job started right after another would seem to be a
    process of that one. The kernel counts in ticks, so the end of this process's tick is meant.
    """
    stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    ticks = int(stat[stat.rindex(")") + 2 :].split()[19])  # field 22, starttime, counted since the boot
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - (ticks + 1) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


if __name__ == "__main__":
    sys.exit(main())
