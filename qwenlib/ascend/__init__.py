"""Readers for what an Ascend host tells about itself: npu-smi, hccn_tool, hccn.conf, version files.

Nothing here imports mindspore, mindformers or torch. Every reader takes the file system root and the environment as
arguments, so that tests (and a look at another machine's copied tree) use the same code.
"""

from qwenlib.ascend.chips import Family, family
from qwenlib.ascend.devices import device_nodes, visible_devices
from qwenlib.ascend.hccn import device_ips, parse_hccn_conf, parse_ip
from qwenlib.ascend.npu_smi import Card, NpuInfo, Process, npu_info, parse_info, parse_keyed
from qwenlib.ascend.tools import ToolResult, run_tool, under
from qwenlib.ascend.versions import cann, driver, firmware

__all__ = [
    "Card",
    "Family",
    "NpuInfo",
    "Process",
    "ToolResult",
    "cann",
    "device_ips",
    "device_nodes",
    "driver",
    "family",
    "firmware",
    "npu_info",
    "parse_hccn_conf",
    "parse_info",
    "parse_ip",
    "parse_keyed",
    "run_tool",
    "under",
    "visible_devices",
]
