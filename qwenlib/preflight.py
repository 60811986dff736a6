"""What can be known before ranks are started: the profile against its data, weights, rank table and machine.

Every check is made even when an earlier one fails, so that all problems are told at once. What is not given (no rank
table, no data yet) is skipped and said to be.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from qwenlib import modelarts
from qwenlib import profile as profiles
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN, Finding
from qwenlib.errors import QwenlibError, Refused
from qwenlib.profile import Profile, Task

GIB = 2**30

ACCTRANSFORMER = (
    "git clone -b fa1_for_ms2.2.11 https://gitee.com/mindspore/acctransformer.git && cd acctransformer/train && "
    "bash build.sh && pip install --no-deps --no-index dist/acctransformer-1.0.0-py3-none-any.whl "
    "(or from source: export PYTHONPATH=/path/acctransformer/train:$PYTHONPATH); "
    "or train without it: -s model.use_flash_attention=false"
)
"""How FlashAttention comes to a 910A."""


@dataclass
class Inputs:
    """What a training is to be started with; what is not known yet is None or ""."""

    load_checkpoint: Optional[Union[str, Path]] = None
    train_dataset: Optional[Union[str, Path]] = None
    data_config: Optional[Dict[str, Any]] = None
    """``config`` of 03_data's meta.json; None: what lies beside ``train_dataset``."""
    sizes: Optional[Dict[str, Any]] = None
    """``sizes`` of 02_weights's meta.json."""
    rank_table: Optional[Union[str, Path]] = None
    run_dir: Optional[Union[str, Path]] = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    root: Union[str, Path] = "/"
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None
    available_memory: Optional[int] = None
    """Bytes; None: asked from the system."""


@dataclass(frozen=True)
class Report:
    """All findings, numbered from 1."""

    profile: str
    task: str
    findings: Tuple[Finding, ...]

    @property
    def fails(self) -> List[Finding]:
        """What stops the training."""
        return [item for item in self.findings if item.state == FAIL]

    def text(self) -> str:
        """One line a finding."""
        return "\n".join(item.text() for item in self.findings)

    def frame(self) -> Any:
        """A pandas table: number, state, check, reason."""
        import pandas

        rows = [(item.number, item.state, item.name, item.reason) for item in self.findings]
        return pandas.DataFrame(rows, columns=["number", "state", "check", "reason"]).set_index("number")

    def stop(self) -> None:
        """End here when something failed.

        Raises:
            Refused: naming every FAIL.
        """
        if self.fails:
            told = "; ".join(f"{item.name}: {item.reason.rstrip('.')}" for item in self.fails)
            raise Refused(f"profile {self.profile}, {self.task}: {len(self.fails)} problem(s): {told}.")


def check(profile: Profile, task_name: str, inputs: Optional[Inputs] = None) -> Report:
    """Every check of a training task; never raises for what it finds.

    Raises:
        Refused: the profile has no such task.
    """
    task, given = profile.task(task_name), inputs or Inputs()
    found = [Finding("profile", FAIL, text) for text in profiles.check(profile)] or [Finding("profile", OK, "fits")]
    for one in (_ranks, _model, _batch, _data, _checkpoint, _flash_attention, _memory, _disk, _platform, _sink):
        try:
            found += one(profile, task, given)
        except QwenlibError as error:
            if str(error) not in {item.reason for item in found}:  # two checks may look for the same file
                found.append(Finding(one.__name__.strip("_").replace("_", " "), FAIL, str(error)))
        except ZeroDivisionError:  # a size of 0 has been told above
            continue
    if _goes_on(given):
        busy = "a training goes on in the run directory: what it takes is no problem of its own"
        found = [Finding(i.name, SKIP, busy) if i.name in _TAKEN and i.state == FAIL else i for i in found]
    numbered = (Finding(item.name, item.state, item.reason, number) for number, item in enumerate(found, 1))
    return Report(profile.name, task_name, tuple(numbered))


_TAKEN = ("host memory", "disk")
"""What a training that goes on uses up."""


def _goes_on(given: Inputs) -> bool:
    from qwenlib.launch import read_status, rundir

    folder = Path(given.run_dir).absolute() if given.run_dir is not None else None
    if folder is None or read_status(folder) is None:
        return False
    return bool(rundir.current(folder)["state"] not in rundir.FINAL)


def check_predict(profile: Profile) -> Report:
    """Whether a profile can answer on its one card; never raises for what it finds."""
    from qwenlib.estimate.memory import answering, limit_bytes

    found = [Finding("profile", FAIL, text) for text in profiles.check(profile)] or [Finding("profile", OK, "fits")]
    longest = profile.model.max_position_embedding
    if profile.data.seq_length > longest:
        text = f"seq_length {profile.data.seq_length} is longer than the model's {longest} positions"
        found.append(Finding("sequence length", FAIL, text))
    if profile.device_target == "Ascend" and found[0].state == OK:
        memory, limit = answering(profile), limit_bytes(profile)
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in memory.parts.items())
        text = f"about {memory.total / GIB:.1f} of {limit / GIB:.0f} GiB: {parts}"
        found.append(Finding("device memory", OK if memory.total <= limit else FAIL, text))
    numbered = (Finding(item.name, item.state, item.reason, number) for number, item in enumerate(found, 1))
    return Report(profile.name, "predict", tuple(numbered))


def _ranks(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib import ranktable

    plan = task.parallel
    product = f"data_parallel {plan.data_parallel} x model_parallel {plan.model_parallel} x pipeline_stage "
    product += f"{plan.pipeline_stage} = {plan.ranks}"
    if profile.device_target == "CPU" or plan.ranks == 1:
        yield Finding("ranks", OK, f"{product}; no rank table is needed")
        return
    if not given.rank_table:
        yield Finding("ranks", SKIP, f"{product}; no rank table is given yet (01_env finds or makes it)")
        return
    report = ranktable.check(given.rank_table, None, given.root, given.environ, here=False)
    if report.table is None:
        yield Finding("ranks", FAIL, "; ".join(item.brief() for item in report.fails) or f"{report.path} is no table")
        return
    cards = report.table.ranks
    state = OK if cards == plan.ranks else FAIL
    yield Finding("ranks", state, f"{product}; the rank table {given.rank_table} has {cards} card(s)")
    servers = len(report.table.servers)
    if servers > 1 and _slices_at_start(task, given):
        yield Finding(
            "shared folder",
            WARN,
            f"{servers} servers slice the checkpoint together (auto_trans_ckpt): the run directory must be one that "
            "all of them see, or MindFormers waits two hours for strategy files and gives up",
        )


def _model(profile: Profile, task: Task, _given: Inputs) -> Iterator[Finding]:
    model, plan = profile.model, task.parallel
    mp, wrong = plan.model_parallel, []  # num_heads, hidden_size, intermediate_size: profile.check
    kv_heads = model.n_kv_heads or model.num_heads
    if kv_heads % mp and model.num_heads % mp == 0:
        wrong.append(f"n_kv_heads {kv_heads} is not a multiple of model_parallel {mp}")
    if model.vocab_size % mp:
        state = (
            "the loss is then computed whole on every card" if plan.vocab_emb_dp else "which vocab_emb_dp false needs"
        )
        (wrong if not plan.vocab_emb_dp else []).append(f"vocab_size {model.vocab_size} % model_parallel {mp}, {state}")
        if plan.vocab_emb_dp:
            yield Finding("vocabulary", WARN, f"vocab_size {model.vocab_size} is no multiple of {mp}: {state}")
    if model.num_layers < plan.pipeline_stage:
        wrong.append(f"num_layers {model.num_layers} are fewer than pipeline_stage {plan.pipeline_stage}")
    elif model.num_layers % plan.pipeline_stage:
        yield Finding(
            "layers", WARN, f"{model.num_layers} layers on {plan.pipeline_stage} stages: the last has another number"
        )
    yield Finding("model sizes", FAIL if wrong else OK, "; ".join(wrong) or "divide by the plan")


def _batch(profile: Profile, task: Task, _given: Inputs) -> Iterator[Finding]:
    plan = task.parallel
    if plan.pipeline_stage == 1 and plan.micro_batch_num > 1:
        yield Finding(
            "micro-batches",
            FAIL,
            f"micro_batch_num {plan.micro_batch_num} does nothing without a pipeline (MindFormers leaves it out of the "
            "batch); raise batch_size, or set pipeline_stage above 1",
        )
    elif plan.micro_batch_num >= plan.pipeline_stage:  # fewer: profile.check
        yield Finding("micro-batches", OK, f"{plan.micro_batch_num} for {plan.pipeline_stage} stage(s)")
    micro = f" x micro_batch_num {plan.micro_batch_num}" if plan.pipeline_stage > 1 else ""
    text = (
        f"batch_size {task.batch_size} x data_parallel {plan.data_parallel}{micro} = {_rows_per_step(task)} rows a step"
    )
    yield Finding("batch", OK, f"{text}, every card and micro-batch with {task.batch_size}")
    text = (
        f"micro_batch_num {plan.micro_batch_num} of the pipeline accumulates the gradients"
        if plan.pipeline_stage > 1
        else "off (1 step, 1 update): MindFormers' gradient_accumulation_steps is not used"
    )
    yield Finding("gradient accumulation", OK, text)


def _data(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib.data import count_rows, read_meta

    longest = profile.model.max_position_embedding
    if profile.data.seq_length > longest:
        text = f"seq_length {profile.data.seq_length} is longer than the model's {longest} positions"
        yield Finding("sequence length", FAIL, text)
    if given.train_dataset is None:
        yield Finding("data", SKIP, "no MindRecord is given yet (03_data makes it)")
        return
    path = Path(given.train_dataset)
    if not re.search(r"mindrecord0*$", path.name):
        yield Finding("data", FAIL, f"{path}: MindFormers only reads files whose name ends in mindrecord")
    config = given.data_config
    if config is None and not path.is_file():
        config = {}  # counting its rows tells
    elif config is None:
        try:
            config = read_meta(path)
        except QwenlibError as error:
            config = {}
            yield Finding("data", WARN, f"how {path} was built is not known ({error})")
    for key in ("seq_length", "labels", "pack"):
        wanted = getattr(profile.data, key, None)
        if key in config and wanted is not None and config[key] != wanted:
            text = f"the data was built with {key} {config[key]!r}, the profile has {wanted!r}"
            yield Finding(f"data {key}", FAIL, f"{text}: run 03_data again, or set data.{key}={config[key]}")
    ids = [*(config.get("special_ids") or {}).values(), config.get("pad_token_id") or 0]
    if max(ids) >= profile.model.vocab_size:
        text = f"token {max(ids)} of the data is outside vocab_size {profile.model.vocab_size}"
        yield Finding("data vocabulary", FAIL, text)
    rows, per_step = count_rows(path), _rows_per_step(task)
    steps, left = divmod(rows, per_step)
    text = f"{rows} rows: {steps} steps of {per_step} an epoch"
    if not steps:
        yield Finding(
            "data rows", FAIL, f"{rows} rows are fewer than the {per_step} of one step: nothing would be trained"
        )
    else:
        note = f"; {left} row(s) left out of each epoch" if left else ""
        yield Finding("data rows", WARN if left > rows // 10 else OK, text + note)
    if task.sink_mode and 0 < steps < task.sink_size:
        yield Finding("sink size", FAIL, f"sink_size {task.sink_size} is more than the {steps} step(s) of an epoch")


def _rows_per_step(task: Task) -> int:
    from qwenlib.estimate.speed import rows_per_step

    return rows_per_step(task)


def _cut_before(task: Task, given: Inputs) -> bool:
    """The checkpoint is a folder of ``qwenlib weights slice``: nothing is sliced when the training starts."""
    from qwenlib.weights import fit

    return given.load_checkpoint is not None and task.parallel.ranks > 1 and fit.is_sliced(given.load_checkpoint)


def _slices_at_start(task: Task, given: Inputs) -> bool:
    return task.parallel.model_parallel * task.parallel.pipeline_stage > 1 and not _cut_before(task, given)


def _checkpoint(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib.weights import fit

    for key, value in (given.sizes or {}).items():
        if hasattr(profile.model, key) and getattr(profile.model, key) != value:
            text = f"model.{key} is {getattr(profile.model, key)}, that of the weights is {value}"
            yield Finding("weights", FAIL, text)
    if given.load_checkpoint is None:
        yield Finding("checkpoint", SKIP, "no checkpoint is given yet (02_weights makes it)")
        return
    path, plan = Path(given.load_checkpoint), task.parallel
    if _cut_before(task, given):
        yield _slices(profile, task, path)
        return
    fit.refuse_cut(path)
    ranks = _rank_folders(path)
    crowded = [name for name, count in ranks.items() if count != 1]
    if crowded:
        text = f"{path}: {', '.join(crowded)} must hold exactly one .ckpt each (MindFormers would mix or guess)"
        yield Finding("checkpoint", FAIL, text)
        return
    if len(ranks) > 1 and set(ranks) != {f"rank_{number}" for number in range(plan.ranks)}:
        text = (
            f"{path} is sliced for {len(ranks)} ranks, the plan has {plan.ranks}: merge it first, or give a whole one"
        )
        yield Finding("checkpoint", FAIL, text)
    elif len(ranks) > 1:
        text = f"{path} is sliced for {len(ranks)} ranks, as many as the plan has; the plan it was cut by is not in it"
        yield Finding("checkpoint", WARN, f"{text}, and auto_trans_ckpt would cut it again: give the whole one")
    elif plan.model_parallel * plan.pipeline_stage > 1 and path.is_file():
        text = f"{path} is a file; to be sliced it must lie as model_dir/rank_0/x.ckpt, and model_dir be given"
        yield Finding("checkpoint", FAIL, text)
    else:
        yield _whole(profile, path)


def _slices(profile: Profile, task: Task, path: Path) -> Finding:
    from qwenlib.weights import fit

    rank = task.adapter.lora_rank if task.adapter else 0
    problems = fit.misfits(path, profile.model, task.parallel, profile.device_target != "CPU", lora_rank=rank)
    files = fit.rank_files(path)
    if problems or not files:
        told = "; ".join(problems) or "it holds no rank_N"
        return Finding("checkpoint", FAIL, f"{path} holds slices: {told}. Cut anew: qwenlib weights slice")
    size = sum(held[0].stat().st_size for held in files.values())
    text = f"{path}: slices of this plan for {len(files)} of {task.parallel.ranks} ranks, {size / GIB:.2f} GiB"
    some = "; the other servers need theirs" if len(files) < task.parallel.ranks else ""
    return Finding("checkpoint", OK, f"{text}; auto_trans_ckpt is off{some}")


def _whole(profile: Profile, path: Path) -> Finding:
    from qwenlib.weights import place
    from qwenlib.weights.names import count

    file = place.locate(path)
    size, parameters = file.stat().st_size, count(profile.model)["parameters"]
    if not any(width * parameters <= size <= 1.05 * width * parameters + 2**20 for width in (2, 4)):
        text = f"{file} has {size:,} bytes; {parameters:,} parameters take {2 * parameters:,} or {4 * parameters:,}"
        return Finding("checkpoint", FAIL, f"{text}: it is of another model, or not whole")
    return Finding("checkpoint", OK, f"{file}: whole, {size / GIB:.2f} GiB")


def _rank_folders(path: Path) -> Dict[str, int]:
    """``{"rank_0": number of .ckpt files}``; {} for a file or a folder without rank folders."""
    found = sorted(path.glob("rank_*")) if path.is_dir() else []
    return {item.name: len(list(item.glob("*.ckpt"))) for item in found if item.is_dir()}


def _flash_attention(profile: Profile, _task: Task, given: Inputs) -> Iterator[Finding]:
    if not profile.model.use_flash_attention or profile.device_target != "Ascend":
        yield Finding("FlashAttention", OK, "not used")
    elif given.has_module("acctransformer"):
        yield Finding("FlashAttention", OK, "acctransformer is there")
    else:
        yield Finding(
            "FlashAttention", FAIL, f"on a 910A it needs acctransformer, which is not installed: {ACCTRANSFORMER}"
        )


def _memory(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib.estimate.memory import limit_bytes, per_card
    from qwenlib.weights import fit, place

    if profile.device_target == "Ascend":
        peak, limit = max(stage.total for stage in per_card(profile, _name(profile, task))), limit_bytes(profile)
        text = f"about {peak / GIB:.1f} of {limit / GIB:.0f} GiB a card (qwenlib config estimate tells the parts)"
        yield Finding("device memory", OK if peak <= limit else WARN, text)
    if given.load_checkpoint is None:
        return
    ranks = min(task.parallel.ranks, 8)
    sliced = _slices_at_start(task, given)
    if _cut_before(task, given):
        sizes = [path.stat().st_size for held in fit.rank_files(given.load_checkpoint).values() for path in held]
        size = max(sizes, default=0)
    else:
        size = place.locate(given.load_checkpoint).stat().st_size
    # Sliced: rank 0 reads the whole file and writes every slice, then each loads its own.
    need = 2 * size if sliced else ranks * size
    free = given.available_memory if given.available_memory is not None else _available()
    how = "rank 0 slices it" if sliced else f"{ranks} rank(s) each load it whole"
    what = f"the checkpoint of {size / GIB:.2f} GiB, {how}"
    if _cut_before(task, given):
        what = f"slices of up to {size / GIB:.2f} GiB, one for each of {ranks} ranks"
    text = f"{what}: {need / GIB:.1f} of {free / GIB:.1f} GiB that are free"
    yield Finding("host memory", OK if need <= free else FAIL, text)


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _name(profile: Profile, task: Task) -> str:
    return next(name for name in profile.tasks() if profile.task(name) is task)


def _disk(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    from qwenlib.estimate.slices import slices

    if given.run_dir is None:
        yield Finding("disk", SKIP, "no run directory is given")
        return
    every = slices(profile.model, task.parallel, task.adapter)
    width = 2 if profile.model.param_init_type == "float16" else 4
    whole, learned = width * sum(i.size for i in every), sum(i.size for i in every if i.trainable)
    # Data-parallel ranks without sharding each write all of it; keep_checkpoint_max to resume from, one of weights.
    copies = task.parallel.ranks if profile.device_target == "CPU" else 1
    need = copies * (task.keep_checkpoint_max * (whole + 8 * learned) + whole)
    folder = Path(given.run_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"checkpoints take {need / GIB:.2f} GiB below {folder}, {free / GIB:.1f} GiB are free"
    yield Finding("disk", OK if need <= free else FAIL, text)


def _platform(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    mode = modelarts.mindformers_mode(given.environ)
    slicing = _slices_at_start(task, given)
    url = profile.remote_save_url
    if url and not re.match(r"(obs|s3)://[^/]+", url):
        yield Finding("remote_save_url", FAIL, f"must read obs://bucket/folder, found {url!r}")
    if profile.device_target != "Ascend":
        yield Finding("ModelArts mode", SKIP, "concerns Ascend")
    elif mode.active and slicing and not url:
        text = (
            f"MindFormers' ModelArts mode is on ({', '.join(mode.variables)}), and slicing the checkpoint then needs "
        )
        yield Finding("ModelArts mode", FAIL, text + "-s remote_save_url=obs://bucket/folder")
    else:
        yield Finding("ModelArts mode", WARN if mode.active else OK, mode.text)


def _sink(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    slices = task.parallel.model_parallel * task.parallel.pipeline_stage > 1 or _cut_before(task, given)
    if profile.device_target == "Ascend" and slices and not task.sink_mode:
        text = "sink_mode must be true: loading slices compiles the network first, which only sink mode does"
        yield Finding("sink mode", FAIL, text)
    elif task.sink_mode and profile.device_target != "CPU":
        yield Finding(
            "sink mode", OK, f"on; {task.sink_size} steps a sink, so the log has a line every {task.sink_size}"
        )
    elif not task.sink_mode:
        yield Finding("sink mode", OK, "off")
