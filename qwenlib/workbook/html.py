"""The executed notebook as a page that a browser opens without Jupyter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwenlib.files import write_text


def write(notebook: Any, path: Path, title: str) -> None:
    """Write ``notebook`` as HTML with JupyterLab's look; nothing is fetched.

    Formulas and widgets use scripts that the page names by address; without a network the page shows their text.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", embed_images=False)
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    write_text(path, body)
