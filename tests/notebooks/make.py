"""Writes the fixture notebooks beside it: python tests/notebooks/make.py"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Optional

import nbformat
from nbformat import v4

HERE = Path(__file__).parent

PARAMETERS = 'output: str = "runs/fixture"  # run directory\nprofile: str = "smoke"  # profile'
OPEN = (
    "from pathlib import Path\n\nfrom qwenlib.workspace import open_stage\n\n"
    "stage = open_stage(Path.cwd().name, output, profile)"
)
FINISH = "meta = stage.finish()"
SAY_READY = '(stage.path / "ready").write_text("")'

CODE: Dict[str, List[str]] = {
    "ok": [
        PARAMETERS
        + "\nepochs: int = 2  # how often\nrate: float = 1e-3  # how fast\nshuffle: bool = True\n"
        + 'text: str = "a # b"  # a text with a hash\nsizes: list = [1, 2]\nnames: dict = {"a": 1}',
        OPEN,
        '(stage.path / "result.txt").write_text(f"{epochs} {rate} {shuffle} {text} {sizes} {names}", encoding="utf-8")',
        'import os\n\nprint("headless", os.environ["QWENLIB_HEADLESS"], "offline", os.environ["HF_HUB_OFFLINE"])',
        'meta = stage.finish({"result": stage.path / "result.txt"}, {"epochs": epochs, "answer": 42})',
    ],
    "next": [
        PARAMETERS + "\nepochs: int = 2  # how often",
        OPEN,
        'before = stage.take("01_env")\nprint(Path(before["outputs"]["result"]).read_text(encoding="utf-8"))',
        '(stage.path / "second.txt").write_text("second")',
        'meta = stage.finish({"second": stage.path / "second.txt"})',
    ],
    "failing_cell": [PARAMETERS, OPEN, 'found = {}["<missing>"]', FINISH],
    "refused": [
        PARAMETERS,
        OPEN,
        'from qwenlib.errors import Refused\n\nraise Refused("the folder /w has no config.json; give one that has.")',
        FINISH,
    ],
    "failing_after_finish": [PARAMETERS, OPEN, FINISH, 'raise ValueError("too late")'],
    "dead_kernel": [PARAMETERS, OPEN, "import os\nimport signal\n\nos.kill(os.getpid(), signal.SIGKILL)", FINISH],
    "slow": [PARAMETERS, OPEN, f"import time\n\n{SAY_READY}\ntime.sleep(60)", FINISH],
    "stubborn": [
        PARAMETERS,
        OPEN,
        f"import signal\nimport time\n\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{SAY_READY}\ntime.sleep(60)",
        FINISH,
    ],
    "leaves_processes": [
        PARAMETERS + "\ndie: bool = False  # whether the kernel dies after it",
        OPEN,
        "import os\nimport subprocess\n\n"
        'child = subprocess.Popen(["sleep", "300"], start_new_session=True)\n'
        '(stage.path / "pid").write_text(str(child.pid))',
        "if die:\n    os._exit(3)",
        FINISH,
    ],
    "no_meta": [PARAMETERS, OPEN, 'print("done")'],
    "no_parameters": [PARAMETERS, OPEN, FINISH],
    "two_parameters": [PARAMETERS, "again: int = 1", OPEN, FINISH],
    "not_a_literal": [PARAMETERS + "\nhalf: float = 3 / 2", OPEN, FINISH],
    "without_output": ['profile: str = "smoke"  # profile', "print(profile)"],
}
TAGGED = {"no_parameters": 0, "two_parameters": 2}


def notebook(name: str, tagged: Optional[int] = None) -> nbformat.NotebookNode:
    """The fixture ``name``; its first ``tagged`` code cells carry the tag ``parameters``."""
    tagged = TAGGED.get(name, 1) if tagged is None else tagged
    cells = [v4.new_markdown_cell(f"# {name.replace('_', ' ')}", id="title")]
    for number, source in enumerate(CODE[name]):
        metadata = {"tags": ["parameters"]} if number < tagged else {}
        cells.append(v4.new_code_cell(source, metadata=metadata, id=f"cell-{number}"))
    kernelspec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    node = v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec, "language_info": {"name": "python"}})
    node.nbformat_minor = 5
    return node


if __name__ == "__main__":
    for each in CODE:
        nbformat.write(notebook(each), str(HERE / f"{each}.ipynb"))
