"""The doctor: numbered checks of this machine, [OK] [FAIL] [WARN] [SKIP] with a reason each, in one report."""

from qwenlib.doctor.context import Context
from qwenlib.doctor.report import FAIL, OK, SKIP, WARN, Finding, Report
from qwenlib.doctor.run import CHECKS, diagnose

__all__ = ["CHECKS", "FAIL", "OK", "SKIP", "WARN", "Context", "Finding", "Report", "diagnose"]
