"""No YAML key may be ignored: each is compared with what the class that receives it really takes."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, Dict, List, Set

from qwenlib.errors import Refused

_IN_MODEL_CONFIG = {"type", "pet_config", "checkpoint_name_or_path"}
_POPPED_BY_TRAINER = {"lr_schedule": {"warmup_ratio", "warmup_epochs", "total_steps"}}


def check_keys(config: Dict[str, Any]) -> None:
    """Compare the keys of the built parts of a MindFormers configuration with their classes' parameters.

    MindFormers' ``LlamaConfig`` takes ``**kwargs`` and says nothing of a key that nobody reads; so do others.

    Raises:
        Refused: every key that would be ignored, with the nearest name that exists.
    """
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    problems: List[str] = []
    model_config = config["model"]["model_config"]
    _compare("model.model_config", model_config, _takes_of("config", model_config["type"]) | _IN_MODEL_CONFIG, problems)
    if model_config.get("pet_config"):
        from mindformers.pet.pet_config import LoraConfig

        _compare(
            "model.model_config.pet_config", model_config["pet_config"], _takes(LoraConfig) | {"pet_type"}, problems
        )
    for section, kind in (("optimizer", MindFormerModuleType.OPTIMIZER), ("lr_schedule", MindFormerModuleType.LR)):
        part = config.get(section)
        if part:
            takes = _takes(MindFormerRegister.get_cls(kind, part["type"]))
            _compare(section, part, takes | {"type"} | _POPPED_BY_TRAINER.get(section, set()), problems)
    for place, callback in enumerate(config.get("callbacks") or []):
        takes = _takes(MindFormerRegister.get_cls(MindFormerModuleType.CALLBACK, callback["type"]))
        _compare(f"callbacks[{place}]", callback, takes | {"type"}, problems)
    if problems:
        raise Refused("MindFormers would ignore " + "; ".join(problems) + ".")


def _takes_of(kind: str, name: str) -> Set[str]:
    from mindformers.tools.register import MindFormerRegister

    return _takes(MindFormerRegister.get_cls(kind, name))


def _takes(thing: Any) -> Set[str]:
    """Names of the parameters of a class's constructor, its MindFormers/MindSpore ancestors included."""
    found: Set[str] = set()
    for kind in inspect.getmro(thing):
        if kind is object or "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(inspect.unwrap(vars(kind)["__init__"])).parameters.values()
        found |= {item.name for item in parameters if item.kind is not item.VAR_KEYWORD}
        if not any(item.kind is item.VAR_KEYWORD for item in parameters):
            break
    return found - {"self"}


def _compare(where: str, given: Dict[str, Any], takes: Set[str], problems: List[str]) -> None:
    for key in given:
        if key not in takes:
            near = difflib.get_close_matches(key, takes, 1)
            problems.append(f"{where}.{key}" + (f" (did you mean {near[0]}?)" if near else ""))
