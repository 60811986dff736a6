"""The picture of a training: loss, learning rate, throughput; drawn in place in a notebook, or as a PNG."""

from __future__ import annotations

import contextlib
import io
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from qwenlib.files import atomic_path
from qwenlib.monitor.metrics import to_frame
from qwenlib.progress import PLAIN_SECONDS, headless, in_kernel

if TYPE_CHECKING:
    import pandas

PLOT_FILE = "loss.png"
REDRAW_SECONDS = 1.0
"""Never redraw more often; and never spend more than 5 % of the time with drawing, which the ranks pay for."""
MOST_POINTS = 2000


def plot(frame: pandas.DataFrame, title: str = "") -> Any:
    """A matplotlib figure of a run's metrics: loss (each step and smoothed), learning rate, tokens per second."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 3.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # drawn without pyplot: no global state, no window, no second copy in a notebook
    if title:
        figure.suptitle(title)
    loss, rate, speed = figure.subplots(1, 3)
    thin = frame.iloc[:: max(1, len(frame) // MOST_POINTS)]
    line = {"marker": "o"} if len(frame) < 4 else {}  # a line of one point cannot be seen
    smooth = frame["loss"].ewm(span=smoothing(len(frame))).mean().loc[thin.index]
    loss.plot(thin["step"], thin["loss"], **line, color="0.75", linewidth=1, label="each step")
    loss.plot(thin["step"], smooth, **line, color="tab:blue", linewidth=2, label="smoothed")
    bad = frame[frame["overflow"].fillna(False).astype(bool)]
    if not bad.empty:
        loss.plot(bad["step"], bad["loss"], "x", color="tab:red", label=f"overflow, skipped ({len(bad)})")
    loss.set(title="loss", xlabel="step")
    if len(frame):
        loss.legend(fontsize="small")
    rate.plot(thin["step"], thin["lr"], **line, color="tab:orange")
    rate.set(title="learning rate", xlabel="step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    usual = thin.iloc[1:] if len(thin) > 1 else thin  # the first step includes the compilation
    speed.plot(usual["step"], usual["tokens_per_second"], **line, color="tab:green", label="all tokens")
    if not usual["real_tokens_per_second"].equals(usual["tokens_per_second"]):
        real = usual["real_tokens_per_second"]
        speed.plot(usual["step"], real, **line, color="tab:olive", label="without padding")
        speed.legend(fontsize="small")
    speed.set(title="tokens/s, all ranks", xlabel="step", ylim=(0, None))
    for axes, column in ((loss, "loss"), (rate, "lr"), (speed, "tokens_per_second")):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not frame[column].notna().any():
            axes.text(0.5, 0.5, "not in the log", ha="center", color="0.5", transform=axes.transAxes)
    return figure


def smoothing(steps: int) -> int:
    """Span of the exponential mean: a tenth of the run, 3 to 50 steps."""
    return min(50, max(3, steps // 10))


class LivePlot:
    """The picture and a status line of a run under way.

    In a kernel with a front end both are replaced in place. Headless, a plain line is printed to stderr every
    ``seconds`` seconds, and the last picture alone is shown. It is saved as ``folder/loss.png`` in any case.
    """

    def __init__(self, folder: Path, title: str = "training", total_steps: int = 0, seconds: float = PLAIN_SECONDS):
        self.folder, self.title, self.total_steps, self.seconds = Path(folder), title, total_steps, seconds
        self.records: List[Dict[str, Any]] = []
        self.live = in_kernel() and not headless()
        self.redraws = 0
        self._start = time.monotonic()
        self._said = self._start
        self._drawn, self._drawing, self._shown_steps = 0.0, 0.0, 0
        self._id = uuid.uuid4().hex
        self._displayed: set = set()

    def update(self, records: List[Dict[str, Any]]) -> None:
        """Take new records; redraw or print when it is time."""
        self.records += records
        now = time.monotonic()
        if not self.live:
            if now - self._said >= self.seconds:
                self._said = now
                print(self.status(), file=sys.stderr, flush=True)
        elif now - self._drawn >= max(REDRAW_SECONDS, 20 * self._drawing):
            self._drawn = now
            self._show("status", {"text/plain": self.status()})
            if len(self.records) > self._shown_steps:
                self._shown_steps = len(self.records)
                self._show("plot", {"image/png": self._png(), "text/plain": self.title})
                self._drawing = time.monotonic() - now
                self.redraws += 1

    def status(self) -> str:
        """One line: where the run is, how it goes, how long it will still take."""
        elapsed = time.monotonic() - self._start
        if not self.records:
            return f"{self.title}: starting and compiling… {elapsed:.0f} s, no step yet"
        last = self.records[-1]
        total = self.total_steps or last["total_steps"]
        loss = "not finite" if last["loss"] is None else f"{last['loss']:.3f}"
        text = f"{self.title}: step {last['step']}/{total}, loss {loss}"
        if last["tokens_per_second"] is not None:
            text += f", {last['tokens_per_second']:,.0f} tokens/s"
        left = self.seconds_left()
        return text + (f", about {duration(left)} left" if left else f", {duration(elapsed)}")

    def seconds_left(self) -> Optional[float]:
        """From the median time of the last steps; the first one, which compiles, does not count."""
        if not self.records:
            return None
        times = sorted(record["per_step_time_ms"] for record in self.records[1:][-20:])
        total = self.total_steps or self.records[-1]["total_steps"]
        if not times:
            return None
        return max(0, total - self.records[-1]["step"]) * times[len(times) // 2] / 1000

    def finish(self) -> Optional[Path]:
        """Save the picture, show the last frame, say the last line. No step seen: None, and nothing is drawn."""
        status = self.status()
        if not self.records:
            print(status, file=sys.stderr, flush=True)
            return None
        png = self._png()
        path = self.folder / PLOT_FILE
        with atomic_path(path) as part:
            part.write_bytes(png)
        if in_kernel():
            if self.live:
                self._show("status", {"text/plain": status})
            else:
                print(status, file=sys.stderr, flush=True)
            self._show("plot", {"image/png": png, "text/plain": str(path)})
        else:
            print(f"{status}; {path}", file=sys.stderr, flush=True)
        return path

    def _png(self) -> bytes:
        stream = io.BytesIO()
        plot(to_frame(self.records), self.title).savefig(stream, format="png")
        return stream.getvalue()

    def _show(self, what: str, data: Dict[str, Any]) -> None:
        from IPython.display import publish_display_data

        transient = {"display_id": f"{self._id}-{what}"}
        if isinstance(data.get("image/png"), bytes):
            import base64

            data = {**data, "image/png": base64.b64encode(data["image/png"]).decode("ascii")}
        with contextlib.suppress(OSError):  # the front end's sockets are gone: training goes on
            publish_display_data(data, transient=transient, update=what in self._displayed)
            self._displayed.add(what)


def duration(seconds: float) -> str:
    """``75`` → ``1 min 15 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
