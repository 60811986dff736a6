"""Train with the real MindFormers and note what it computes: ``python loss_probe.py FOUND.json JOB.json…``.

Each job is one that :func:`qwenlib.engine.work.training_plan` wrote; all of it is the production path, but for a
callback that reads the loss of each step with all its digits (MindFormers logs three).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, List


def main(found_file: Path, job_files: List[str]) -> None:
    """Run the jobs one after the other; write the losses of the steps of each."""
    from qwenlib.engine import job as jobs
    from qwenlib.engine import rank, train

    found: List[List[float]] = []
    account = train._account

    def noting(*given: Any) -> Any:
        inner = account(*given)

        class Noting(type(inner)):  # type: ignore[misc]
            def on_train_step_end(self, run_context: Any) -> None:
                outputs = run_context.original_args().net_outputs
                loss = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
                found[-1].append(float(loss.asnumpy()))

        inner.__class__ = Noting
        return inner

    train._account = noting
    for job_file in job_files:
        found.append([])
        os.chdir(Path(job_file).parent)
        rank.run(jobs.load(job_file))
    found_file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
