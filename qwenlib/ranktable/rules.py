"""What a rank table must obey: the checks of HCCL's parser (1-22), and more that HCCL leaves to fail later (23-35).

Sources: HCCL user guide (CANN 8.0.RC3, training series) and parser messages; MindFormers hccl_tools.py for the 910A
group rule. ``hccl`` is the text HCCL would have shown, ``code`` its error code ("" where HCCL says nothing at all).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

FAIL, WARN, NOT_CHECKED, OK = "FAIL", "WARN", "not checked", "OK"


@dataclass(frozen=True)
class Rule:
    """One rule and what HCCL says when it is broken."""

    number: int
    title: str
    hccl: str = ""
    code: str = ""


@dataclass(frozen=True)
class Problem:
    """One broken rule: where (JSON path), what was found and what to do."""

    level: str
    path: str
    rule: int
    message: str
    said: Optional[str] = None
    """HCCL's text when it is not the rule's usual one ("": HCCL says nothing about this)."""

    @property
    def hccl(self) -> str:
        """What HCCL would have said: nothing about what is a warning only."""
        usual = RULES[self.rule].hccl if self.said is None else self.said
        return usual if self.level == FAIL else ""

    @property
    def code(self) -> str:
        """HCCL's error code for it ("" where HCCL says nothing)."""
        return RULES[self.rule].code if self.hccl else ""

    def text(self) -> str:
        """One line for people."""
        hccl = f" [HCCL {self.code}: {self.hccl}]" if self.hccl else ""
        title = RULES[self.rule].title
        return f"{self.level} {self.path or '(file)'}: {self.message} (rule {self.rule}: {title}){hccl}"

    def brief(self) -> str:
        """For a message that tells several."""
        code = self.code
        return f"{self.path or '(file)'}: {self.message} (rule {self.rule}{f'; HCCL {code}' if code else ''})"

    def to_dict(self) -> Dict[str, object]:
        """For ``--json``."""
        return {
            "level": self.level,
            "path": self.path,
            "rule": self.rule,
            "title": RULES[self.rule].title,
            "message": self.message,
            "hccl_text": self.hccl,
            "hccl_code": self.code,
        }


MOST = 80
"""Characters of a found value in a message."""

_RULES: List[Rule] = [
    Rule(1, "the file name ends with .json", "path is not a valid .json file", "internal error"),
    Rule(2, "the file exists and can be read", "path is not a valid real path", "EI0004"),
    Rule(3, "the file is whole JSON, without comments", "Invalid ranktable format.", "EI0004"),
    Rule(4, "status is completed", "Load ranktable file timeout (after 1800 s)", "timeout"),
    Rule(5, "every value is a JSON text", "json object property value of Name is not string!", "parameter error"),
    Rule(6, "server_count equals the length of server_list", "The 'server_count' in ranktable is invalid.", "EI0004"),
    Rule(7, "server_list is not empty", "the 'server_list' in the ranktable is empty", "EI0004"),
    Rule(8, "server_id is set, unique and not too long", "The serverId is used repeatedly.", "EI0004"),
    Rule(9, "every server has cards", "deviceList size is zero", "parameter error"),
    Rule(10, "device_id is a number from 0 to 7", "device_id more than 7 is invalid", "parameter error"),
    Rule(11, "device_ip is an address", "The ip in ranktable is not a valid ip address", "EI0004"),
    Rule(12, "device_ip is unique", "The IP is used repeatedly.", "EI0004"),
    Rule(13, "device_ip is set", "'device_ip' is not set correctly,must be set when multi Server", "EI0004/EI0014"),
    Rule(
        14, "all cards have the same number of addresses", "device size neq first device size error", "parameter error"
    ),
    Rule(15, "rank_id is a number", "The rankid in ranktable is invalid. Please check ranktable", "EI0004"),
    Rule(16, "the variable RANK_ID is a number", "The rank_id must be an digit.", "EI0004"),
    Rule(
        17,
        "RANK_ID lies below the number of ranks",
        "Use a rank ID that exceeds the rank size in the ranktable.",
        "EI0004",
    ),
    Rule(
        18,
        "rank ids are 0 to N-1, each once",
        "The 'rank_id' in the ranktable must start from 0 or it is used repeatedly",
        "EI0004",
    ),
    Rule(
        19,
        "each process opens the card its rank has in the table",
        "The ranktable config devId is inconsistent with the local devId.",
        "EI0004",
    ),
    Rule(
        20,
        "1, 2, 4 or 8 cards a server, the same on all",
        "device / server is invalid (CheckAverageDev)",
        "parameter error",
    ),
    Rule(21, "super pods are consistent (v1.2 only)", "superDeviceId in superPod is already exist", "EI0004/EI0014"),
    Rule(
        22,
        "device_ip is the address the card really has",
        "the IP address in the ranktable is inconsistent with the IP address of the network adapter",
        "EJ0004",
    ),
    Rule(
        23,
        "device_id is unique on its server",
        "The ranktable config devId is inconsistent with the local devId.",
        "EI0004, raised late by one rank only",
    ),
    Rule(24, "ranks equal data_parallel x model_parallel x pipeline_stage of the profile"),
    Rule(25, "this host is one server of the table"),
    Rule(26, "the cards of this server are device nodes here", "invalid device", "EE1001"),
    Rule(27, "device_ip agrees with hccn_tool or /etc/hccn.conf", "ra rdev init failed, ret [-17]", "EJ0004"),
    Rule(28, "2 or 4 cards of a 910A server lie in one group, 0-3 or 4-7"),
    Rule(29, "cards i and i+4, and equal cards of all servers, share a NIC plane"),
    Rule(30, "rank ids of different servers do not interleave"),
    Rule(31, "counts and names of the v0 table agree with its lists"),
    Rule(32, 'version is "1.0"', "the file is taken for a group_list table and fails", "EI0004"),
    Rule(33, "the format is v1.0 or v0, lists and objects where it has them", "Invalid ranktable format.", "EI0004"),
    Rule(34, "the table is in the v1.0 format, which MindFormers' launchers take"),
    Rule(35, "no host_ip, which moves HCCL from the cards' ports to the host's"),
]

RULES: Dict[int, Rule] = {rule.number: rule for rule in _RULES}


def shown(value: object) -> str:
    """A value found in a file, for a message: quoted, and cut where nobody reads on."""
    text = repr(value if isinstance(value, str) else str(value))
    return text if len(text) <= MOST else f"{text[:MOST]}… ({len(text) - 2} characters)"


def ranges(numbers: Sequence[int]) -> str:
    """``4, 6-9, 12`` of ``[4, 6, 7, 8, 9, 12]``."""
    runs: List[List[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def brief(problems: Sequence[Problem], most: int = 12) -> str:
    """Several problems in one paragraph, ``most`` of them at most; ``qwenlib ranktable check`` tells all."""
    told = "; ".join(item.brief() for item in problems[:most])
    return told + (f"; and {len(problems) - most} more" if len(problems) > most else "")
