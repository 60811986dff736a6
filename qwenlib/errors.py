"""The two ways a command can end badly, with the exit codes that go with them.

A message is one paragraph: what, where (path, line, field), what was found, what to do next.
"""

from __future__ import annotations

from typing import List


class QwenlibError(Exception):
    """A mistake or a failure that is told in one paragraph, without a traceback."""

    exit_code = 1
    heading = "failed"

    def _render_traceback_(self) -> List[str]:
        # IPython calls this instead of printing a stack: in a notebook, too, the user sees the sentence alone.
        return [f"qwenlib {self.heading}: {self}"]


class Refused(QwenlibError):
    """The input or the command was refused before any work was done (exit code 2)."""

    exit_code = 2
    heading = "refused"


class WorkFailed(QwenlibError):
    """The work was begun and failed (exit code 1)."""

    exit_code = 1
    heading = "failed"
