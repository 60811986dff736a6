"""Notebooks are narrative and calls: each of the six is held to the rules without being run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, List

import pytest

nbformat = pytest.importorskip("nbformat")

from qwenlib.workbook import stages  # noqa: E402
from qwenlib.workspace import STAGES  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CODE_LINES = 15


def problems(path: Path) -> List[str]:
    """Every rule that the notebook at ``path`` breaks, in words."""
    raw = nbformat.read(str(path), as_version=nbformat.NO_CONVERT)
    found = _form(raw, path)
    cells = [cell for cell in raw.cells if cell.cell_type == "code"]
    trees = []
    for number, cell in enumerate(raw.cells, 1):
        if cell.cell_type != "code":
            continue
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            found.append(f"cell {number} is not plain Python ({error.msg}); no magics, no shell")
            continue
        trees.append(tree)
        found += _code(tree, cell, number)
    if len(trees) == len(cells):
        found += _contract(cells, trees, path)
    return found


def _form(raw: Any, path: Path) -> List[str]:
    found = []
    try:
        nbformat.validate(raw)
    except nbformat.ValidationError as error:
        found.append(f"not valid: {error.message}")
    if (raw.nbformat, raw.nbformat_minor) != (4, 5):
        found.append(f"format {raw.nbformat}.{raw.nbformat_minor}, not 4.5")
    if raw.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec's name is not python3")
    if "papermill" in raw.metadata or any("papermill" in cell.metadata for cell in raw.cells):
        found.append("it holds papermill's metadata: an executed notebook was saved here")
    if path.parent.name not in STAGES or path.stem != path.parent.name:
        found.append("its name is not its stage folder's")
    if raw.cells[0].cell_type != "markdown" or not raw.cells[0].source.startswith("# "):
        found.append("it does not begin with a title")
    if sum(cell.cell_type == "markdown" for cell in raw.cells) < 3:
        found.append("it tells nothing (fewer than three text cells)")
    for number, cell in enumerate(raw.cells, 1):
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            found.append(f"cell {number} has outputs; strip them (nbstripout)")
    return found


def _code(tree: ast.Module, cell: Any, number: int) -> List[str]:
    found = []
    lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
    if len(lines) > CODE_LINES and "parameters" not in cell.metadata.get("tags", []):
        found.append(f"cell {number} has {len(lines)} lines of code, more than {CODE_LINES}")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append(f"cell {number} defines {node.name}; it belongs into qwenlib")
        if isinstance(node, ast.Call) and _called(node) == "read_meta":
            found.append(f"cell {number} calls read_meta; stage.take also notes the input, for --resume")
    return found


def _contract(cells: List[Any], trees: List[ast.Module], path: Path) -> List[str]:
    found = []
    try:
        stage = stages.load(path)  # one parameters cell, literals, types that fit, output and profile
    except stages.Refused as refusal:
        return [str(refusal)]
    if "parameters" not in cells[0].metadata.get("tags", []):
        found.append("the parameters cell is not the first code cell")
    for line in trees[0].body:
        if not isinstance(line, ast.AnnAssign):
            found.append(f"line {line.lineno} of the parameters cell has no type")
    found += [f"parameter {each.name} has no comment" for each in stage.parameters.values() if not each.help]
    opens = [node for node in ast.walk(trees[1]) if isinstance(node, ast.Call) and _called(node) == "open_stage"]
    if not opens:
        found.append("the first code cell after the parameters does not call open_stage")
    elif not (opens[0].args and isinstance(opens[0].args[0], ast.Constant) and opens[0].args[0].value == stage.name):
        found.append(f"open_stage is not called with {stage.name!r}")
    if not any(isinstance(node, ast.Call) and _called(node) == "finish" for node in ast.walk(trees[-1])):
        found.append("the last code cell does not call stage.finish")
    return found


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@pytest.mark.parametrize("stage", STAGES)
def test_notebook_keeps_the_rules(stage: str) -> None:
    found = sorted((ROOT / "notebooks" / stage).glob("*.ipynb"))
    if not found:
        pytest.skip(f"notebooks/{stage} is still empty")
    assert [path.name for path in found] == [f"{stage}.ipynb"]
    assert problems(found[0]) == []


def test_no_other_stage_folder_or_stray_notebook() -> None:
    there = {path.parent.name for path in (ROOT / "notebooks").glob("*/*.ipynb")}
    assert there <= set(STAGES)
    assert not list((ROOT / "notebooks").glob("*.ipynb"))


GOOD = [
    ("markdown", "# Environment", []),
    ("code", 'output: str = "runs/x"  # run directory\nprofile: str = "smoke"  # profile', ["parameters"]),
    ("markdown", "Open it.", []),
    ("code", 'from qwenlib.workspace import open_stage\n\nstage = open_stage("01_env", output, profile)', []),
    ("markdown", "Close it.", []),
    ("code", "meta = stage.finish()", []),
]


def written(folder: Path, change: Any = None) -> Path:
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [make[kind](source, metadata={"tags": tags} if tags else {}) for kind, source, tags in GOOD]
    kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec})
    notebook.nbformat_minor = 5
    if change:
        change(notebook)
    path = folder / "01_env" / "01_env.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, str(path))
    return path


def test_good_notebook_breaks_no_rule(tmp_path: Path) -> None:
    assert problems(written(tmp_path)) == []


def source(index: int, text: str) -> Any:
    return lambda notebook: notebook.cells[index].update(source=text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (source(3, "def f(): pass"), "defines f"),
        (source(3, "!ls"), "not plain Python"),
        (source(3, "\n".join(f"a = {n}" for n in range(16))), "16 lines of code"),
        (source(3, 'open_stage("02_weights", output, profile)'), "not called with '01_env'"),
        (source(3, "print()"), "does not call open_stage"),
        (source(5, "print()"), "does not call stage.finish"),
        (source(1, 'output: str = "a"\nprofile: str = "b"  # c'), "parameter output has no comment"),
        (source(1, 'output = "a"  # a\nprofile: str = "b"  # c'), "has no type"),
        (source(1, 'output: str = "a"  # a\nprofile: str = output  # c'), "not a literal"),
        (lambda n: n.cells[1].metadata.pop("tags"), "tagged `parameters`"),
        (lambda n: n.cells[3].update(execution_count=1), "has outputs"),
        (lambda n: n.metadata.kernelspec.update(name="py311"), "python3"),
        (lambda n: n.metadata.update(papermill={}), "papermill"),
        (lambda n: n.cells.pop(0), "title"),
    ],
)
def test_each_broken_rule_is_named(tmp_path: Path, change: Any, words: str) -> None:
    found = problems(written(tmp_path, change))
    assert any(words in problem for problem in found), found
