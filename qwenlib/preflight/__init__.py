"""What can be known before anything is started: a profile against its data, weights, rank table and machine.

Every check is made even when an earlier one fails, so that all problems are told at once. What is not given (no rank
table, no data yet) is skipped and said to be.
"""

from qwenlib.preflight.answering import check_predict
from qwenlib.preflight.report import Inputs, Report
from qwenlib.preflight.training import ACCTRANSFORMER, check

__all__ = ["ACCTRANSFORMER", "Inputs", "Report", "check", "check_predict"]
