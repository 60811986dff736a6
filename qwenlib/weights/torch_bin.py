"""``pytorch_model*.bin``: where each tensor's bytes lie in torch's zip file, without loading one.

torch itself reads the pickle, with ``weights_only=True`` (nothing but tensors can be built) and in its fake mode (no
memory is taken); it then knows each storage's offset in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from qwenlib.errors import Refused
from qwenlib.weights.kinds import KINDS
from qwenlib.weights.tensors import Part, Tensor, whole


def read_table(path: Path) -> Dict[str, Tensor]:
    """Every tensor of a .bin file by name.

    Raises:
        Refused: torch is not installed; the pickle wants to build more than tensors; the file is cut off, is older
            than torch 1.6's format, or holds tensors that are not stored row by row.
    """
    try:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        raise Refused(
            f"{path} is a torch file, and torch is not installed here. Install qwenlib[torch], or download the "
            "safetensors files of the same model."
        ) from None
    import pickle

    try:
        with FakeTensorMode():
            found = torch.load(str(path), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise Refused(
            f"{path} holds more than tensors and was not opened ({_first_line(error)}). Such a file can run programs; "
            "download the safetensors files of the same model."
        ) from None
    except Exception as error:
        raise Refused(f"{path} is not a whole torch file ({_first_line(error)}). Download it again.") from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise Refused(f"{path} is no state dict: it must map names to tensors.")
    size = path.stat().st_size
    tensors = {}
    for name, tensor in found.items():
        kind = str(tensor.dtype).replace("torch.", "")
        offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if offset is None:
            raise Refused(f"{path} has the format of torch before 1.6. Load and save it once with a newer torch.")
        if kind not in KINDS:
            raise Refused(f"{path}: {name} has the number type {kind}, which is not known here.")
        if not tensor.is_contiguous():
            raise Refused(f"{path}: {name} is not stored row by row; save it once with save_pretrained.")
        shape = tuple(tensor.shape)
        begin = offset + tensor.storage_offset() * KINDS[kind].width
        length = tensor.numel() * KINDS[kind].width
        if begin + length > size:
            raise Refused(f"{path} is cut off: {name} ends at byte {begin + length} of {size}. Download it again.")
        tensors[str(name)] = Tensor(str(name), kind, shape, (Part(path, ((begin, length),), whole(shape)),))
    return tensors


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")
    return told[:160].rstrip(". ") or type(error).__name__
