"""No real platform, the samples, and a fake ModelArts file system (tests/fake_root.py)."""

import functools
import os

import fake_root as roots
import pytest


@pytest.fixture(autouse=True)
def no_platform(monkeypatch):
    """No variable of a real platform reaches these tests."""
    for name in list(os.environ):
        if name.startswith(("RANK_", "MA_", "VC_", "BATCH_", "DEVICE_ID", "ASCEND_", "DLS_", "S3_")):
            monkeypatch.delenv(name)


@pytest.fixture
def sample():
    """The text of a sample."""
    return lambda name: (roots.SAMPLES / name).read_text()


@pytest.fixture
def fake_root(tmp_path):
    """Build a root: :func:`fake_root.fake_root` in this test's folder."""
    return functools.partial(roots.fake_root, tmp_path)
