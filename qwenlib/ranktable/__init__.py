"""HCCL rank tables: find, wait for, read (v1.0 and v0), check, generate, merge, cut, and "which server am I".

The room imports neither mindspore nor mindformers nor torch. Sources of the rules: the HCCL user guide and parser,
MindFormers' hccl_tools.py and merge_hccl.py, Huawei's ModelArts launcher; see ``rules.py``.
"""

from qwenlib.ranktable.check import CheckReport, check
from qwenlib.ranktable.find import Found, find
from qwenlib.ranktable.generate import generate, write_table
from qwenlib.ranktable.merge import merge, merge_files
from qwenlib.ranktable.model import Device, RankTable, Server
from qwenlib.ranktable.parse import load, parse
from qwenlib.ranktable.rules import RULES, Problem
from qwenlib.ranktable.subset import subset
from qwenlib.ranktable.wait import wait_for
from qwenlib.ranktable.whoami import SCRUB, Me, rank_environments, who_am_i

__all__ = [
    "RULES",
    "SCRUB",
    "CheckReport",
    "Device",
    "Found",
    "Me",
    "Problem",
    "RankTable",
    "Server",
    "check",
    "find",
    "generate",
    "load",
    "merge",
    "merge_files",
    "parse",
    "rank_environments",
    "subset",
    "wait_for",
    "who_am_i",
    "write_table",
]
