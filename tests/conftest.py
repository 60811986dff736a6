"""Tiers: tests marked `stack` need MindSpore and MindFormers; `notebook` papermill and a kernel, `browser` Chromium."""

from __future__ import annotations

import importlib.util
import sys
from typing import Iterator, List

import pytest
from hypothesis import HealthCheck, settings

# A machine that stands still for a second is no defect of what it was testing.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

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


_TOLD: List[str] = []


@pytest.fixture(autouse=True)
def mindformers_stays_outside(request: pytest.FixtureRequest) -> Iterator[None]:
    """MindFormers runs in child processes only: on a CPU it must be patched before it is imported, once a process.

    ``importlib.util.find_spec`` asks whether it is installed; ``pytest.importorskip`` would import it.
    """
    yield
    if "mindformers" in sys.modules and not _TOLD:
        _TOLD.append(request.node.nodeid)
        pytest.fail(f"{request.node.nodeid}, or a fixture of it, imported MindFormers into pytest's own process")
