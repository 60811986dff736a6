"""What MindSpore 2.7 / MindFormers 1.0.2 need so that the code of the 910A runs on a CPU.

:func:`apply_cpu_patches` must be called before ``import mindformers``. Nothing here is touched for Ascend: the
rank entry imports this module only when the profile's ``device_target`` is CPU.

Each patch first looks at its target. A target that is not as it was when the patch was written raises
:class:`~qwenlib.errors.WorkFailed` with the patch's name: a patch must never go astray in silence.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Callable, Dict, List, Tuple

from qwenlib.errors import WorkFailed

Patch = Callable[[], None]
_PATCHES: List[Tuple[str, Patch]] = []
_DONE: Dict[str, str] = {}


def _patch(reason: str) -> Callable[[Patch], Patch]:
    def register(function: Patch) -> Patch:
        _PATCHES.append((reason, function))
        return function

    return register


def patches() -> List[Tuple[str, str]]:
    """``(name, reason)`` of every patch, in the order in which they are applied."""
    return [(function.__name__.lstrip("_"), reason) for reason, function in _PATCHES]


def apply_cpu_patches() -> Dict[str, str]:
    """Apply every patch once; returns ``{name: reason}`` of what has been applied in this process.

    Raises:
        WorkFailed: mindformers was imported earlier, or a patch's target has changed.
    """
    if not _DONE and "mindformers" in sys.modules:
        raise WorkFailed("the CPU patches must be applied before `import mindformers`; it is imported already.")
    for reason, function in _PATCHES:
        name = function.__name__.lstrip("_")
        if name not in _DONE:
            function()
            _DONE[name] = reason
    return dict(_DONE)


def _target(owner: Any, name: str, patch: str) -> Any:
    found = getattr(owner, name, None)
    if found is None:
        import mindspore

        raise WorkFailed(
            f"CPU patch {patch}: {getattr(owner, '__name__', owner)}.{name} is gone in MindSpore "
            f"{mindspore.__version__}. The patch was written for MindSpore 2.7.0; install that, or adapt "
            "qwenlib/engine/compat.py."
        )
    return found


@_patch("MindFormers asks for the Ascend SoC to choose kernels; 'ascend910' selects the plain ones that 910A uses too")
def _answer_soc_version() -> None:
    from mindspore._c_expression import MSContext

    _target(MSContext, "get_ascend_soc_version", "answer_soc_version")
    os.environ.setdefault("ASCEND_CHIP_TYPE", "910a")
    MSContext.get_ascend_soc_version = lambda self: "ascend910"


@_patch("MindFormers and MindPet call Cell.cast, which MindSpore 2.7 no longer has")
def _give_cells_a_cast() -> None:
    from mindspore import nn, ops

    _target(nn, "Cell", "give_cells_a_cast")
    if not hasattr(nn.Cell, "cast"):
        nn.Cell.cast = ops.Cast()


@_patch("MindPet's LoRA layer calls nn.layer.basic.check_dense_input_shape, which MindSpore 2.7 no longer has")
def _check_dense_input_shape() -> None:
    from mindspore import nn
    from mindspore.ops.primitive import constexpr

    basic = _target(nn.layer, "basic", "check_dense_input_shape")
    if hasattr(basic, "check_dense_input_shape"):
        return

    @constexpr
    def check_dense_input_shape(shape: Tuple[int, ...], name: str = "") -> None:
        if len(shape) < 2:
            raise ValueError(f"For '{name}', the input must have at least 2 dimensions, but its shape is {shape}.")

    basic.check_dense_input_shape = check_dense_input_shape


@_patch("the NPU's overflow flags and FloatStatus have no CPU kernel; gradients are tested with IsFinite instead")
def _check_overflow_by_is_finite() -> None:
    from mindspore import nn, ops
    from mindspore.common import dtype as mstype

    cell = _target(nn, "TrainOneStepWithLossScaleCell", "check_overflow_by_is_finite")
    for method in ("start_overflow_check", "get_overflow_status", "_get_distributed_overflow_status_on_infnan_mode"):
        _target(cell, method, "check_overflow_by_is_finite")

    not_finite = ops.MultitypeFuncGraph("qwenlib_not_finite")
    is_finite, cast, reduce_sum = ops.IsFinite(), ops.Cast(), ops.ReduceSum()

    @not_finite.register("Tensor")
    def _count_not_finite(gradient: Any) -> Any:
        return reduce_sum(1 - cast(is_finite(gradient), mstype.float32))

    def start_overflow_check(self: Any, pre_cond: Any, compute_input: Any) -> Any:
        return pre_cond, compute_input

    def get_overflow_status(self: Any, status: Any, compute_output: Any) -> Any:
        return self._get_distributed_overflow_status_on_infnan_mode(not_finite, compute_output)

    cell.start_overflow_check = start_overflow_check
    cell.get_overflow_status = get_overflow_status
