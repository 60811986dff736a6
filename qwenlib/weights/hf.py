"""A Qwen1.5 folder as Hugging Face ships it: what must be there, and where each tensor lies."""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json
from qwenlib.profile import Model
from qwenlib.weights.names import Entry, entries

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SIZES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "vocab_size": "vocab_size",
    "intermediate_size": "intermediate_size",
}


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

    def model(self, base: Model) -> Model:
        """``base`` (its number types) with this folder's sizes."""
        return dataclasses.replace(base, **self.sizes)


def read_folder(folder: Union[str, Path]) -> Folder:
    """Check a Hugging Face Qwen1.5 folder without loading a tensor.

    Raises:
        Refused: no folder, no config.json, another architecture, no weights, missing shards, or tensors that
            are missing, unknown or misshapen (all of them named at once).
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Refused(f"there is no weights folder {folder}. Give the folder that holds config.json.")
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise Refused(f"{folder} has no config.json (it holds: {held}). Download the whole Qwen1.5 folder.")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "qwen2":
        kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise Refused(
            f"{folder}/config.json: model_type is {kind!r}; only Qwen1.5 (model_type 'qwen2') can be converted."
        )
    sizes = _sizes(folder, config)
    where, total = _locate(folder)
    tied = bool(config.get("tie_word_embeddings")) and "lm_head.weight" not in where
    _check_tensors(folder, entries(Model(**sizes)), where, tied)
    return Folder(folder, sizes, tied, where, total)


def _sizes(folder: Path, config: Dict[str, Any]) -> Dict[str, Any]:
    problems = [key for key in _SIZES if not isinstance(config.get(key), int) or config[key] < 1]
    if problems:
        raise Refused(f"{folder}/config.json: {', '.join(problems)} must be positive integers; the file is not whole.")
    sizes: Dict[str, Any] = {ours: config[theirs] for theirs, ours in _SIZES.items()}
    heads = config.get("num_key_value_heads")
    sizes["n_kv_heads"] = heads if heads and heads != sizes["num_heads"] else None
    sizes["rms_norm_eps"] = float(config.get("rms_norm_eps", 1e-6))
    sizes["theta"] = float(config.get("rope_theta", 1000000.0))
    sizes["max_position_embedding"] = int(config.get("max_position_embeddings", 32768))
    return sizes


def _locate(folder: Path) -> Tuple[Dict[str, Path], int]:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            raise Refused(f"{folder / INDEX} has no 'weight_map'; download it again.")
        where = {name: folder / file for name, file in weight_map.items()}
        missing = sorted({path.name for path in where.values() if not path.is_file()})
        if missing:
            raise Refused(
                f"{folder} lacks {len(missing)} of the {len(set(where.values()))} weight files that {INDEX} names: "
                f"{', '.join(missing)}. Download them."
            )
    elif (folder / SINGLE).is_file():
        where = dict.fromkeys(header(folder / SINGLE), folder / SINGLE)
    elif list(folder.glob("pytorch_model*.bin")):
        raise Refused(
            f"{folder} holds pytorch_model*.bin files; this version reads safetensors only. "
            "Save it once with transformers' save_pretrained(safe_serialization=True)."
        )
    else:
        raise Refused(f"{folder} holds no {SINGLE} and no {INDEX}. Download the whole Qwen1.5 folder.")
    return where, sum(path.stat().st_size for path in set(where.values()))


def header(path: Path) -> Dict[str, Any]:
    """The tensor table of a safetensors file: ``{name: {"dtype", "shape", "data_offsets"}}``.

    Raises:
        Refused: the file is truncated or is no safetensors file.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        raw = stream.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
        if not 2 <= length <= size - 8:
            raise Refused(f"{path} is not a whole safetensors file ({size} bytes). Download it again.")
        try:
            table = json.loads(stream.read(length))
        except ValueError:
            raise Refused(f"{path} is not a safetensors file: its header is not JSON. Download it again.") from None
    table.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    if size < 8 + length + end:
        raise Refused(f"{path} is cut off: {size} bytes, {8 + length + end} expected. Download it again.")
    return dict(table)


def _check_tensors(folder: Path, wanted: List[Entry], where: Dict[str, Path], tied: bool) -> None:
    shapes: Dict[str, Tuple[int, ...]] = {}
    for path in sorted(set(where.values())):
        shapes.update({name: tuple(entry["shape"]) for name, entry in header(path).items()})
    problems = []
    for entry in wanted:
        if entry.hf == "lm_head.weight" and tied:
            continue
        if entry.hf not in where or entry.hf not in shapes:
            problems.append(f"{entry.hf} is missing")
        elif shapes[entry.hf] != entry.shape:
            problems.append(f"{entry.hf} is {list(shapes[entry.hf])}, config.json asks for {list(entry.shape)}")
    known = {entry.hf for entry in wanted}
    problems += [
        f"{name} is unknown" for name in sorted(set(shapes) - known) if not name.endswith("rotary_emb.inv_freq")
    ]
    if problems:
        more = f" and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise Refused(f"{folder}: " + "; ".join(problems[:12]) + more + ".")
