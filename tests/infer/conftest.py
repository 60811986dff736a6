from __future__ import annotations

import pytest
from micro import Micro
from micro import micro as make_micro


@pytest.fixture(scope="session")
def micro() -> Micro:
    return make_micro()
