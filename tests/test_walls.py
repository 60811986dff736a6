"""Who may import whom (docs/architecture.md), read from the sources, imports inside functions included.

And what must not be loaded by importing: the parts that need no MindSpore work where there is none.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
STACK = {"mindspore", "mindformers", "torch", "transformers"}
LIGHT = ("launch", "ranktable", "modelarts", "ascend", "profile", "workspace", "errors", "files", "progress")
HEAVY = STACK | {"matplotlib", "pandas", "IPython", "ipywidgets"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[Tuple[str, int]]:
    """Every module that ``tree`` imports, with its line; ``from a import b`` counts as a and as a.b."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield whole, node.lineno
            for alias in node.names:
                yield f"{whole}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def read_all() -> Dict[str, List[Tuple[str, int]]]:
    found = {}
    for path in sorted((ROOT / "qwenlib").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        name = module_name(path)
        found[name] = list(imports(tree, name, path.name == "__init__.py"))
    return found


MODULES = read_all()


def room(module: str) -> str:
    """``launch`` for ``qwenlib.launch.client``."""
    return (module.split(".") + [""])[1]


def reached(start: str) -> Dict[str, List[str]]:
    """Every outside top-level module that ``start`` reaches through qwenlib, at any depth: name -> the way there."""
    ways, outside = {start: [start]}, {}
    queue = [start]
    while queue:
        module = queue.pop()
        for name, _ in MODULES[module]:
            if name.split(".")[0] != "qwenlib":
                outside.setdefault(name.split(".")[0], [*ways[module], name])
            elif name in MODULES and name not in ways:
                ways[name] = [*ways[module], name]
                queue.append(name)
    return outside


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in LIGHT])
def test_light_rooms_never_reach_the_stack(module: str) -> None:
    outside = reached(module)
    ways = [" -> ".join(outside[name]) for name in sorted(STACK & set(outside))]
    assert ways == []


def test_every_light_room_that_exists_was_looked_at() -> None:
    there = {
        path.stem for path in (ROOT / "qwenlib").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(LIGHT) & there == {room(name) for name in MODULES if room(name) in LIGHT}
    assert {"launch", "profile", "workspace", "errors", "files", "progress"} <= there


def test_only_engine_imports_mindformers() -> None:
    wrong = [
        f"{module}, line {line}: {name}"
        for module, names in MODULES.items()
        for name, line in names
        if name.split(".")[0] in ("mindformers", "research") and room(module) != "engine"
    ]
    assert wrong == []


def test_nothing_imports_ui_or_cli() -> None:
    wrong = [
        f"{module}, line {line}: {name}"
        for module, names in MODULES.items()
        for name, line in names
        if room(name) in ("ui", "cli") and name.startswith("qwenlib.")
        if room(module) != "cli" and room(module) != room(name) and module != "qwenlib.__main__"
    ]
    assert wrong == []


def test_heavy_imports_stand_inside_functions() -> None:
    wrong = []
    for module in MODULES:
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {name.split(".")[0] for name, _ in imports(node, module, path.name == "__init__.py")}
                wrong += [f"{module}, line {node.lineno}: {name}" for name in names & HEAVY]
    assert wrong == []


def test_the_reader_sees_every_form_of_import() -> None:
    source = (
        "import mindspore.nn\n"
        "def f():\n    from ..engine import render\n    import importlib\n    importlib.import_module('torch')\n"
        "if True:\n    from . import plan\n"
    )
    found = {name for name, _ in imports(ast.parse(source), "qwenlib.launch.client", False)}
    assert {"mindspore.nn", "qwenlib.engine.render", "torch", "qwenlib.launch.plan"} <= found


def loaded_by(code: str) -> Set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after ``code``."""
    report = f"\nimport sys\nprint('LOADED', *sorted({HEAVY!r} & set(sys.modules)))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, env=environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.strip().splitlines()[-1].split()[1:])


def test_import_qwenlib_loads_nothing_heavy() -> None:
    assert loaded_by("import qwenlib") == set()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['qwenlib', '--help']\n"
        "try:\n    runpy.run_module('qwenlib', run_name='__main__')\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert loaded_by(code) == set()


def test_importing_every_module_loads_nothing_heavy() -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    assert loaded_by(f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)") == set()


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("import sys, types\nsys.modules['torch'] = types.ModuleType('torch')") == {"torch"}
