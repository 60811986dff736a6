"""A Qwen1.5 folder as Hugging Face ships it: what must be there, and where each tensor lies."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json
from qwenlib.profile import Model
from qwenlib.weights import torch_bin
from qwenlib.weights.kinds import BY_SAFETENSORS, FLOATS
from qwenlib.weights.names import Entry, entries
from qwenlib.weights.sizes import read_config, read_sizes
from qwenlib.weights.tensors import Part, Tensor, whole

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BIN_INDEX = "pytorch_model.bin.index.json"
BIN_SINGLE = "pytorch_model.bin"
SHOWN = 24
"""Problems told at once."""
HEADER = 100 * 10**6
"""Largest table of a safetensors file, as its own library has it."""


@dataclass(frozen=True)
class Folder:
    """A checked folder."""

    path: Path
    sizes: Dict[str, Any]
    """Fields of :class:`qwenlib.profile.Model` that config.json settles."""
    tied: bool
    """True when the lm_head is the embedding (0.5B) and is not stored on its own."""
    where: Dict[str, Path]
    """Hugging Face tensor name -> the safetensors file that holds it."""
    bytes: int
    """Size of all tensor files."""
    tensors: Dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Hugging Face tensor name -> where its bytes lie."""

    def model(self, base: Model) -> Model:
        """``base`` (its number types) with this folder's sizes."""
        return dataclasses.replace(base, **self.sizes)


def read_folder(folder: Union[str, Path]) -> Folder:
    """Check a Hugging Face Qwen1.5 folder without loading a tensor.

    Raises:
        Refused: no folder, no config.json, another architecture, no weights, missing shards, or tensors that
            are missing, unknown, misshapen or no floats (all of them named at once).
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Refused(f"there is no weights folder {folder}. Give the folder that holds config.json.")
    config = read_config(folder)
    sizes = read_sizes(folder, config)
    where, tensors = _locate(folder)
    tied = bool(config.get("tie_word_embeddings")) and "lm_head.weight" not in where
    _check_tensors(folder, entries(Model(**sizes)), where, tensors, tied)
    total = sum(path.stat().st_size for path in set(where.values()))
    return Folder(folder, sizes, tied, where, total, tensors)


def _locate(folder: Path) -> Tuple[Dict[str, Path], Dict[str, Tensor]]:
    """Which file holds which tensor, and all tensors of these files. safetensors are preferred to .bin files."""
    for index, single, read in ((INDEX, SINGLE, safetensors_table), (BIN_INDEX, BIN_SINGLE, torch_bin.read_table)):
        if (folder / index).is_file():
            where = _indexed(folder, index)
        elif (folder / single).is_file():
            tensors = read(folder / single)
            return dict.fromkeys(tensors, folder / single), tensors
        else:
            continue
        tensors = {}
        for path in sorted(set(where.values())):
            for name, tensor in read(path).items():
                if where.get(name, path) == path:
                    tensors[name] = tensor
        return where, tensors
    held = ", ".join(sorted(item.name for item in folder.iterdir())[:8])
    raise Refused(
        f"{folder} holds no {SINGLE}, no {INDEX} and no {BIN_SINGLE} (it holds: {held}). "
        "Download the whole Qwen1.5 folder."
    )


def _indexed(folder: Path, name: str) -> Dict[str, Path]:
    index = read_json(folder / name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise Refused(f"{folder / name} has no 'weight_map'; download it again.")
    wrong = [str(file) for file in weight_map.values() if not isinstance(file, str) or file != Path(file).name]
    if wrong:
        raise Refused(f"{folder / name} names {wrong[0]!r} as a weight file; only names of files beside it are right.")
    where = {key: folder / file for key, file in weight_map.items()}
    missing = sorted({path.name for path in where.values() if not path.is_file()})
    if missing:
        raise Refused(
            f"{folder} lacks {len(missing)} of the {len(set(where.values()))} weight files that {name} names: "
            f"{', '.join(missing)}. Download them."
        )
    return where


def safetensors_table(path: Path) -> Dict[str, Tensor]:
    """Where every tensor of a safetensors file lies.

    Raises:
        Refused: as :func:`header`, or an entry whose bytes do not fit its type and shape.
    """
    found = {}
    table, begin = header(path)
    for name, entry in table.items():
        kind = BY_SAFETENSORS.get(entry["dtype"])
        if kind is None:
            raise Refused(f"{path}: {name} has the number type {entry['dtype']!r}, which is not known here.")
        shape = tuple(entry["shape"])
        first, last = entry["data_offsets"]
        part = Part(path, ((begin + first, last - first),), whole(shape))
        found[name] = Tensor(name, kind, shape, (part,))
        if found[name].bytes != last - first:
            raise Refused(f"{path}: {name} has {last - first} bytes, {list(shape)} {kind} needs {found[name].bytes}.")
    return found


def header(path: Path) -> Tuple[Dict[str, Any], int]:
    """The tensor table of a safetensors file, ``{name: {"dtype", "shape", "data_offsets"}}``, and where it ends.

    Raises:
        Refused: the file cannot be read, is truncated or is no safetensors file.
    """
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, HEADER):
                raise Refused(f"{path} is not a whole safetensors file ({size} bytes). Download it again.")
            table = json.loads(stream.read(length))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise Refused(f"{path} is not a safetensors file: its header is not JSON. Download it again.") from None
    if not isinstance(table, dict):
        raise Refused(f"{path} is not a safetensors file: its header is no JSON object. Download it again.")
    table.pop("__metadata__", None)
    for name, entry in table.items():
        if not _is_entry(entry):
            raise Refused(f"{path}: the header's entry for {name} is damaged. Download it again.")
    end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    if size < 8 + length + end:
        raise Refused(f"{path} is cut off: {size} bytes, {8 + length + end} expected. Download it again.")
    return table, 8 + length


def _is_entry(entry: Any) -> bool:
    def counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)

    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    offsets: Any = entry.get("data_offsets")
    return counts(entry.get("shape")) and counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]


def _check_tensors(
    folder: Path, wanted: List[Entry], where: Dict[str, Path], tensors: Dict[str, Tensor], tied: bool
) -> None:
    problems = []
    for entry in wanted:
        found = tensors.get(entry.hf)
        if entry.hf == "lm_head.weight" and tied:
            continue
        if found is None:
            named = f" (the index says it is in {where[entry.hf].name})" if entry.hf in where else ""
            problems.append(f"{entry.hf} is missing{named}")
        elif found.shape != entry.shape:
            problems.append(f"{entry.hf} is {list(found.shape)}, config.json asks for {list(entry.shape)}")
        elif found.kind not in FLOATS:
            problems.append(f"{entry.hf} has the number type {found.kind}")
    known = {entry.hf for entry in wanted}
    extra = sorted((set(tensors) | set(where)) - known)
    problems += [f"{name} is unknown" for name in extra if not name.endswith("rotary_emb.inv_freq")]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise Refused(f"{folder}: " + "; ".join(problems[:SHOWN]) + more + ".")
