"""A fake ModelArts file system: device nodes, fake npu-smi and hccn_tool that print real output, version files."""

import json
import shutil
from pathlib import Path

SAMPLES = Path(__file__).parent / "env" / "samples"
RANKTABLE_SAMPLES = Path(__file__).parent / "ranktable" / "samples"
IDLE = "31842/ 32768", "0    / 32768"


def script(path, body):
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def idle_eight(text):
    """The 8-card sample with free cards and no processes."""
    head, _, _ = text.partition("| NPU     Chip              | Process id")
    rows = [f"| No running processes found in NPU {card:<62} |" for card in range(8)]
    return (
        head.replace(*IDLE)
        + "| NPU     Chip              | Process id    | Process name | Process memory(MB) |\n"
        + "\n".join(rows)
    )


def fake_root(folder, kind="eight", table="", notebook=True, cann="7.0.0", memory_gib=512):
    """Build a root in ``folder``.

    ``kind``: eight (free), busy or one; ``table``: a rank table sample under the notebook's name.
    """
    root = Path(folder) / "root"
    busy = (SAMPLES / "npu_smi_8x910PremiumA_busy.txt").read_text()
    one = (SAMPLES / "npu_smi_1x910A_npu3_idle.txt").read_text()
    text, cards = {"eight": (idle_eight(busy), range(8)), "busy": (busy, range(8)), "one": (one, [3])}[kind]
    printed = root / "npu-smi.txt"
    printed.parent.mkdir(parents=True)
    printed.write_text(text)
    script(root / "usr/local/bin/npu-smi", f'[ "$1" = info ] && exec /bin/cat "{printed}"')
    cases = "\n".join(
        f'{c}) echo "ipaddr:192.{c % 4 + 1}.27.{6 + c // 4}"; echo "netmask:255.255.0.0";;' for c in cards
    )
    script(root / "usr/local/Ascend/driver/tools/hccn_tool", f'case "$2" in\n{cases}\n*) exit 1;;\nesac')
    for name in ("davinci_manager", "devmm_svm", "hisi_hdc", *(f"davinci{card}" for card in cards)):
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev" / name).touch()
    shutil.copy(SAMPLES / "driver_version.info", root / "usr/local/Ascend/driver/version.info")
    toolkit = root / "usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info"
    toolkit.parent.mkdir(parents=True)
    toolkit.write_text((SAMPLES / "ascend_toolkit_install.info").read_text().replace("8.1.RC1", cann))
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 999999999 kB\nMemAvailable: {memory_gib * 2**20} kB\n")
    if notebook:
        (root / "home/ma-user/work").mkdir(parents=True)
        (root / "cache").mkdir()
    if table:
        config = root / "user/config"
        config.mkdir(parents=True)
        document = json.loads((RANKTABLE_SAMPLES / f"{table}.json").read_text())
        for server in document.get("server_list", []):
            server["server_id"] = server["server_id"].replace("xx.xx.xx.xx", "10.0.0.1")
        (config / "nbstart_hccl.json").write_text(json.dumps(document))
    return root
