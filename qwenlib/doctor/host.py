"""Checks of the host: place, memory, disk, limits, rank table."""

from __future__ import annotations

import os
import re
from typing import Iterator, Tuple

from qwenlib import modelarts
from qwenlib.doctor import needs
from qwenlib.doctor.context import Context
from qwenlib.doctor.needs import GIB
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN, Finding
from qwenlib.errors import Refused
from qwenlib.files import existing, free_bytes
from qwenlib.ranktable.check import check
from qwenlib.ranktable.find import find
from qwenlib.ranktable.rules import brief
from qwenlib.ranktable.wait import look
from qwenlib.ranktable.whoami import PER_RANK

OPEN_FILES = 4096
"""``ulimit -n``: MindSpore's data workers and HCCL's sockets together pass 1024."""


def place(context: Context) -> Iterator[Finding]:
    """Notebook, training job or plain host; a boot file that is started once per card."""
    here = context.place
    yield Finding("place", OK, f"{here.kind}: {here.reason}")
    try:
        note = modelarts.boot_guard(context.environ, context.root)
    except Refused as error:
        yield Finding("boot file", FAIL, str(error))
    else:
        yield Finding("boot file", OK if note else SKIP, note or "concerns training jobs only")


def mindformers_mode(context: Context) -> Iterator[Finding]:
    """MindFormers' hidden ModelArts mode."""
    mode = modelarts.mindformers_mode(context.environ)
    yield Finding("MindFormers' ModelArts mode", WARN if mode.active else OK, mode.text)


def lease(context: Context) -> Iterator[Finding]:
    """The lease of a notebook instance."""
    if context.place.kind != "notebook":
        yield Finding("notebook lease", SKIP, f"a {context.place.kind} has none")
        return
    seconds, how = context.run_seconds, ""
    if seconds is None:
        seconds, how = needs.run_time(context.profile)
    warning = modelarts.lease_warning(context.environ, context.root, seconds, how=how)
    fits = f"the run is shorter than the default lease of {modelarts.LEASE_HOURS:g} h"
    yield Finding("notebook lease", WARN if warning else OK, warning or fits)


def secrets(context: Context) -> Iterator[Finding]:
    """Secrets in the environment: only their names are told."""
    names = modelarts.secrets(context.environ)
    if names:
        yield Finding("secrets", OK, f"{', '.join(names)}: set; the values are neither printed nor stored")
    else:
        yield Finding("secrets", OK, "none in the environment")


def rank_table(context: Context) -> Iterator[Finding]:
    """Find and check the rank table."""
    name = "rank table"
    if not context.ascend:
        yield Finding(
            name,
            SKIP,
            f"none is needed: the {context.ranks} ranks of profile {context.profile.name} run as real processes over "
            "MindSpore's dynamic cluster on the loopback; nothing is simulated",
        )
        return
    if context.ranks == 1:
        yield Finding(name, SKIP, "one rank needs none; variables that name one are taken away from its environment")
        return
    found = find(context.rank_table, context.environ, context.root)
    if found.path is None:
        yield Finding(name, WARN, f"not found ({found.reason}); 01_env generates it from hccn_tool or /etc/hccn.conf")
        return
    try:
        document, missing, broken = look(found.path)
    except Refused as error:
        yield Finding(name, FAIL, str(error))
        return
    if broken:
        yield Finding(name, FAIL, f"{missing}; {found.reason}; waiting does not mend that")
        return
    if document is None and context.rank_table and not found.path.parent.is_dir():
        yield Finding(name, FAIL, f"{missing}, nor does its folder; correct the path")
        return
    if document is None:
        yield Finding(name, WARN, f"{missing}; {found.reason}; 01_env waits for it")
        return
    own = {key: value for key, value in context.environ.items() if key not in PER_RANK}
    report = check(found.path, context.profile, context.root, own, timeout=context.timeout)
    if report.fails:
        told = brief(report.fails, 4)
        yield Finding(name, FAIL, f"{found.path}: {told}. All: qwenlib ranktable check {found.path}")
    else:
        assert report.table is not None
        text = f"{found.path} ({found.reason}): {report.format}, {len(report.table.servers)} server(s), "
        text += f"{report.table.ranks} ranks, sha256 {report.sha256[:12]}…"
        if report.warnings:
            text += "; " + "; ".join(f"{item.path}: {item.message}" for item in report.warnings[:3])
        yield Finding(name, WARN if report.warnings else OK, text)


def disk(context: Context) -> Iterator[Finding]:
    """Disk free where the run writes, against what the flow writes; the platform's folders."""
    wanted = needs.disk(context.profile)
    total = sum(size for _, size in wanted)
    free = free_bytes(context.output)
    parts = ", ".join(f"{what} {size / GIB:.0f}" for what, size in wanted)
    text = (
        f"{free / GIB:.0f} GiB free at {existing(context.output)}; the flow needs about {total / GIB:.0f} GiB ({parts})"
    )
    if free < total:
        cache = modelarts.folders(context.environ, context.root)["cache"]
        hint = f"; {cache.path} has {cache.free / GIB:.0f} GiB" if cache.free else ""
        yield Finding("disk", FAIL, text + hint + "; choose another output folder or fewer checkpoints")
    else:
        yield Finding("disk", OK, text)
    if not context.place.modelarts:
        return
    for name, item in modelarts.folders(context.environ, context.root).items():
        if item.free is None:
            yield Finding(f"{name} folder", WARN, f"{item.path} does not exist ({item.text})")
        else:
            yield Finding(f"{name} folder", OK, f"{item.path}: {item.free / GIB:.0f} GiB free; {item.text}")


def memory(context: Context) -> Iterator[Finding]:
    """Host memory against what the flow needs."""
    wanted = needs.memory(context.profile)
    need = max(size for _, size in wanted)
    available, source = available_memory(context)
    if not available:
        yield Finding("memory", SKIP, "not checked: /proc/meminfo cannot be read")
        return
    text = f"{available / GIB:.0f} GiB available ({source}); the flow needs about {need / GIB:.0f} GiB ({wanted[0][0]})"
    if available >= need:
        yield Finding("memory", OK, text)
    else:
        advice = "; transform the checkpoint offline instead of on every rank" if context.ascend else ""
        yield Finding("memory", FAIL, text + advice)


def available_memory(context: Context) -> Tuple[float, str]:
    """Bytes of memory this container may still take, and where that was read: the smaller of host and cgroup."""
    fields = {}
    for line in context.read("/proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[:1]
        if number and _size(number[0]):
            fields[key] = int(number[0]) * 1024
    host = float(fields.get("MemAvailable") or fields.get("MemFree") or 0)
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = context.read(limit_file).strip(), context.read(used_file).strip()
        if _size(limit) and _size(used) and host and int(limit) - int(used) < host:
            return float(int(limit) - int(used)), f"limit in {limit_file}"
    return host, "/proc/meminfo"


def _size(text: str) -> bool:
    return re.fullmatch("[0-9]{1,20}", text) is not None


def processors(context: Context) -> Iterator[Finding]:
    """Processor cores against the data workers of the profile (MindSpore refuses more workers than cores)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = context.profile.num_parallel_workers
    if workers > cores:
        yield Finding(
            "processors", FAIL, f"{cores} cores, but num_parallel_workers is {workers}: MindSpore refuses that"
        )
    else:
        yield Finding("processors", OK, f"{cores} cores, num_parallel_workers {workers}")


def open_files(context: Context) -> Iterator[Finding]:
    """``ulimit -n``."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        yield Finding("ulimit -n", WARN, f"{soft} open files; {OPEN_FILES} are wanted: ulimit -n {min(hard, 65536)}")
    else:
        yield Finding("ulimit -n", OK, "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} open files")


def output_folder(context: Context) -> Iterator[Finding]:
    """Whether the run can write where it is told to."""
    folder = existing(context.output)
    if not folder.is_dir():
        yield Finding("output folder", FAIL, f"{folder} is a file, {context.output} cannot be a folder; choose another")
    elif os.access(folder, os.W_OK | os.X_OK):
        yield Finding("output folder", OK, f"{context.output} can be written")
    else:
        yield Finding("output folder", FAIL, f"{folder} cannot be written by uid {os.getuid()}; choose another output")
