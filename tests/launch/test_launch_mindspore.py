"""The dynamic cluster for real: MindSpore on the CPU."""

from __future__ import annotations

import sys

import pytest

from qwenlib.launch import Plan, start

ALL_REDUCE = """
import mindspore as ms
from mindspore import ops
from mindspore.communication import get_group_size, get_rank, init

ms.set_context(device_target="CPU")
init()


class Sum(ms.nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


total = Sum()(ms.Tensor([float(10 ** get_rank())], ms.float32)).asnumpy()[0]
print("sum over", get_group_size(), "ranks:", total, flush=True)
"""


@pytest.mark.stack
def test_two_mindspore_workers_add_up(tmp_path):
    pytest.importorskip("mindspore")
    (tmp_path / "add.py").write_text(ALL_REDUCE)
    plan = Plan([sys.executable, str(tmp_path / "add.py")], 2, tmp_path / "run", "dynamic_cluster")
    with start(plan) as run:
        status = run.wait(timeout=180)
    assert status["state"] == "done"
    assert (status["scheduler"]["exit_code"], status["scheduler"]["signal"]) == (0, None), "it ends by itself"
    for rank in (0, 1):
        assert "sum over 2 ranks: 11.0" in run.rank_log(rank).read_text()
