"""Device nodes: ``/dev/davinciN``, where N is the physical id of a card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Mapping, Union

MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")
"""Nodes that a container needs beside its cards."""


def device_nodes(root: Union[str, Path] = "/") -> List[int]:
    """Physical ids of the cards this container or host can see, ascending."""
    folder = Path(root) / "dev"
    found = [re.fullmatch(r"davinci([0-9]{1,6})", item.name) for item in folder.glob("davinci*")]
    return sorted(int(match.group(1)) for match in found if match)


def missing_managers(root: Union[str, Path] = "/") -> List[str]:
    """Which of the manager nodes are absent."""
    return [f"/dev/{name}" for name in MANAGERS if not (Path(root) / "dev" / name).exists()]


def visible_devices(environ: Mapping[str, str]) -> str:
    """The value of ``ASCEND_RT_VISIBLE_DEVICES`` (it renumbers the logical ids of a process), or ""."""
    return environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
