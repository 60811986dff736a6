"""The settings of an answer: what each may be, told before a model is loaded."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, List

from qwenlib.errors import Refused
from qwenlib.profile import Predict, Profile

RANGES: Dict[str, Any] = {
    "max_new_tokens": (int, 1, None),
    "do_sample": (bool, None, None),
    "temperature": (float, 0.0, None),
    "top_k": (int, 0, None),
    "top_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 0.0, None),
    "seed": (int, 0, 2**32 - 1),
}
"""``{setting: (type, least, most)}``; a float must be above its least. The seed is numpy's."""
DRAWN = ("temperature", "top_k", "top_p", "seed")
"""Settings that mean nothing to a greedy answer."""


def checked(**given: Any) -> Dict[str, Any]:
    """``given`` without what is None; one of :data:`DRAWN` turns sampling on unless ``do_sample`` is given.

    Raises:
        Refused: an unknown setting, or values out of their range; all are told at once.
    """
    found = {key: value for key, value in given.items() if value is not None}
    problems: List[str] = []
    for key, value in found.items():
        if key not in RANGES:
            problems.append(f"unknown setting {key!r} (known: {', '.join(RANGES)})")
            continue
        kind, least, most = RANGES[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = found[key] = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            problems.append(f"{key} must be {kind.__name__}, found {value!r}")
        elif kind is float and not (math.isfinite(value) and value > least and (most is None or value <= most)):
            problems.append(f"{key} must be above {least:g}{f' and at most {most:g}' if most else ''}, found {value:g}")
        elif kind is int and not (value >= least and (most is None or value <= most)):
            problems.append(f"{key} must be at least {least}{f' and at most {most}' if most else ''}, found {value}")
    if problems:
        raise Refused("; ".join(problems) + ".")
    if any(key in found for key in DRAWN):
        found.setdefault("do_sample", True)
    return found


def complete(profile: Profile, **given: Any) -> Dict[str, Any]:
    """The settings of an answer: what is given (and not None), for the rest what the profile says."""
    found = {key: value for key, value in given.items() if value is not None}
    predict = profile.predict or Predict()
    for item in dataclasses.fields(predict):
        if item.name in RANGES:
            found.setdefault(item.name, getattr(predict, item.name))
    return found
