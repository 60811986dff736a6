"""The two ways a command can end badly, with the exit codes that go with them.

A message is one paragraph: what, where (path, line, field), what was found, what to do next.
"""

from __future__ import annotations

import textwrap
from typing import List, Sequence, Tuple, Type, TypeVar

LAB_WIDTH = 100
"""Columns of an error in a notebook: JupyterLab breaks longer lines of one anywhere, in the middle of words, too."""

_Error = TypeVar("_Error", bound="QwenlibError")


class QwenlibError(Exception):
    """A mistake or a failure that is told in one paragraph, without a traceback."""

    exit_code = 1
    heading = "failed"
    _lines: Tuple[str, ...] = ()

    @classmethod
    def listing(cls: Type[_Error], what: str, points: Sequence[str]) -> _Error:
        """An error with several ``points``: one paragraph, but in a notebook a line for each."""
        error = cls(f"{what}: {'; '.join(points)}.")
        error._lines = (f"{what}:", *(f"  {point}" for point in points))
        return error

    def _render_traceback_(self) -> List[str]:
        # IPython calls this instead of printing a stack: in a notebook, too, the user sees the sentence alone.
        first, *others = self._lines or str(self).splitlines() or [""]
        lines = [_folded(line) for line in (f"qwenlib {self.heading}: {first}", *others)]
        return ["\n".join(lines)]


def _folded(line: str) -> str:
    if len(line) <= LAB_WIDTH:
        return line
    indent = " " * (4 if line.startswith("  ") else 0)
    return textwrap.fill(
        line, LAB_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )


class Refused(QwenlibError):
    """The input or the command was refused before any work was done (exit code 2)."""

    exit_code = 2
    heading = "refused"


class WorkFailed(QwenlibError):
    """The work was begun and failed (exit code 1)."""

    exit_code = 1
    heading = "failed"
