"""Checks of Python and its packages: versions from metadata, imports in a child process only."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Iterator, List

from qwenlib.doctor.context import Context
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN, Finding
from qwenlib.doctor.versions_table import IMPORT_NAMES, PACKAGES, PYTHON, PYTHON_TOLERATED, Package

PROBE_SECONDS = 120.0
BRANCH_FILE = "research/qwen1_5/run_qwen1_5_7b_lora.yaml"
"""Only branch r1.0.a of MindFormers has it; r1.0, which the guide names, has the 72B files alone."""

SHADOWS = ("code.py", "select.py")
"""Files of a work folder that shadow the standard library and end the kernel ("No Kernel")."""


def python(context: Context) -> Iterator[Finding]:
    """The version of Python."""
    target, here = context.profile.device_target, sys.version_info[:2]
    text = ".".join(map(str, sys.version_info[:3]))
    wanted = " to ".join(dict.fromkeys(".".join(map(str, v)) for v in (PYTHON[target][0], PYTHON[target][-1])))
    if here in PYTHON[target]:
        yield Finding("Python", OK, f"{text} at {sys.executable}")
    elif here in PYTHON_TOLERATED[target]:
        yield Finding("Python", WARN, f"{text}; MindSpore 2.2 runs on it, MindFormers r1.0.a recommends {wanted}")
    else:
        yield Finding("Python", FAIL, f"{text}; for {target} it must be {wanted}: make an environment with it")


def packages(context: Context) -> Iterator[Finding]:
    """One finding a package of the version table."""
    for package in PACKAGES[context.profile.device_target]:
        yield _package(package, context)


def _package(package: Package, context: Context) -> Finding:
    name = f"package {package.name}"
    note = f" ({package.note})" if package.note else ""
    wanted = package.good[0]
    version = installed(package.name)
    if not version:
        source = _source_tree(package.name, context)
        if source and package.name == "mindformers" and not (Path(source) / BRANCH_FILE).is_file():
            text = f"source tree {source} has no {BRANCH_FILE}, so it is not branch r1.0.a: git checkout r1.0.a there"
            return Finding(name, WARN, text)
        if source:
            return Finding(name, OK, f"source tree {source} is on PYTHONPATH{note}")
        if package.name == "acctransformer" and not context.profile.model.use_flash_attention:
            return Finding(name, SKIP, "not installed; use_flash_attention is off, so it is not needed")
        state = FAIL if package.required else WARN
        return Finding(name, state, f"not installed; {wanted} belongs here{note}")
    bare = version.split("+")[0]
    if any(bare == good or (good.endswith(".") and bare.startswith(good)) for good in package.good):
        return Finding(name, OK, version)
    same_series = bare.split(".")[:2] == wanted.split(".")[:2]
    state = WARN if same_series or not package.required else FAIL
    return Finding(name, state, f"{version} is installed; {wanted} belongs here{note}")


def installed(name: str) -> str:
    """The version of an installed package, from its metadata ("" when there is none)."""
    for candidate in (name, f"{name}-ascend", f"{name}-cpu"):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _source_tree(name: str, context: Context) -> str:
    for entry in context.environ.get("PYTHONPATH", "").split(":"):
        if entry and (Path(entry) / IMPORT_NAMES.get(name, name)).is_dir():
            return entry
    return ""


def imports(context: Context) -> Iterator[Finding]:
    """Import MindSpore, MindFormers and 910A's FlashAttention, each in a child process, with a time limit."""
    if not context.probe_imports:
        yield Finding("import", SKIP, "not asked for")
        return
    for name in ("mindspore", "mindformers"):
        if not installed(name) and not _source_tree(name, context):
            yield Finding(f"import {name}", SKIP, "not installed")
            continue
        first = ""
        if name == "mindformers" and not context.ascend:
            first = "from qwenlib.engine.compat import apply_cpu_patches; apply_cpu_patches(); "
        yield _probe(name, f"{first}import {name}", context)
    if context.ascend and context.profile.model.use_flash_attention:
        # The line of MindFormers' LLamaAttention: a package of this name from another branch has not got it.
        code = "from acctransformer.flash_attention.nn.layer.flash_attention import FlashAttention"
        if installed("acctransformer") or _source_tree("acctransformer", context):
            yield _probe("acctransformer", code, context)
        else:
            yield Finding("import acctransformer", SKIP, "not installed")


def _probe(name: str, code: str, context: Context) -> Finding:
    import tempfile
    import time

    begun = time.monotonic()
    package = str(Path(__file__).resolve().parents[2])
    path = ":".join(filter(None, [package, context.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory(prefix="qwenlib-doctor-") as folder:  # MindFormers writes output/log where it is
        try:
            child = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                errors="replace",
                cwd=folder,
                env={**context.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                timeout=PROBE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return Finding(f"import {name}", FAIL, f"took more than {PROBE_SECONDS:g} s")
        except OSError as error:
            return Finding(f"import {name}", FAIL, f"{sys.executable} cannot be started: {error.strerror}")
    if child.returncode == 0:
        return Finding(f"import {name}", OK, f"works ({time.monotonic() - begun:.0f} s, in a process of its own)")
    said = [line for line in child.stderr.splitlines() if line.strip()] or [f"exit code {child.returncode}"]
    if "static TLS block" in child.stderr:
        return Finding(f"import {name}", FAIL, f"{said[-1]}: start Python with LD_PRELOAD=<the libgomp named here>")
    return Finding(f"import {name}", FAIL, said[-1][:300])


def pythonpath(context: Context) -> Iterator[Finding]:
    """A pip mindformers beside a source tree, or entries that do not exist."""
    entries = [entry for entry in context.environ.get("PYTHONPATH", "").split(":") if entry]
    trees = [entry for entry in entries if (Path(entry) / "mindformers").is_dir()]
    pip = installed("mindformers")
    bad: List[str] = [entry for entry in entries if not Path(entry).exists()]
    if len(trees) > 1:
        yield Finding("PYTHONPATH", FAIL, f"several mindformers source trees: {', '.join(trees)}; keep one")
    elif trees and pip and "site-packages" not in trees[0]:
        yield Finding(
            "PYTHONPATH",
            FAIL if context.ascend else WARN,
            f"mindformers {pip} is installed by pip beside the source tree {trees[0]}: which one a process gets "
            "depends on its PYTHONPATH; pip uninstall -y mindformers",
        )
    elif context.ascend and pip and not trees:
        yield Finding(
            "PYTHONPATH",
            WARN,
            f"mindformers {pip} comes from pip; FlashAttention on a 910A and research/qwen1_5 are in the source tree "
            "of branch r1.0.a only: put it on PYTHONPATH",
        )
    elif bad:
        yield Finding("PYTHONPATH", WARN, f"these entries do not exist: {', '.join(bad)}")
    else:
        yield Finding("PYTHONPATH", OK, f"source tree {trees[0]}" if trees else "nothing shadows an installed package")


def work_folder(context: Context) -> Iterator[Finding]:
    """Files that shadow the standard library."""
    found = [str(context.work / name) for name in SHADOWS if (context.work / name).exists()]
    persistent = Path(context.root) / "home/ma-user/work"
    found += [str(persistent / name) for name in SHADOWS if (persistent / name).exists() and persistent != context.work]
    if found:
        yield Finding(
            "work folder", FAIL, f"{', '.join(found)} shadow(s) the standard library and ends kernels; rename it"
        )
    else:
        yield Finding("work folder", OK, f"no {' or '.join(SHADOWS)} in {context.work}")


def libgomp(context: Context) -> Iterator[Finding]:
    """libgomp's static TLS on aarch64: torch after mindspore cannot be loaded without LD_PRELOAD."""
    import platform

    if platform.machine() != "aarch64":
        yield Finding("libgomp static TLS", SKIP, f"concerns aarch64, this is {platform.machine()}")
        return
    if not installed("torch"):
        yield Finding("libgomp static TLS", SKIP, "torch is not installed")
        return
    if "libgomp" in context.environ.get("LD_PRELOAD", ""):
        yield Finding("libgomp static TLS", OK, "LD_PRELOAD names libgomp")
        return
    found = sorted(Path(sys.prefix).glob("lib/python*/site-packages/torch.libs/libgomp*"))
    where = str(found[0]) if found else "<site-packages>/torch.libs/libgomp-….so.1.0.0"
    yield Finding(
        "libgomp static TLS", WARN, f"before Python: export LD_PRELOAD={where} (else torch after mindspore fails)"
    )
