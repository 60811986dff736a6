"""Whether a profile can answer: ``qwenlib config check`` of a profile without a training."""

from __future__ import annotations

from qwenlib import profile as profiles
from qwenlib.doctor.needs import GIB
from qwenlib.doctor.report import FAIL, OK, Finding, numbered
from qwenlib.preflight.report import Report
from qwenlib.profile import Profile


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
    return Report(numbered(found), profile.name, "predict")
