"""The rooms of 01_env load nothing heavy."""

import subprocess
import sys
from pathlib import Path

ROOMS = ("ranktable.layout", "ranktable.show", "modelarts", "ascend", "doctor", "cli.doctor", "cli.ranktable")


def test_nothing_heavy_is_imported():
    code = (
        "import importlib, sys\n"
        f"[importlib.import_module('qwenlib.' + name) for name in {ROOMS}]\n"
        "heavy = {'mindspore', 'mindformers', 'torch', 'transformers', 'matplotlib', 'pandas', 'IPython'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
