"""Jobs of one background process each: the loss over a data set, the logits of some rows.

Like :mod:`qwenlib.engine.work`, this side imports neither MindSpore nor MindFormers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

from qwenlib import launch
from qwenlib.engine import render, work
from qwenlib.engine.job import Job
from qwenlib.files import make_folder, read_json
from qwenlib.profile import Profile
from qwenlib.progress import tell
from qwenlib.weights import fit, place

_PROGRESS = re.compile(r"^[a-z][^:|]*: \d+/\d+ ")


def one_rank(job: Job, run_dir: Union[str, Path], what: str) -> Any:
    """Run ``job`` in one background process, echo its progress lines, and return its result (JSON).

    Raises:
        WorkFailed: the process failed, with its own error.
    """
    run_dir = Path(run_dir).absolute()
    make_folder(run_dir)
    Path(job.result).unlink(missing_ok=True)
    job_file = job.save(run_dir / "job.json")
    plan = launch.Plan(work.command(job_file), run_dir=run_dir, device_target=job.device_target, share_devices=True)
    tell(f"{what}: a background process in {run_dir}")
    with launch.start(plan) as run:
        echo = _Echo(run.rank_log(0))
        run.wait(on_tick=echo)
    return read_json(job.result) if job.result.endswith(".json") else Path(job.result)


class _Echo:
    """Hands the progress lines of a rank's log on to who looks here."""

    def __init__(self, log: Path):
        self.log, self.place = log, 0

    def __call__(self, _status: Dict[str, Any]) -> None:
        try:
            with open(self.log, "rb") as stream:
                stream.seek(self.place)
                new = stream.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.place += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            if _PROGRESS.match(line):
                tell(line)


def score(
    profile: Profile,
    *,
    load_checkpoint: Union[str, Path],
    mindrecord: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    run_dir: Union[str, Path],
    checkpoints: Optional[Dict[str, Union[str, Path]]] = None,
    adapter_task: str = "",
    plain: Sequence[str] = (),
) -> Dict[str, Dict[str, float]]:
    """Mean loss (nats per learned token) over a whole MindRecord: of the base, and of ``checkpoints`` by name.

    ``adapter_task``: "lora" when ``checkpoints`` are LoRA checkpoints; ``plain``: names of those that are none.

    Returns:
        ``{"base": {"loss", "tokens", "token_accuracy"}, name: …}``.
    """
    config = render.predict_config(
        profile,
        vocab_file=Path(vocab_file).absolute(),
        merges_file=Path(merges_file).absolute(),
        output_dir=Path(run_dir).absolute() / "output",
        tokens=work.token_ids(work.base_vocabulary(vocab_file)),
        adapter_task=profile.task(adapter_task) if adapter_task else None,
        use_past=False,
    )
    settings = {
        "mindrecord": str(Path(mindrecord).absolute()),
        "checkpoints": {name: str(place.locate(path).absolute()) for name, path in (checkpoints or {}).items()},
        "plain": list(plain),
    }
    job = predict_job("score", profile, config, load_checkpoint, Path(run_dir), "score.json", settings)
    return dict(one_rank(job, run_dir, "score"))


def logits(
    profile: Profile,
    input_ids: Sequence[Sequence[int]],
    *,
    load_checkpoint: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    run_dir: Union[str, Path],
) -> Any:
    """MindFormers' logits, float32 [rows, length, vocabulary], for rows of ``seq_length`` ids each."""
    import numpy

    config = render.predict_config(
        profile,
        vocab_file=Path(vocab_file).absolute(),
        merges_file=Path(merges_file).absolute(),
        output_dir=Path(run_dir).absolute() / "output",
        tokens=work.token_ids(work.base_vocabulary(vocab_file)),
        use_past=False,
    )
    settings = {"input_ids": [[int(token) for token in row] for row in input_ids]}
    job = predict_job("logits", profile, config, load_checkpoint, Path(run_dir), "logits.npz", settings)
    with numpy.load(one_rank(job, run_dir, "logits")) as found:
        return found["logits"]


def predict_job(
    task: str,
    profile: Profile,
    config: Dict[str, Any],
    load_checkpoint: Union[str, Path],
    run_dir: Path,
    result: str,
    settings: Dict[str, Any],
    whole: bool = False,
) -> Job:
    """A job of one checkpoint: the file of rank 0, or (``whole``) the model_dir that MindFormers slices itself."""
    fit.refuse_cut(load_checkpoint)
    checkpoint = Path(load_checkpoint).absolute() if whole else place.locate(load_checkpoint).absolute()
    return Job(task, profile.device_target, config, str(checkpoint), str(run_dir.absolute() / result), settings)
