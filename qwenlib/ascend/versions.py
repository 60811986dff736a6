"""Versions of the driver, the firmware and CANN, read from the files their installers leave.

CANN has two numbers: ``ascend_toolkit_install.info`` holds the one people use (7.0.0), ``compiler/version.info`` the
one MindSpore compares (7.1 for CANN 7.0.0). The first is reported.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Union

from qwenlib.ascend.tools import under

CANN_FOLDERS = ("/usr/local/Ascend/nnae/latest", "/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/latest")


@dataclass(frozen=True)
class Version:
    """A version, the file it was read from, and, when there is none, where was looked."""

    version: str
    source: str
    extra: str = ""


def parse_version_file(text: str) -> Dict[str, str]:
    """``{key: value}`` of a ``key=value`` file; keys keep their case."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _read(path: Path) -> Dict[str, str]:
    try:
        return parse_version_file(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}


def install_folder(root: Union[str, Path] = "/") -> Path:
    """Where the driver is installed: ``Driver_Install_Path_Param`` of ``/etc/ascend_install.info``, or the default."""
    named = _read(Path(root) / "etc" / "ascend_install.info").get("Driver_Install_Path_Param", "")
    return under(root, named or "/usr/local/Ascend")


def driver(root: Union[str, Path] = "/") -> Version:
    """The driver version: ``package_version`` when there is one, else ``Version``; ``extra``: firmware it fits."""
    path = install_folder(root) / "driver" / "version.info"
    keys = _read(path)
    return Version(
        keys.get("package_version") or keys.get("Version", ""), str(path), keys.get("compatible_version_fw", "")
    )


def firmware(root: Union[str, Path] = "/") -> Version:
    """The firmware version; ``extra``: drivers it fits."""
    path = install_folder(root) / "firmware" / "version.info"
    keys = _read(path)
    return Version(keys.get("Version", ""), str(path), keys.get("compatible_version_drv", ""))


def cann(root: Union[str, Path] = "/", environ: Mapping[str, str] = os.environ, machine: str = "") -> Version:
    """The CANN version of the first installation found: ``ASCEND_HOME_PATH``, nnae, ascend-toolkit, latest.

    ``extra`` is MindSpore's own number from ``compiler/version.info``.
    """
    home = environ.get("ASCEND_HOME_PATH", "")
    folders = [under(root, folder) for folder in ((home,) if home else ()) + CANN_FOLDERS]
    machines = dict.fromkeys((machine or platform.machine(), "aarch64", "x86_64"))
    for folder in folders:
        compiler = _read(folder / "compiler" / "version.info").get("Version", "")
        places = [folder] + [folder / f"{name}-linux" for name in machines]
        for path in (place / f"ascend_{kind}_install.info" for place in places for kind in ("toolkit", "nnae", "nnrt")):
            version = _read(path).get("version", "")
            if version:
                return Version(version, str(path), compiler)
        if compiler:
            return Version("", str(folder / "compiler" / "version.info"), compiler)
    return Version("", " or ".join(str(folder) for folder in folders))


def outside(version: str, compatible: str) -> bool:
    """Whether a firmware version lies outside ``[7.0.0,7.2.99]``, the driver's ``compatible_version_fw``.

    False when either is not understood: nothing is claimed then.
    """
    ends = re.fullmatch(r"\[([0-9.]{1,40}),([0-9.]{1,40})\]", compatible.strip())
    if not ends or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})+", version):
        return False
    low, high = (_numbers(text) for text in ends.groups())
    here = _numbers(version)
    return here[: len(low)] < low or here[: len(high)] > high


def _numbers(text: str) -> List[int]:
    return [int(part) for part in text.split(".") if part]
