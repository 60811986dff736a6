"""The parameters of a notebook: read from its ``parameters`` cell, and held to their types.

The cell is read with Python's own parser: ``papermill.inspect_notebook`` goes line by line with a regular expression,
which cuts a text at its first ``#`` and knows no type where nothing is annotated. A test holds both to the same names.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from qwenlib.errors import Refused

TYPES: Dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}
RUNNERS_OWN = {"output": "--output", "profile": "--profile"}
"""Parameters that every stage has and that only the runner gives."""

_HOLDS = re.compile(r"^(\w+)(?:\[(.*)\])?$", re.DOTALL)


@dataclass(frozen=True)
class Kind:
    """A type that a parameter may have: one of :data:`TYPES`, what a list or dict holds, whether None is allowed."""

    name: str
    holds: Tuple[Kind, ...] = ()
    optional: bool = False

    def __str__(self) -> str:
        inner = f"[{', '.join(map(str, self.holds))}]" if self.holds else ""
        return f"Optional[{self.name}{inner}]" if self.optional else self.name + inner

    def accepts(self, value: Any) -> bool:
        """True when ``value`` has this type; a bool is no int, an int is a float."""
        if value is None:
            return self.optional
        if self.name == "float":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.name == "int" and isinstance(value, bool):
            return False
        if not isinstance(value, TYPES[self.name]):
            return False
        if isinstance(value, list) and self.holds:
            return all(self.holds[0].accepts(item) for item in value)
        if isinstance(value, dict):
            key, item = self.holds if self.holds else (Kind("str"), None)
            return all(key.accepts(k) and (item is None or item.accepts(v)) for k, v in value.items())
        return True


@dataclass(frozen=True)
class Parameter:
    """One line of a ``parameters`` cell."""

    name: str
    kind: Kind
    default: Any
    help: str = ""


def read(source: str, where: str) -> Dict[str, Parameter]:
    """The parameters in the source of a ``parameters`` cell, in their order.

    Args:
        source: ``epochs: int = 0  # 0: the profile's`` and so on: plain assignments of literals.
        where: what error messages call the cell.

    Raises:
        Refused: a line is not the assignment of a literal, an annotation is not understood, or a default does not
            have the type that its annotation names.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise Refused(f"{where}, line {error.lineno}: not Python ({error.msg}).") from None
    comments = _comments(source)
    found: Dict[str, Parameter] = {}
    for line in tree.body:
        target, annotation, value = _assignment(line, where)
        spot = f"{where}, line {line.lineno}"
        try:
            default = ast.literal_eval(value)
        except ValueError:
            raise Refused(f"{spot}: the default of {target} is not a literal; nothing is derived here.") from None
        kind = _kind(annotation, spot) if annotation is not None else _kind_of(default, spot)
        if not kind.accepts(default):
            raise Refused(f"{spot}: {target} is annotated {kind}, and its default is {default!r}.")
        found[target] = Parameter(target, kind, default, comments.get(line.end_lineno or line.lineno, ""))
    return found


def parse(text: str, parameter: Parameter, where: str) -> Any:
    """The value of ``parameter`` that ``text``, from a command line, stands for.

    A ``str`` is taken as it stands; ``bool`` is true or false; a list or a dict is JSON or a Python literal;
    None is written ``None`` or ``null``, where the parameter allows it.

    Raises:
        Refused: the text does not stand for a value of that type.
    """
    kind = parameter.kind
    if kind.optional and text.strip() in ("None", "null"):
        return None
    if kind.name == "str":
        return text
    try:
        value = _literal(text.strip(), kind.name)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Refused(_mismatch(parameter, text, where)) from None
    return check(value, parameter, where, shown=text)


def check(value: Any, parameter: Parameter, where: str, shown: Optional[str] = None) -> Any:
    """``value`` itself, when it has the type of ``parameter`` (an int for a float becomes a float).

    Raises:
        Refused: it has another type, or is not a finite number.
    """
    finite = not isinstance(value, float) or math.isfinite(value)
    if not parameter.kind.accepts(value) or not finite:
        raise Refused(_mismatch(parameter, repr(value) if shown is None else shown, where))
    return float(value) if parameter.kind.name == "float" and value is not None else value


def split(assignments: Sequence[str]) -> List[Tuple[Optional[str], str, str]]:
    """``["04_lora.epochs=3", "seed=1"]`` as ``[("04_lora", "epochs", "3"), (None, "seed", "1")]``.

    Raises:
        Refused: one of them does not read ``name=value`` or ``stage.name=value``.
    """
    parts: List[Tuple[Optional[str], str, str]] = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        stage, dot, name = key.strip().rpartition(".")
        if not equals or not name.isidentifier() or (dot and not stage):
            raise Refused(f"-p must read name=value or stage.name=value (-p 04_lora.epochs=3), found {assignment!r}.")
        parts.append((stage or None, name, value))
    return parts


def _literal(text: str, kind: str) -> Any:
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _mismatch(parameter: Parameter, shown: str, where: str) -> str:
    default = "" if parameter.name in RUNNERS_OWN else f" (default {parameter.default!r})"
    meaning = f" It is: {parameter.help}." if parameter.help else ""
    return f"{where}: {parameter.name} must be {parameter.kind}{default}, found {shown!r}.{meaning}"


def _assignment(line: ast.stmt, where: str) -> Tuple[str, Optional[ast.expr], ast.expr]:
    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
        return line.target.id, line.annotation, line.value
    if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
        return line.targets[0].id, None, line.value
    raise Refused(f"{where}, line {line.lineno}: only lines like `epochs: int = 3  # what it is` may stand here.")


def _comments(source: str) -> Dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def _kind(annotation: ast.expr, where: str) -> Kind:
    text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    kind = _kind_from(str(text))
    if kind is None:
        raise Refused(f"{where}: the type {text!r} is not one of {', '.join(TYPES)}, List[…], Dict[…], Optional[…].")
    return kind


def _kind_from(text: str) -> Optional[Kind]:
    text = text.replace("typing.", "").strip()
    if "|" in text and "[" not in text:
        parts = [part.strip() for part in text.split("|")]
        inner = [part for part in parts if part != "None"]
        return _optional(inner[0]) if len(inner) == 1 and len(parts) == 2 else None
    match = _HOLDS.match(text)
    if not match:
        return None
    name, holds = match.groups()
    if name == "Optional" and holds:
        return _optional(holds)
    name = {"List": "list", "Dict": "dict"}.get(name, name)
    if name not in TYPES or (holds and name not in ("list", "dict")):
        return None
    if not holds:
        return Kind(name)
    inner_kinds = [_kind_from(part) for part in (holds.split(",", 1) if name == "dict" else [holds])]
    if any(kind is None for kind in inner_kinds) or len(inner_kinds) != (2 if name == "dict" else 1):
        return None
    return Kind(name, tuple(kind for kind in inner_kinds if kind is not None))


def _optional(text: str) -> Optional[Kind]:
    inner = _kind_from(text)
    return Kind(inner.name, inner.holds, True) if inner else None


def _kind_of(default: Any, where: str) -> Kind:
    for name in ("bool", "int", "float", "str", "list", "dict"):
        if isinstance(default, TYPES[name]):
            return Kind(name)
    raise Refused(f"{where}: a default of {default!r} says no type; annotate it (`name: Optional[int] = None`).")


def describe(found: Mapping[str, Parameter]) -> List[Dict[str, Any]]:
    """The parameters as plain values, for ``--json`` and ``workbook list``."""
    return [
        {"name": p.name, "type": str(p.kind), "default": p.default, "help": p.help, "given_by": RUNNERS_OWN.get(p.name)}
        for p in found.values()
    ]
