"""How much memory and disk the flow of a profile needs on one server."""

from __future__ import annotations

import functools
from typing import List, Optional, Tuple

from qwenlib.profile import Model, Profile
from qwenlib.weights.names import count

GIB = 2**30
SMOKE_RAM, SMOKE_DISK = 3 * GIB, 1 * GIB
"""The smoke run took 1.8 GiB at its peak and wrote 0.1 GB (``peak_mib`` of run.json, ``du``); with room to spare."""

Need = Tuple[str, float]


@functools.lru_cache(maxsize=64)
def parameters(model: Model) -> int:
    """How many parameters the network has (7,721,324,544 for the 7B)."""
    return count(model)["parameters"]


def local_ranks(profile: Profile, task: str) -> int:
    """Ranks of a task on one server (8 at most)."""
    return min(profile.task(task).parallel.ranks, 8)


def disk(profile: Profile) -> List[Need]:
    """What the whole flow writes, (what, bytes) each: checkpoints in float16, full ones with float32 Adam state."""
    if profile.device_target == "CPU":
        return [("smoke flow", float(SMOKE_DISK))]
    half = 2.0 * parameters(profile.model)
    needs = [("Hugging Face weights", half), ("MindSpore checkpoint", half)]
    for task in profile.tasks():
        settings = profile.task(task)
        if settings.parallel.ranks > 1:
            needs.append((f"{task}: transformed shards", local_ranks(profile, task) * half))
        if settings.adapter is None:
            needs.append(
                (f"{task}: {settings.keep_checkpoint_max} full checkpoints", 6 * half * settings.keep_checkpoint_max)
            )
        else:
            needs.append(
                (f"{task}: {settings.keep_checkpoint_max} checkpoints", 1.5 * half * settings.keep_checkpoint_max)
            )
    return needs


def run_time(profile: Profile) -> Tuple[Optional[float], str]:
    """Seconds that the trainings of a profile take on Ascend, and from what that follows; (None, "") elsewhere."""
    from qwenlib.estimate.report import ALPACA_ROWS
    from qwenlib.estimate.speed import default_mfu, length

    hours = [
        length(profile, task, ALPACA_ROWS, 1.0, default_mfu(task, profile.model, profile.data.seq_length))["hours"]
        for task in map(profile.task, profile.tasks())
    ]
    if not hours or None in hours:
        return None, ""
    what = f"{' and '.join(profile.tasks())} on the {ALPACA_ROWS} rows of alpaca, at the guide's speed"
    return 3600.0 * sum(hours), what


def memory(profile: Profile) -> List[Need]:
    """Host memory at its highest, (what, bytes): every local rank loads the whole checkpoint when it is transformed."""
    if profile.device_target == "CPU":
        return [("smoke flow", float(SMOKE_RAM))]
    half = 2.0 * parameters(profile.model)
    ranks = max([local_ranks(profile, task) for task in profile.tasks()] or [1])
    return [(f"{ranks} rank(s), each loading the {half / 1e9:.1f} GB checkpoint", ranks * half + 4 * GIB)]
