"""The checks of a training task: plan, batch, data, platform; weights and what they take are in ``weights``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Optional

from qwenlib import modelarts
from qwenlib import profile as profiles
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN, Finding, numbered
from qwenlib.errors import QwenlibError
from qwenlib.preflight import weights
from qwenlib.preflight.report import Inputs, Report
from qwenlib.profile import Profile, Task

ACCTRANSFORMER = (
    "git clone -b fa1_for_ms2.2.11 https://gitee.com/mindspore/acctransformer.git && cd acctransformer/train && "
    "bash build.sh && pip install --no-deps --no-index dist/acctransformer-1.0.0-py3-none-any.whl "
    "(or from source: export PYTHONPATH=/path/acctransformer/train:$PYTHONPATH); "
    "or train without it: -s model.use_flash_attention=false"
)
"""How FlashAttention comes to a 910A."""


def check(profile: Profile, task_name: str, inputs: Optional[Inputs] = None) -> Report:
    """Every check of a training task; never raises for what it finds.

    Raises:
        Refused: the profile has no such task.
    """
    task, given = profile.task(task_name), inputs or Inputs()
    found = [Finding("profile", FAIL, text) for text in profiles.check(profile)] or [Finding("profile", OK, "fits")]
    for one in CHECKS:
        try:
            found += one(profile, task, given)
        except QwenlibError as error:
            if str(error) not in {item.reason for item in found}:  # two checks may look for the same file
                found.append(Finding(one.__name__.replace("_", " "), FAIL, str(error)))
        except (ArithmeticError, KeyError, ValueError, re.error):
            if found[0].state != FAIL:  # else: of a value that the profile's own FAIL has told
                raise
    if _goes_on(given):
        busy = "a training goes on in the run directory: what it takes is no problem of its own"
        found = [Finding(i.name, SKIP, busy) if i.name in _TAKEN and i.state == FAIL else i for i in found]
    return Report(numbered(found), profile.name, task_name)


_TAKEN = ("host memory", "disk")
"""What a training that goes on uses up."""


def _goes_on(given: Inputs) -> bool:
    from qwenlib.launch import read_status, rundir

    folder = Path(given.run_dir).absolute() if given.run_dir is not None else None
    if folder is None or read_status(folder) is None:
        return False
    return bool(rundir.current(folder)["state"] not in rundir.FINAL)


def ranks(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
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
    if servers > 1 and weights.slices_at_start(task, given):
        yield Finding(
            "shared folder",
            WARN,
            f"{servers} servers slice the checkpoint together (auto_trans_ckpt): the run directory must be one that "
            "all of them see, or MindFormers waits two hours for strategy files and gives up",
        )


def model(profile: Profile, task: Task, _given: Inputs) -> Iterator[Finding]:
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


def batch(profile: Profile, task: Task, _given: Inputs) -> Iterator[Finding]:
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


def data(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
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


def flash_attention(profile: Profile, _task: Task, given: Inputs) -> Iterator[Finding]:
    if not profile.model.use_flash_attention or profile.device_target != "Ascend":
        yield Finding("FlashAttention", OK, "not used")
    elif given.has_module("acctransformer"):
        yield Finding("FlashAttention", OK, "acctransformer is there")
    else:
        yield Finding(
            "FlashAttention", FAIL, f"on a 910A it needs acctransformer, which is not installed: {ACCTRANSFORMER}"
        )


def platform(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    mode = modelarts.mindformers_mode(given.environ)
    slicing = weights.slices_at_start(task, given)
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


def sink(profile: Profile, task: Task, given: Inputs) -> Iterator[Finding]:
    slices = task.parallel.model_parallel * task.parallel.pipeline_stage > 1 or weights.cut_before(task, given)
    if profile.device_target == "Ascend" and slices and not task.sink_mode:
        text = "sink_mode must be true: loading slices compiles the network first, which only sink mode does"
        yield Finding("sink mode", FAIL, text)
    elif task.sink_mode and profile.device_target != "CPU":
        yield Finding(
            "sink mode", OK, f"on; {task.sink_size} steps a sink, so the log has a line every {task.sink_size}"
        )
    elif not task.sink_mode:
        yield Finding("sink mode", OK, "off")


CHECKS = (ranks, model, batch, data, weights.checkpoint, flash_attention, weights.memory, weights.disk, platform, sink)
