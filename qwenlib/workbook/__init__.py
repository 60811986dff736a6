"""Runs the stage notebooks through papermill, strictly, and keeps the record that papermill does not keep.

from qwenlib import workbook
content = workbook.run("smoke", "runs/smoke", {"04_lora": {"epochs": 3}}, resume=True)
content["stages"]["04_lora"]["metrics"]
"""

from qwenlib.workbook.runner import run

__all__ = ["run"]
