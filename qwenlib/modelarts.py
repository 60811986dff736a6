"""Where am I: a ModelArts notebook, a ModelArts training job, or a plain host; and what follows from it.

Sources: the ModelArts documentation (Open Telekom Cloud edition), MindFormers ``check_in_modelarts`` (r1.0.a),
Huawei's ModelArts launcher. Secrets of the environment are never returned, printed or stored.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple, Union

from qwenlib.ascend.tools import under
from qwenlib.errors import Refused

MINDFORMERS_VARIABLES = (
    "MA_LOG_DIR",
    "MA_JOB_DIR",
    "MA_LOCAL_LOG_PATH",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "BATCH_GROUP_NAME",
)
"""Any of these in the environment (an empty value, too) turns MindFormers' ModelArts mode on."""

JOB_VARIABLES = ("MA_VJ_NAME", "MA_JOB_DIR", "BATCH_JOB_ID", "DLS_TASK_INDEX")
PERSISTENT = "/home/ma-user/work"
CACHE = "/cache"
LEASE_HOURS = 1.0
"""A notebook instance stops by default so many hours after its start, whatever it is doing."""

_SECRET = re.compile(
    r"(SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_?KEY|PRIVATE|SIGNATURE|API_?KEY|COOKIE|AUTHORI[SZ]ATION"
    r"|(^|_)(AK|SK|PWD|AUTH|SESSION|SESSION_?ID)($|_))",
    re.I,
)
_NO_SECRET = ("PWD", "OLDPWD", "JPY_SESSION_NAME", "DESKTOP_SESSION", "XDG_SESSION_ID")
"""They look like secrets and are folders, the notebook's path in JupyterLab, and a desktop's names."""
_SHOWN = re.compile(r"^(MA_|VC_|BATCH_|DLS_|RANK_|HCCL_|ASCEND_|DEVICE_ID$|JOB_ID$|S3_|OBS_|WORKSPACE$|MS_|GLOG_)")
_URL_SECRET = re.compile(r"//[^/\s\"']+@")
_INNER_SECRET = re.compile(
    r"""((?:secret|token|passw|credential|access_?key|signature|security|api_?key|\b(?:ak|sk|pwd)\b)[\w-]*["']?\s*[:=]\s*["']?)"""
    r"""[^&\s"',;}]+""",
    re.I,
)
"""A secret inside a value: in the query of an address, or in the JSON of MA_INPUTS."""


@dataclass(frozen=True)
class Place:
    """``kind``: notebook, training job or plain host; ``reason``: what told so."""

    kind: str
    reason: str

    @property
    def modelarts(self) -> bool:
        """Whether this is ModelArts at all."""
        return self.kind != "plain host"


def where_am_i(environ: Mapping[str, str] = os.environ, root: Union[str, Path] = "/") -> Place:
    """Notebook, training job or plain host, with the reason."""
    for name in JOB_VARIABLES:
        if environ.get(name):
            return Place("training job", f"the variable {name} is set, which only training jobs have")
    none = f"none of {', '.join(JOB_VARIABLES[:2])} is set"
    for path in ("/user/config/nbstart_hccl.json", PERSISTENT, "/home/ma-user"):
        if under(root, path).exists():
            return Place("notebook", f"{none}, and {under(root, path)} exists")
    return Place("plain host", f"{none}, and there is no {under(root, '/home/ma-user')}")


@dataclass(frozen=True)
class MindFormersMode:
    """What ``mindformers.tools.utils.check_in_modelarts`` will answer, and why."""

    active: bool
    variables: Tuple[str, ...]
    text: str


def mindformers_mode(environ: Mapping[str, str] = os.environ) -> MindFormersMode:
    """Predict MindFormers' hidden ModelArts mode and say what it changes and which variable flips it."""
    found = tuple(name for name in MINDFORMERS_VARIABLES if name in environ)
    if not found:
        return MindFormersMode(
            False,
            (),
            "off: output goes to the run's folder. Setting any of "
            f"{', '.join(MINDFORMERS_VARIABLES)} (S3 keys in a notebook are enough) would turn it on",
        )
    return MindFormersMode(
        True,
        found,
        f"ON because of {', '.join(found)}: MindFormers writes to /cache/ma-user-work and ignores output_dir, "
        "only the last local rank prints, and auto_trans_ckpt needs --remote_save_url obs://…; take the variable away "
        "from the ranks' environment (unset it) to turn the mode off",
    )


@dataclass(frozen=True)
class Folder:
    """A folder of the platform: where it is, bytes free (None: it does not exist) and what it is for."""

    path: Path
    free: Optional[int]
    text: str


def folders(environ: Mapping[str, str] = os.environ, root: Union[str, Path] = "/") -> Dict[str, Folder]:
    """The persistent folder and the scratch folder, with what is free there."""
    place = where_am_i(environ, root)
    result = {}
    if place.kind == "notebook":
        result["persistent"] = _folder(
            under(root, PERSISTENT), "survives a stop; everything else of a notebook is lost"
        )
    elif place.kind == "training job":
        result["persistent"] = _folder(
            under(root, environ.get("MA_MOUNT_PATH") or "/home/ma-user/modelarts"),
            "only what is copied to OBS outlives the job",
        )
    result["cache"] = _folder(under(root, CACHE), "fast local disk, lost when the instance stops (3 TB with 8 cards)")
    return result


def _folder(path: Path, text: str) -> Folder:
    return Folder(path, shutil.disk_usage(path).free if path.is_dir() else None, text)


def lease_warning(
    environ: Mapping[str, str] = os.environ,
    root: Union[str, Path] = "/",
    run_seconds: Optional[float] = None,
    lease_hours: float = LEASE_HOURS,
    how: str = "",
) -> str:
    """A warning when a notebook's lease may end before the run does ("" elsewhere).

    ``run_seconds`` None: unknown; ``how`` says what they were estimated from.
    """
    if where_am_i(environ, root).kind != "notebook":
        return ""
    if run_seconds is None:
        run = "how long the run takes is not known yet"
    elif run_seconds <= 0.8 * lease_hours * 3600:
        return ""
    else:
        run = f"this run is estimated at {run_seconds / 3600:.1f} h{f' ({how})' if how else ''}"
    return (
        f"a ModelArts notebook stops by itself, by default {lease_hours:g} h after its start, even while it is "
        f"training; {run}. Renew the lease (the clock in the top bar) or run long work as a training job."
    )


def boot_guard(environ: Mapping[str, str] = os.environ, root: Union[str, Path] = "/") -> str:
    """Refuse to be the boot file of a training job that the platform starts once per card.

    The platform gives every one of those processes a RANK_ID; a workbook would run once per card, each run starting
    its own ranks. Returns "" when all is well, or a note.

    Raises:
        Refused: this is one of several processes that the platform has started.
    """
    if where_am_i(environ, root).kind != "training job":
        return ""
    rank, size = environ.get("RANK_ID"), environ.get("RANK_SIZE", "")
    if rank is not None and size != "1":
        raise Refused(
            f"this training job starts one process per card, and this is process RANK_ID={rank} of "
            f"{size or 'several'}: the workbook starts the ranks itself and must be started once a node. Use a "
            "custom-image start command instead of a boot file, for instance: "
            "/home/ma-user/anaconda3/envs/MindSpore/bin/python -m qwenlib workbook run …"
        )
    return "a training job with a start command: the workbook is started once on this node"


def is_secret(name: str) -> bool:
    """Whether the value of a variable with this name must not be shown."""
    return bool(_SECRET.search(name)) and name not in _NO_SECRET


def public_environment(environ: Mapping[str, str] = os.environ) -> Dict[str, str]:
    """The platform's variables, for people: values of secrets are replaced, those inside of other values, too."""
    shown = {}
    for name in sorted(environ):
        if is_secret(name):
            shown[name] = "(set, hidden)"
        elif _SHOWN.match(name):
            value = _URL_SECRET.sub("//(hidden)@", environ[name])
            shown[name] = _INNER_SECRET.sub(r"\1(hidden)", value)[:300]
    return shown


def secrets(environ: Mapping[str, str] = os.environ) -> List[str]:
    """Names (never values) of secrets in the environment."""
    return sorted(name for name in environ if is_secret(name) and environ[name])
