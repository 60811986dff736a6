"""The program of one rank: ``python -m qwenlib.engine.rank JOB.json``.

The launcher sets the rank's environment and working folder. When the work fails, ``error.json`` in the working
folder says what happened (type, message, stack, time); the exit code is 1, or 2 for refused input.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List

from qwenlib.engine import job as jobs
from qwenlib.errors import QwenlibError
from qwenlib.files import write_json


def prepare(job: jobs.Job) -> Any:
    """Import MindFormers (patched first when the device is a CPU), register our tokenizer, build the context.

    Returns the parsed ``MindFormerConfig``.

    Raises:
        Refused: a key of the configuration that MindFormers would ignore.
    """
    if job.device_target == "CPU":
        from qwenlib.engine.compat import apply_cpu_patches

        apply_cpu_patches()
    from mindformers import MindFormerConfig, build_context

    from qwenlib.engine import keys, tokenizer

    tokenizer.register()
    keys.check_keys(job.config)
    config = MindFormerConfig(**job.config)
    build_context(config)
    return config


def run(job: jobs.Job) -> None:
    """Do the job in this process."""
    config = prepare(job)
    if job.task == "finetune":
        from qwenlib.engine.train import finetune

        finetune(config, job)
    elif job.task in ("score", "logits"):
        from qwenlib.engine import score

        getattr(score, job.task)(config, job)
    else:
        from qwenlib.engine.serve import serve

        serve(config, job)


def describe(error: BaseException) -> Dict[str, Any]:
    """The content of error.json."""
    return {
        "type": type(error).__name__,
        "message": str(error).strip() or type(error).__name__,
        "stack": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        "time": time.time(),
        "exit_code": getattr(error, "exit_code", 1),
    }


def _record(error_file: Path, error: BaseException) -> None:
    with contextlib.suppress(OSError, QwenlibError):  # the disk may be full: what is printed must do then
        write_json(error_file, describe(error))


def main(arguments: List[str]) -> int:
    """Run the job file named on the command line; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m qwenlib.engine.rank JOB.json", file=sys.stderr)
        return 2
    error_file = Path("error.json")
    error_file.unlink(missing_ok=True)
    try:
        run(jobs.load(arguments[0]))
    except QwenlibError as error:
        _record(error_file, error)
        print(f"qwenlib: {error.heading}: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException as error:
        _record(error_file, error)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
