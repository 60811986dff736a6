"""A detached training in a real JupyterLab: watched, its kernel restarted, watched on, interrupted, stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qwenlib.launch import attach, read_status

pytestmark = [pytest.mark.browser, pytest.mark.stack]

CELL = """from pathlib import Path
from qwenlib import profile
from qwenlib.engine import work
folder = Path({folder!r})
prof = profile.load("smoke", {settings!r})
found = work.finetune(prof, "finetune", load_checkpoint=folder / "model_dir", train_dataset={data!r}, detach=True,
                      vocab_file=folder / "hf" / "vocab.json", merges_file=folder / "hf" / "merges.txt",
                      run_dir={run_dir!r})"""
HTML = ".jp-OutputArea-output[data-mime-type='text/html']"
STEP = re.compile(r"step (\d+)/")


class Panel:
    """The live view, as a person sees it."""

    def __init__(self, notebook: Any):
        self.notebook, self.page = notebook, notebook.page

    def step(self) -> int:
        """The step that the status line tells; 0 before the first."""
        shown = self.page.locator(HTML)
        found = STEP.search(shown.first.inner_text()) if shown.count() else None
        return int(found[1]) if found else 0

    def moves(self, beyond: int = 0) -> int:
        """Wait until it tells a later step than ``beyond``, and then a later one still."""
        for _ in range(2):
            self.page.wait_for_function(
                """([panel, least]) => {
                    const told = document.querySelector(panel)?.innerText.match(/step (\\d+)/);
                    return told && Number(told[1]) > least;
                }""",
                arg=[HTML, beyond],
                timeout=90_000,
            )
            beyond = self.step()
        return beyond

    def ended(self) -> None:
        """Wait until no cell is at work (the kernel is idle in between, for its button is served beside the cell)."""
        running = "() => [...document.querySelectorAll('.jp-InputPrompt')].some(each => each.innerText.includes('*'))"
        self.page.wait_for_function(f"() => !({running})()")

    def says(self, text: str) -> None:
        self.page.locator(".jp-OutputArea-output", has_text=text).first.wait_for()


def test_a_training_is_watched_over_a_restart_and_stopped_by_its_button(
    open_notebook: Any, micro: Any, tmp_path: Path
) -> None:
    from micro import SETTINGS

    settings = [*SETTINGS, "finetune.parallel.data_parallel=1", "finetune.epochs=20000"]
    run_dir = tmp_path / "run"
    given = {"folder": str(micro.folder), "data": str(micro.mindrecord), "run_dir": str(run_dir)}
    notebook = open_notebook(CELL.format(settings=settings, **given), name="training")
    panel = Panel(notebook)
    try:
        notebook.command("notebook:run-all-cells")
        before = panel.moves()
        notebook.page.locator(".jp-OutputArea-output img").first.wait_for()
        notebook.shot("training_live", ".jp-Cell")
        launched = read_status(run_dir)["id"]

        notebook.restart_kernel()
        notebook.wait_idle()
        assert attach(run_dir).poll()["state"] == "running", "the training outlives its kernel"
        notebook.command("notebook:run-all-cells")
        panel.says(f"This very training goes on in {run_dir}, after step")
        before = panel.moves(before)

        notebook.command("notebook:interrupt-kernel")
        panel.says(f"Stop it: qwenlib stop {run_dir}")
        panel.says("The interrupt key ended the watching, not the training.")
        panel.ended()
        notebook.shot("training_interrupted", ".jp-Cell")
        assert attach(run_dir).poll()["state"] == "running", "the interrupt key ends the watching"

        notebook.command("notebook:run-all-cells")
        panel.moves(before)
        notebook.page.locator(".jp-OutputArea button", has_text="stop").click()
        panel.says("qwenlib failed: the run was ended: it was stopped.")
        panel.ended()
        notebook.shot("training_stopped", ".jp-Cell")
        status = attach(run_dir).poll()
        assert (status["state"], status["id"], status["left"]) == ("stopped", launched, [])
        assert [entry["signal"] for entry in status["ranks"]] == ["SIGTERM"]
        assert notebook.complaints == []
    finally:
        if run_dir.exists():
            attach(run_dir).stop()
