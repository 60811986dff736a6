"""Tiers: tests marked `stack` need MindSpore and MindFormers; `notebook` papermill and a kernel, `browser` Chromium."""

from __future__ import annotations

import importlib.util
from typing import List

import pytest

NEEDS = {
    "stack": ("mindspore", "mindformers"),
    "notebook": ("papermill", "ipykernel", "nbconvert"),
    "browser": ("playwright", "jupyterlab", "ipywidgets"),
}


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Skip what cannot run here, and say what is missing."""
    for item in items:
        for marker, modules in NEEDS.items():
            missing = [name for name in modules if importlib.util.find_spec(name) is None]
            if missing and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker} tier: {', '.join(missing)} not installed"))
