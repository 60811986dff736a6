"""A real JupyterLab in Debian's Chromium: the server, the browser, and an open notebook.

A test takes ``open_notebook`` and says ``notebook = open_notebook("import …", "panel")``: a notebook of these cells is
open, its kernel idle. The browser and the server live for one module: Playwright keeps an event loop running in this
thread, which no test of another room may meet.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List
from urllib.request import urlopen

import pytest
from micro import Micro
from micro import micro as make_micro

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
SIZE = {"width": 1100, "height": 900}
SHOTS = os.environ.get("QWENLIB_SHOTS", "")
"""A folder for screenshots ("": none are kept): ``QWENLIB_SHOTS=/tmp/shots pytest tests/browser``."""

Open = Callable[..., "Notebook"]


class Lab:
    """A JupyterLab server of its own: free port, token, settings and data in ``folder``."""

    def __init__(self, folder: Path):
        self.folder, self.work = folder, folder / "work"
        self.work.mkdir()
        runtime, config = folder / "runtime", folder / "config"
        (config / "labconfig").mkdir(parents=True)
        quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
        (config / "labconfig" / "page_config.json").write_text(json.dumps(quiet), encoding="utf-8")
        environment = {
            **{key: value for key, value in os.environ.items() if key != "QWENLIB_HEADLESS"},
            "JUPYTER_CONFIG_DIR": str(config),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(runtime),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        self.token = os.urandom(16).hex()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = folder / "lab.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
                    *("--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={self.token}"),
                    f"--ServerApp.root_dir={self.work}",
                ],
                cwd=self.work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.url = self._wait(runtime / f"jpserver-{self.process.pid}.json")

    def _wait(self, described: Path, seconds: float = 60.0) -> str:
        """The address, from the file that the server writes when it listens (the port may be another one)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                url = str(json.loads(described.read_text(encoding="utf-8"))["url"])
                with urlopen(f"{url}api/status?token={self.token}", timeout=5):
                    return url
            except (OSError, ValueError):
                time.sleep(0.1)
        self.close()
        raise RuntimeError(f"JupyterLab does not answer; its log:\n{self.log.read_text(errors='replace')[-3000:]}")

    def address(self, name: str) -> str:
        """Where the notebook ``name`` is shown alone, without the side bars."""
        return f"{self.url}doc/tree/{name}?token={self.token}"

    def close(self) -> None:
        """End the server and with it the kernels."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Notebook:
    """A notebook open in the browser; ``page`` is Playwright's."""

    def __init__(self, page: Any, address: str):
        self.page, self.complaints = page, []  # type: Any, List[str]
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(address)
        self.wait_idle()

    def wait_idle(self, seconds: float = 60.0) -> None:
        """Wait for a kernel that has nothing to do."""
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=seconds * 1e3,
        )

    def run_all(self) -> None:
        """Run every cell and wait for the last one (between two cells the kernel is idle, too)."""
        late = "new Promise((_, fail) => setTimeout(() => fail(new Error('the cells run and run')), 180000))"
        ran = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
        self.page.evaluate(f"() => Promise.race([{ran}.then(() => true), {late}])")
        self.wait_idle()
        failed = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
        assert failed.count() == 0, failed.first.inner_text()

    def command(self, name: str) -> None:
        """Run a JupyterLab command; it may still be at work when this returns."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name) }", name)

    def restart_kernel(self) -> None:
        """Restart the kernel as the menu does, its question answered."""
        self.command("notebook:restart-kernel")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()

    def shot(self, name: str, selector: str) -> None:
        """Keep a picture of the element when pictures are asked for (:data:`SHOTS`)."""
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.locator(selector).first.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


@pytest.fixture(scope="session")
def micro() -> Micro:
    return make_micro()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab server."""
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's Chromium without a window, with a profile of its own."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = str(tmp_path_factory.mktemp("chromium"))
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=list(FLAGS), headless=True, viewport=SIZE, locale="en-US"
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture(scope="module")
def open_notebook(browser: Any, lab: Lab) -> Iterator[Open]:
    """``open_notebook(*cells, name="notebook")``: a notebook of these cells, open, with an idle kernel.

    Each with a name of its own; the pages stay open to the end of the module.
    """
    nbformat = pytest.importorskip("nbformat")
    pages: List[Any] = []

    def open_it(*cells: str, name: str = "notebook") -> Notebook:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, lab.work / f"{name}.ipynb")
        pages.append(browser.new_page())
        return Notebook(pages[-1], lab.address(f"{name}.ipynb"))

    yield open_it
    for page in pages:
        page.close()
