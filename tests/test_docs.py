"""What the documents promise is there: commands, options, parameters, files, links, make targets, rooms, versions.

README_zh.md is README.md line by line. Nothing is run here; commands are held against the real command line.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest
import typer

from qwenlib import profile as profiles
from qwenlib.cli.main import app
from qwenlib.doctor import versions_table
from qwenlib.errors import QwenlibError, Refused, WorkFailed
from qwenlib.workspace import STAGES

ROOT = Path(__file__).resolve().parent.parent
README, TWIN = ROOT / "README.md", ROOT / "README_zh.md"
PAGES = [README, TWIN, *sorted((ROOT / "docs").glob("*.md"))]
UPSTREAM = ("docs/910a_adaptdocs/",)
"""Paths in MindFormers' repository that look like ours."""
FOLDERS = r"\.ci|benchmarks|docs|notebooks|qwenlib|requirements|tests|tools"
OURS = re.compile(rf"^({FOLDERS})/|^(Makefile|LICENSE)$|^\w+\.(md|toml)$")
THEIRS = (
    "nvidia-…",
    "No module named 'torch'",
    "pkg_resources",
    "--resume",
    "For 'Mul', x.shape and y.shape need to broadcast",
)
"""Symptoms in the checked part of troubleshooting.md that are not messages of ours."""


@dataclass(frozen=True)
class Line:
    """A line of Markdown: what it is, its text, and where it stands."""

    kind: str
    text: str
    number: int

    @property
    def cells(self) -> List[str]:
        """Cells of a table row."""
        return [cell.strip() for cell in re.split(r"(?<!\\)\|", self.text)[1:-1]]

    @property
    def spans(self) -> List[str]:
        """Inline code."""
        return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", self.text)] if self.is_prose else []

    @property
    def is_prose(self) -> bool:
        """Not inside a code block."""
        return not self.kind.startswith(("code", "fence"))


def read(text: str) -> List[Line]:
    """Every line with its kind: blank, fence LANGUAGE, code LANGUAGE, heading N, row N (cells), item, quote, text."""
    lines, language = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            language = (line[3:] or "plain") if language is None else None
            kind = f"fence {line[3:]}"
        elif language is not None:
            kind = f"code {language}"
        elif not line.strip():
            kind = "blank"
        elif line.startswith("#"):
            kind = f"heading {len(line) - len(line.lstrip('#'))}"
        elif line.startswith("|"):
            kind = f"row {len(Line('row', line, number).cells)}"
        else:
            kind = {"- ": "item", "> ": "quote"}.get(line[:2], "text")
        lines.append(Line(kind, line, number))
    return lines


def page(path: Path) -> List[Line]:
    return read(path.read_text(encoding="utf-8"))


def without_comment(line: str) -> str:
    """A shell line without what follows a ``#`` that stands alone."""
    return re.sub(r"(^|\s+)#(\s.*)?$", "", line).rstrip()


def shell_lines(lines: List[Line]) -> Iterator[Tuple[int, str]]:
    """Commands in bash blocks, continued lines joined, comments taken away."""
    held = ""
    for line in lines:
        if line.kind != "code bash":
            continue
        held += without_comment(line.text)
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        if held.strip():
            yield line.number, held.strip()
        held = ""


# --- the command line -------------------------------------------------------------------------------------------------


def wrong_with(words: List[str], whole: bool) -> List[str]:
    """What the real command line would not take of ``qwenlib WORDS``; ``whole``: required options must be there too."""
    node: Any = typer.main.get_command(app)
    name, rest = "qwenlib", list(words)
    while hasattr(node, "commands"):
        if not rest or rest[0].startswith("-"):
            break
        if rest[0] not in node.commands:
            return [f"{name} has no command {rest[0]}"]
        name, node = f"{name} {rest[0]}", node.commands[rest[0]]
        rest = rest[1:]
    options = {text: item for item in node.params for text in (*item.opts, *item.secondary_opts) if text[:1] == "-"}
    options.update(dict.fromkeys(("-h", "--help")))
    arguments = [item for item in node.params if item.param_type_name == "argument"]
    found: List[str] = []
    given: List[Any] = []
    values = 0
    while rest:
        word, rest = rest[0], rest[1:]
        if not word.startswith("-"):
            values += 1
        elif word.split("=")[0] not in options:
            found.append(f"{name} has no option {word}")
        else:
            option = options[word.split("=")[0]]
            given.append(option)
            if option is not None and not option.is_flag and "=" not in word:
                if not rest:
                    found.append(f"{name} {word} lacks its value")
                rest = rest[1:]
    if values > len(arguments) and not any(item.nargs == -1 for item in arguments):
        found.append(f"{name} takes {len(arguments)} arguments, not {values}")
    if whole:
        found += [
            f"{name} needs {item.opts[0]}"
            for item in node.params
            if item.required and item.param_type_name == "option" and item not in given
        ]
    return found


def values_of(words: List[str], *options: str) -> List[str]:
    """What stands behind each of ``options``."""
    return [words[place + 1] for place, word in enumerate(words[:-1]) if word in options]


def commands(lines: List[Line]) -> Iterator[Tuple[int, List[str], bool]]:
    """Every ``qwenlib …`` of a page: line, words behind qwenlib, and whether it is meant to be typed as it stands."""
    for number, text in shell_lines(lines):
        if text.startswith("qwenlib "):
            yield number, shlex.split(text)[1:], True
    for line in lines:
        for span in line.spans:
            if re.match(r"qwenlib [a-z-]", span):
                words = shlex.split(span)[1:]
                yield line.number, words, any(word.startswith("--") for word in words)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_is_one_that_the_command_line_takes(path: Path) -> None:
    wrong = [
        f"{path.name}, line {number}: {problem}"
        for number, words, whole in commands(page(path))
        for problem in wrong_with(words, whole)
    ]
    assert wrong == []


def test_readmes_show_every_room_of_the_command_line() -> None:
    shown = {words[0] for _, words, _ in commands(page(README))}
    assert shown == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("nothing", "qwenlib has no command nothing"),
        ("data nothing", "qwenlib data has no command nothing"),
        ("data convert --data_path a --output b", "qwenlib data convert has no option --output"),
        ("data convert --data_path a", "qwenlib data convert needs --output_path"),
        ("ranktable show a b", "qwenlib ranktable show takes 1 arguments, not 2"),
        ("workbook status runs/a --json", None),
        ("ranktable merge a b c", None),
    ],
)
def test_the_checker_of_commands_sees_mistakes(command: str, problem: Any) -> None:
    found = wrong_with(command.split(), whole=True)
    assert found == [] if problem is None else problem in found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_profiles_settings_stages_and_parameters_exist(path: Path) -> None:
    pytest.importorskip("nbformat")
    from qwenlib.workbook import stages

    notebooks = stages.find(ROOT / "notebooks")
    texts = [(number, words) for number, words, _ in commands(page(path))]
    texts += [
        (line.number, shlex.split(span))
        for line in page(path)
        for span in line.spans
        if re.match(r"-p \S+=|--only \d", span)
    ]
    wrong = []
    for number, words in texts:
        try:
            for name in values_of(words, "--profile") or ["smoke"]:
                profiles.load(name, values_of(words, "-s"))
            chosen = stages.choose(notebooks, values_of(words, "--only") or None)
            stages.bind(notebooks, chosen, stages.from_assignments(values_of(words, "-p")))
        except Refused as error:
            wrong.append(f"{path.name}, line {number}: {error}")
    assert wrong == []


# --- files, links, make targets ---------------------------------------------------------------------------------------


def paths(lines: List[Line]) -> Iterator[Tuple[int, str]]:
    """Every path of this repository that inline code, or the first column of a tree, names."""
    for line in lines:
        words = line.spans
        if line.kind == "code text" and not line.text.startswith(" "):
            words = re.split(r"\s{2,}", line.text)[:1] if OURS.match(line.text) else []
            words = [word.split(" … ")[0] for word in words]
        for word in words:
            word = word.split("::")[0]  # a test is named with its file
            if OURS.match(word) and not word.startswith(UPSTREAM) and not re.search(r"[…<*]|\s", word):
                yield line.number, word
            elif re.match(r"^[a-z]+/[a-z_]+\.py$", word):
                yield line.number, f"qwenlib/{word}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_path_exists(path: Path) -> None:
    assert [f"line {number}: {name}" for number, name in paths(page(path)) if not (ROOT / name).exists()] == []


def test_paths_are_seen_in_code_and_in_trees() -> None:
    lines = read("see `docs/no.md`, `engine/no.py`, `Makefile`\n```text\ntests/no/    nothing\n    no.md\n```\n")
    assert [name for _, name in paths(lines)] == ["docs/no.md", "qwenlib/engine/no.py", "Makefile", "tests/no/"]


def links(lines: List[Line]) -> Iterator[Tuple[int, str]]:
    for line in lines:
        if line.is_prose:
            for target in re.findall(r"\]\(([^)]+)\)", line.text):
                yield line.number, target


def anchors(lines: List[Line]) -> List[str]:
    """GitHub's anchors of the headings."""
    titles = [line.text.lstrip("# ") for line in lines if line.kind.startswith("heading")]
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    wrong = []
    for number, target in links(page(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor not in anchors(page(there))):
            wrong.append(f"line {number}: {target}")
    assert wrong == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"workbook", "test"} <= targets
    lines = page(path)
    texts = [text for _, text in shell_lines(lines)] + [span for line in lines for span in line.spans]
    named = {name for text in texts for name in re.findall(r"(?:^|\s)make ([a-z][\w-]*)", text)}
    assert named <= targets
    assert path != README or {"workbook", "test"} <= named


# --- the twins --------------------------------------------------------------------------------------------------------


def test_the_chinese_readme_has_the_same_lines_of_the_same_kinds() -> None:
    ours, theirs = page(README), page(TWIN)
    differ = [f"line {a.number}: {a.kind} | {b.kind}" for a, b in zip(ours, theirs) if a.kind != b.kind]
    assert differ[:3] == []
    assert len(ours) == len(theirs)
    assert sum(line.kind.startswith("heading") for line in ours) > 8


def test_the_chinese_readme_has_the_same_code_numbers_and_links() -> None:
    wrong = []
    for ours, theirs in zip(page(README), page(TWIN)):
        if ours.kind == "code bash":
            same = without_comment(ours.text) == without_comment(theirs.text)
        elif ours.kind.startswith("code"):
            same = ours.text.split("  ")[0] == theirs.text.split("  ")[0]
        else:
            same = sorted(ours.spans) == sorted(theirs.spans) and figures(ours.text) == figures(theirs.text)
            same = same and (ours.number == 3 or [t for _, t in links([ours])] == [t for _, t in links([theirs])])
        if not same:
            wrong.append(f"line {ours.number}:\n{ours.text}\n{theirs.text}")
    assert wrong == []


def figures(text: str) -> List[str]:
    """Numbers of two digits and more, and versions; small ones may be words in either language."""
    return sorted(re.findall(r"\d+(?:\.\d+)+|\d\d+", re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)))


def test_the_twins_name_each_other() -> None:
    assert "](README_zh.md)" in page(README)[2].text
    assert "](README.md)" in page(TWIN)[2].text


# --- tables and trees against the code --------------------------------------------------------------------------------


def section(lines: List[Line], title: str) -> List[Line]:
    """The lines below a heading, to the next one."""
    start = next(place for place, line in enumerate(lines) if line.text.lstrip("# ") == title)
    rest = lines[start + 1 :]
    end = next((place for place, line in enumerate(rest) if line.kind.startswith("heading")), len(rest))
    return rest[:end]


def rows(lines: List[Line]) -> List[List[str]]:
    """Table rows without heads and rules."""
    found = [line.cells for line in lines if line.kind.startswith("row")]
    rules = [place for place, cells in enumerate(found) if re.fullmatch(r":?-+:?", cells[0])]
    return [cells for place, cells in enumerate(found) if place not in rules and place + 1 not in rules]


def test_the_stage_table_has_the_six_stages_in_order() -> None:
    table = rows(section(page(README), "The six stages"))
    assert [cells[0] for cells in table] == [f"[{name}](notebooks/{name}/{name}.ipynb)" for name in STAGES]


def test_the_minutes_of_the_stages_are_numbers() -> None:
    minutes = [cells[-1] for cells in rows(section(page(README), "The six stages"))]
    assert all(re.fullmatch(r"\d+(\.\d)?", text) for text in minutes), f"measure them: {minutes}"


def test_the_version_table_is_the_doctors() -> None:
    table = {cells[0]: cells[1:] for cells in rows(section(page(README), "Hardware and versions")) if len(cells) == 3}
    good = {place: {item.name: item.good[0] for item in items} for place, items in versions_table.PACKAGES.items()}
    assert table["MindSpore"] == [good["Ascend"]["mindspore"], good["CPU"]["mindspore"]]
    assert table["MindPet"] == [good["Ascend"]["mindpet"], good["CPU"]["mindpet"]]
    assert table["MindFormers"][1] == good["CPU"]["mindformers"]
    assert table["CANN"][0].startswith(versions_table.CANN[0])
    assert table["transformers, tokenizers"][1] == f"{good['CPU']['transformers']}, {good['CPU']['tokenizers']}"
    assert table["torch (to convert and compare)"][1].startswith(good["CPU"]["torch"])
    pythons = [", ".join(f"{a}.{b}" for a, b in versions_table.PYTHON[place]) for place in ("Ascend", "CPU")]
    assert table["Python"] == pythons


def test_every_shipped_profile_is_named() -> None:
    for path in (README, ROOT / "docs" / "architecture.md"):
        text = path.read_text(encoding="utf-8")
        assert [name for name in profiles.names() if f"`{name}`" not in text] == []


def test_architecture_names_every_room_and_no_other() -> None:
    tree = [line.text for line in section(page(ROOT / "docs" / "architecture.md"), "Rooms of qwenlib")]
    named = [match[1] for match in (re.match(r" {4}(\w+/?) {2,}\S", text) for text in tree) if match]
    there = [
        item.stem + "/" * item.is_dir()
        for item in (ROOT / "qwenlib").iterdir()
        if not item.name.startswith(("_", ".")) and (item.is_dir() or item.suffix == ".py")
    ]
    assert sorted(named) == sorted(there)


def test_the_trees_name_every_folder_of_the_repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to it is not known")
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {file.split("/")[0] for file in files if "/" in file}
    for path, title in ((README, "What is where"), (ROOT / "docs" / "architecture.md", "Top level")):
        named = {line.text.split("/")[0] for line in section(page(path), title) if line.kind == "code text"}
        assert folders - named <= {".ci"} if path == README else folders <= named


def test_architecture_tells_the_walls_that_the_tests_hold() -> None:
    walls = ast.parse((ROOT / "tests" / "test_walls.py").read_text(encoding="utf-8"))
    light = next(
        ast.literal_eval(node.value)
        for node in walls.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LIGHT"
    )
    lines = section(page(ROOT / "docs" / "architecture.md"), "Who may import whom")
    told = next(line.spans for line in lines if line.kind == "item")
    assert sorted(told) == sorted(light)


def test_architecture_tells_the_exit_codes() -> None:
    table = {cells[0]: cells[1] for cells in rows(section(page(ROOT / "docs" / "architecture.md"), "Exit codes"))}
    assert list(table) == ["0", str(WorkFailed.exit_code), str(Refused.exit_code), "130"]
    assert WorkFailed.heading in table[str(WorkFailed.exit_code)]
    assert Refused.heading in table[str(Refused.exit_code)]
    assert issubclass(Refused, QwenlibError)


def test_errata_are_numbered_and_each_has_evidence() -> None:
    table = rows(page(ROOT / "docs" / "guide_errata.md"))
    assert [cells[0] for cells in table] == [str(number) for number in range(1, len(table) + 1)]
    assert all(all(cells) for cells in table)
    assert len(table) >= 31


# --- messages ---------------------------------------------------------------------------------------------------------


def literals() -> List[str]:
    """Every text in our sources; what an f-string fills in becomes a blank."""
    found = [(ROOT / "tools" / "find_python").read_text(encoding="utf-8")]
    for path in [*(ROOT / "qwenlib").rglob("*.py"), ROOT / "tools" / "make_venv.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [item.value if isinstance(item, ast.Constant) else " " for item in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_in_troubleshooting_is_one_that_we_say() -> None:
    said = literals()
    lines = page(ROOT / "docs" / "troubleshooting.md")
    checked, unknown = 0, []
    for title in ("Installing", "Running the workbook", "Weights", "Data", "Training and answers"):
        for line in section(lines, title):
            symptom = line.cells[0] if line.kind.startswith("row") else ""
            for span in re.findall(r"`([^`]+)`", symptom):
                if span in THEIRS:
                    continue
                pattern = re.compile(".*".join(re.escape(part.strip()) for part in span.split("…")), re.DOTALL)
                checked += 1
                if not any(pattern.search(text) for text in said):
                    unknown.append(f"line {line.number}: {span}")
    assert unknown == []
    assert checked > 30
