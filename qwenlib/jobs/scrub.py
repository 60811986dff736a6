"""No secret of the environment leaves the machine in a notebook, a page or a log."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import List, Mapping, Union

from qwenlib import modelarts
from qwenlib.files import atomic_path

SUFFIXES = (".ipynb", ".html", ".json", ".jsonl", ".log", ".txt", ".yaml", ".csv", ".md")
"""One of them anywhere behind the name's first dot: a log that was rotated is called ``info.log.1``."""
HIDDEN = "(hidden)"
SHORTEST = 6
"""Shorter values are words that stand everywhere ("true"), not secrets."""


def scrub(folder: Union[str, Path], environ: Mapping[str, str] = os.environ) -> List[Path]:
    """Replace the values of secret variables in the text files below ``folder``; returns the files that held one."""
    values = {environ[name] for name in modelarts.secrets(environ) if len(environ[name]) >= SHORTEST}
    pages = {form for value in values for form in (value, html.escape(value), html.escape(value, quote=False))}
    forms = pages | {json.dumps(form, ensure_ascii=ascii)[1:-1] for form in pages for ascii in (True, False)}
    needles = sorted((form.encode() for form in forms), key=len, reverse=True)
    changed: List[Path] = []
    for path in sorted(Path(folder).rglob("*")) if needles else []:
        if not set(SUFFIXES).intersection(path.suffixes) or path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        clean = content
        for needle in needles:
            clean = clean.replace(needle, HIDDEN.encode())
        if clean != content:
            with atomic_path(path) as part:
                part.write_bytes(clean)
            changed.append(path)
    return changed
