"""The live view of a training: status line, ranks, last log lines, pictures and a stop button, drawn in place."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import threading
import time
import uuid
from html import escape
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from qwenlib.files import atomic_path
from qwenlib.launch.failure import last_lines
from qwenlib.monitor.clicks import ears, hears_beside
from qwenlib.monitor.memory import Memory
from qwenlib.monitor.metrics import join, to_frame
from qwenlib.monitor.plots import plot
from qwenlib.progress import PLAIN_SECONDS, headless, in_kernel, tell

PLOT_FILE = "loss.png"
REDRAW_SECONDS = 1.0
"""Never redraw more often; and never spend more than 5 % of the time with drawing, which the ranks pay for."""
LOG_LINES, LOG_WIDTH, MOST_ROWS = 5, 160, 16
_GIB = 2**30
_ORIGIN = re.compile(r"^\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d{3} - mindformers\S* - (\w+) - ")
"""How MindFormers' log lines begin."""
_BLANKS = re.compile(r"\s{3,}")


class LivePlot:
    """The view of a run under way.

    In a kernel with a front end it is replaced in place. Headless, a plain line is printed to stderr every
    ``seconds`` seconds, and the last picture alone is shown. It is saved as ``folder/loss.png`` in any case.

    Args:
        log: the log whose last lines are shown; None: none are.
        button: show a stop button (where a click can be heard before the cell has ended); see :attr:`stop_asked`.
    """

    def __init__(
        self,
        folder: Path,
        title: str = "training",
        total_steps: int = 0,
        seconds: float = PLAIN_SECONDS,
        log: Optional[Path] = None,
        button: bool = False,
    ):
        self.folder, self.title, self.total_steps, self.seconds = Path(folder), title, total_steps, seconds
        self.log = log
        self.records: List[Dict[str, Any]] = []
        self.live = in_kernel() and not headless()
        self.memory = Memory()
        self.redraws = 0
        self.stop_asked = threading.Event()
        self._launch: Dict[str, Any] = {}
        self._start = time.monotonic()
        self._said = self._start
        self._worded, self._drawn, self._pause, self._shown = 0.0, 0.0, REDRAW_SECONDS, 0
        self._id = uuid.uuid4().hex
        self._displayed: set = set()
        self._hear: Callable[[], object] = lambda: None
        self._button: Any = self._make_button() if button and self.live else None

    def update(self, records: List[Dict[str, Any]], launch: Optional[Dict[str, Any]] = None) -> None:
        """Take new records and the launch's state; redraw or print when it is time."""
        join(self.records, records)
        if launch is not None:
            self._launch = launch
            self.memory.look(launch)
        self._hear()
        now = time.monotonic()
        if not self.live:
            if now - self._said >= self.seconds:
                self._said = now
                tell(self.status())
            return
        if now - self._worded >= REDRAW_SECONDS:
            self._worded = now
            self._show("status", self._words())
        if self.records and len(self.records) != self._shown and now - self._drawn >= self._pause:
            self._drawn, self._shown = now, len(self.records)
            self._show("plot", {"image/png": self._png(), "text/plain": self.title})
            self.redraws += 1
            if self.redraws > 1:  # the first one loads matplotlib and its fonts
                self._pause = max(REDRAW_SECONDS, 20 * (time.monotonic() - now))

    def status(self) -> str:
        """One line: where the run is, how it goes, how long it will still take."""
        elapsed, state = self._elapsed(), self._launch.get("state")
        ended = f"{state} after {duration(elapsed)}" if state in ("failed", "stopped") else ""
        if not self.records:
            if ended:
                return f"{self.title}: {ended}, no step"
            busy = f", ranks busy with {self.memory.cpu:.0f} % CPU" if self.memory.cpu >= 1 else ""
            return f"{self.title}: starting and compiling… {elapsed:.0f} s{busy}, no step yet"
        last = self.records[-1]
        total = self.total_steps or last["total_steps"]
        loss = "not finite" if last["loss"] is None else f"{last['loss']:.3f}"
        text = f"{self.title}: step {last['step']}/{total}, loss {loss}"
        if last["tokens_per_second"] is not None:
            text += f", {last['tokens_per_second']:,.0f} tokens/s"
        if last.get("mfu") is not None:
            text += f", MFU {last['mfu']:.1%}"
        left = self.seconds_left()
        return text + ", " + (ended or (f"about {duration(left)} left" if left else duration(elapsed)))

    def seconds_left(self) -> Optional[float]:
        """From the median time of the last steps; the first one, which compiles, does not count."""
        if not self.records:
            return None
        times = sorted(record["per_step_time_ms"] for record in self.records[1:][-20:])
        total = self.total_steps or self.records[-1]["total_steps"]
        if not times:
            return None
        return max(0, total - self.records[-1]["step"]) * times[len(times) // 2] / 1000

    def rows(self) -> List[List[str]]:
        """A row for each rank of this host: rank, state, pid, host memory now and at most, CPU, card memory."""
        found = []
        for entry in self._launch.get("ranks") or []:
            rank, usage = entry.get("rank"), self.memory.usage.get(entry.get("rank"))
            state = str(entry.get("state"))
            how = entry.get("signal") or (f"exit {entry['exit_code']}" if entry.get("exit_code") else "")
            now = peak = cpu = card = ""
            if usage is not None and state == "running":
                now = (
                    f"{usage.rss / _GIB:.2f}"
                    if usage.pss is None
                    else f"{usage.pss / _GIB:.2f} ({usage.rss / _GIB:.2f})"
                )
                cpu = "" if usage.cpu is None else f"{usage.cpu:.0f} %"
                card = "" if usage.hbm is None else f"{usage.hbm[0]} / {usage.hbm[1]}"
            if rank in self.memory.peak:
                peak = f"{self.memory.peak[rank] / _GIB:.2f}"
            found.append([str(rank), f"{state} {how}".strip(), str(entry.get("pid", "")), now, peak, cpu, card])
        return found

    def finish(self, launch: Optional[Dict[str, Any]] = None) -> Optional[Path]:
        """Save the picture, show the last frame, say the last line. No step seen: None, and nothing is drawn."""
        self._launch = launch or self._launch
        self._hear = lambda: None
        if self._button is not None:  # a saved notebook shall not keep a dead widget
            self._button.update({"text/plain": ""}, raw=True)
        status = self.status()
        if self.live and self._launch:
            self._show("status", self._words())
        if not self.records:
            tell(status)
            return None
        png = self._png()
        path = self.folder / PLOT_FILE
        with atomic_path(path) as part:
            part.write_bytes(png)
        if in_kernel():
            if self.live:
                self._show("status", self._words())
            else:
                tell(status)
            self._show("plot", {"image/png": png, "text/plain": str(path)})
        else:
            tell(f"{status}; {path}")
        return path

    def _elapsed(self) -> float:
        """Seconds since the launch began (or, without one, since we look)."""
        started = self._launch.get("started")
        if isinstance(started, (int, float)):
            return max(0.0, float(self._launch.get("finished") or time.time()) - started)
        return time.monotonic() - self._start

    def _words(self) -> Dict[str, Any]:
        """Status, ranks and log as text and as HTML; everything that comes from outside is escaped."""
        head = ["rank", "state", "pid", "GiB (RSS)", "peak GiB", "CPU", "card MB"]
        rows = self.rows()
        head, *body = _drop_empty([head, *rows[:MOST_ROWS]])
        more = f"… and {len(rows) - MOST_ROWS} more ranks" if len(rows) > MOST_ROWS else ""
        log = [brief(line) for line in last_lines(self.log, LOG_LINES)] if self.log else []
        plain = [self.status(), *["  ".join(row) for row in ([head, *body] if body else [])], more, *log]
        html = [f"<p><b>{escape(self.status())}</b></p>"]
        if body:
            cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
            html.append(f"<table><thead><tr>{cells}</tr></thead><tbody>")
            html += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
            html.append("</tbody></table>")
        html.append(f"<p>{escape(more)}</p>" if more else "")
        if log:
            text = "\n".join(escape(line) for line in log)
            html.append(f'<pre style="font-size: 85%; overflow-x: auto; white-space: pre">{text}</pre>')
        return {"text/plain": "\n".join(filter(None, plain)), "text/html": "".join(html)}

    def _png(self) -> bytes:
        stream = io.BytesIO()
        plot(to_frame(self.records), self.title, self.memory.history or None).savefig(stream, format="png")
        return stream.getvalue()

    def _show(self, what: str, data: Dict[str, Any]) -> None:
        from IPython.display import publish_display_data

        transient = {"display_id": f"{self._id}-{what}"}
        if isinstance(data.get("image/png"), bytes):
            data = {**data, "image/png": base64.b64encode(data["image/png"]).decode("ascii")}
        with contextlib.suppress(OSError):  # the front end's sockets are gone: training goes on
            publish_display_data(data, transient=transient, update=what in self._displayed)
            self._displayed.add(what)

    def _make_button(self) -> Any:
        """The stop button; None where a click could only be heard after the cell has ended."""
        from IPython import get_ipython

        kernel = get_ipython().kernel
        beside = hears_beside(kernel)
        hear = None if beside else ears(kernel)
        if not (beside or hear):
            return None
        try:
            import ipywidgets
            from IPython.display import display
        except ImportError:
            return None
        button = ipywidgets.Button(description="stop", icon="stop", tooltip="End all ranks of this run")
        button.on_click(lambda _button: self.stop_asked.set())
        if hear is not None:
            self._hear = lambda: hear(button.comm.comm_id)
        shown = display(button, display_id=f"{self._id}-stop")
        # ipykernel 7 remembers that the busy main thread made the button and would keep its clicks for that; without
        # the memory, they go to the subshell that JupyterLab sends them to.
        with contextlib.suppress(TypeError):
            vars(button.comm).pop("_reply_subshell_id", None)
        return shown


def brief(line: str) -> str:
    """A log line as narrow as it can be told: time without the date, no source file, no runs of blanks."""
    told = _BLANKS.sub("  ", _ORIGIN.sub(r"\1 \2 ", line))
    return told if len(told) <= LOG_WIDTH else told[: LOG_WIDTH - 1] + "…"


def _drop_empty(table: List[List[str]]) -> List[List[str]]:
    """Without the columns that have a heading only."""
    keep = [any(row[place] for row in table[1:]) for place in range(len(table[0]))]
    return [[cell for cell, kept in zip(row, keep) if kept] for row in table]


def duration(seconds: float) -> str:
    """``75`` → ``1 min 15 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
