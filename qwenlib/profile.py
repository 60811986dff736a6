"""Profiles: what a run is made of, as frozen dataclasses read from short YAML files.

The defaults below are upstream's values for Qwen1.5-7B on Ascend 910A (MindFormers r1.0.a,
``research/qwen1_5/run_qwen1_5_7b_*.yaml``); a shipped profile says only what differs. Names are MindFormers'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union, get_args, get_origin, get_type_hints

from qwenlib.errors import Refused

PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Model:
    """Sizes and number types of a Qwen1.5 network (MindFormers ``model.model_config``)."""

    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    n_kv_heads: Optional[int] = None
    """Key/value heads; None: as many as ``num_heads``."""
    vocab_size: int = 151936
    intermediate_size: int = 11008
    rms_norm_eps: float = 1e-6
    theta: float = 1000000.0
    """Rotary base (Hugging Face ``rope_theta``)."""
    max_position_embedding: int = 32768
    param_init_type: str = "float16"
    compute_dtype: str = "float16"
    layernorm_compute_type: str = "float32"
    softmax_compute_type: str = "float16"
    rotary_dtype: str = "float16"
    use_flash_attention: bool = True
    """Training only; on 910A it needs acctransformer."""


@dataclass(frozen=True)
class Data:
    """How records become rows."""

    seq_length: int = 2048
    """Tokens the network sees; a row of the MindRecord is one longer."""
    labels: str = "all"
    """``all``: learn every token but padding, as upstream; ``assistant``: learn the answers only."""
    pack: bool = False
    """Put several conversations into a row; attention (MindFormers 1.0) still sees the row's earlier ones."""
    too_long: str = "truncate"
    """Conversations longer than a row: ``truncate`` (as upstream), ``drop`` or ``split`` over several rows."""
    hold_out: int = 0
    """Conversations that are kept out of training, to measure the trained models with."""


@dataclass(frozen=True)
class Parallel:
    """MindFormers ``parallel_config``; ranks = data_parallel x model_parallel x pipeline_stage."""

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    micro_batch_num: int = 1
    vocab_emb_dp: bool = True
    gradient_aggregation_group: int = 4

    @property
    def ranks(self) -> int:
        """How many ranks the plan needs."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage


@dataclass(frozen=True)
class Adapter:
    """LoRA (MindFormers ``pet_config``)."""

    lora_rank: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    target_modules: str = ".*wq|.*wk|.*wv|.*wo|.*w1|.*w2|.*w3"
    train_lm_head: bool = False
    """True is upstream's: its freeze pattern leaves the whole lm_head trainable, 622 M parameters on the 7B beside the
    adapter's 160 M. The adapter alone then no longer holds what was learned."""


@dataclass(frozen=True)
class Task:
    """One training task of a profile."""

    epochs: int = 5
    batch_size: int = 1
    """Rows per data_parallel slice and step."""
    learning_rate: float = 8e-4
    lr_end: float = 3e-5
    warmup_ratio: float = 0.01
    weight_decay: float = 0.1
    parallel: Parallel = field(default_factory=Parallel)
    adapter: Optional[Adapter] = None
    """LoRA settings; None trains all parameters."""
    sink_mode: bool = True
    sink_size: int = 2
    save_checkpoint_steps: int = 10000
    keep_checkpoint_max: int = 3
    loss_scale_value: int = 65536
    scale_window: int = 1000
    recompute: bool = False
    """Compute the activations of a layer again in the backward pass instead of keeping them."""


@dataclass(frozen=True)
class Predict:
    """Generation."""

    max_new_tokens: int = 512
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    """Of sampling; below 1 sharper, above 1 more varied."""
    top_k: int = 0
    top_p: float = 0.8
    model_parallel: int = 1
    """Cards that hold a network together. One 910A (32 GB) holds a 7B in float16."""


@dataclass(frozen=True)
class Profile:
    """A named set of everything above."""

    name: str = ""
    device_target: str = "Ascend"
    seed: int = 0
    max_device_memory: str = "31GB"
    num_parallel_workers: int = 8
    remote_save_url: str = ""
    """obs://… for auto_trans_ckpt in MindFormers' ModelArts mode; elsewhere nobody reads it."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    lora: Optional[Task] = None
    finetune: Optional[Task] = None
    predict: Optional[Predict] = None

    def task(self, name: str) -> Task:
        """The training task ``lora`` or ``finetune``.

        Raises:
            Refused: the profile has no such part.
        """
        found = getattr(self, name, None) if name in ("lora", "finetune") else None
        if not isinstance(found, Task):
            have = ", ".join(self.tasks()) or "none"
            raise Refused(f"profile {self.name} has no training task {name!r}; it has: {have}.")
        return found

    def tasks(self) -> List[str]:
        """Names of the training tasks this profile has."""
        return [name for name in ("lora", "finetune") if getattr(self, name) is not None]


def names() -> List[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(name: Union[str, Path], overrides: Sequence[str] = (), checked: bool = True) -> Profile:
    """Read a shipped profile by name, or a YAML file by path, and apply ``overrides`` (``lora.epochs=3``).

    ``checked`` False leaves :func:`check` to the caller, who has more to tell at the same time.

    Raises:
        Refused: no such profile, a key that does not exist, a value of the wrong type, or values that do not
            go together; every problem is told at once.
    """
    import yaml

    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(str(name), names(), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Refused(f"there is no profile {str(name)!r}.{hint} Shipped: {', '.join(names())}; or give a .yaml file.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that is none
        raise Refused(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise Refused(f"{path} must hold a mapping, found {type(tree).__name__}.")
    problems: List[str] = []
    for override in overrides:
        _override(tree, override, problems)
    profile = _build(Profile, {"name": path.stem, **tree}, "", problems)
    if checked:
        problems += check(profile)
    if problems:
        raise Refused(f"profile {path}: " + "; ".join(problems) + ".")
    return profile


def check(profile: Profile) -> List[str]:
    """Every way in which the values of a profile do not go together, as sentences (empty: none)."""
    from qwenlib import profile_rules

    return profile_rules.problems(profile)


def to_dict(profile: Profile) -> Dict[str, Any]:
    """The whole profile, defaults included, as plain values."""
    return dataclasses.asdict(profile)


def overrides(task: str, settings: Sequence[str] = (), **values: Any) -> List[str]:
    """Overrides from a notebook's parameters: ``values`` that are 0, "" or None leave the profile's alone.

    ``overrides("lora", ["seed=1"], epochs=3, batch_size=0)`` gives ``["lora.epochs=3", "seed=1"]``; what ``settings``
    say comes last and wins.

    Raises:
        Refused: ``settings`` is no list of texts (papermill's -p gives one text, its -y a list).
    """
    if not isinstance(settings, (list, tuple)) or not all(isinstance(text, str) for text in settings):
        raise Refused(f'settings must be a list of texts such as ["{task}.epochs=3"], found {settings!r}.')
    given = [f"{task}.{key}={value}" for key, value in values.items() if value]
    return given + list(settings)


def rows(profile: Profile, task: str) -> List[Tuple[str, Any]]:
    """``(setting, value)`` of a training task with what it stands on, for a table."""
    found: List[Tuple[str, Any]] = [
        ("profile", profile.name),
        ("device_target", profile.device_target),
        ("seq_length", profile.data.seq_length),
        ("labels", profile.data.labels),
    ]
    for key, value in dataclasses.asdict(profile.task(task)).items():
        if isinstance(value, dict):
            found += [(f"{key}.{name}", item) for name, item in value.items()]
        elif value is not None:
            found.append((key, value))
    return found


def _override(tree: Dict[str, Any], text: str, problems: List[str]) -> None:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        problems.append(f"an override must read key=value, found {text!r}")
        return
    *parents, last = key.strip().split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    try:
        tree[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        tree[last] = value


def _build(kind: Any, values: Dict[str, Any], where: str, problems: List[str]) -> Any:
    """An instance of dataclass ``kind``; problems (unknown keys, wrong types) are collected, not raised.

    What has a problem keeps its default, so that the rest can be checked too and all be told at once.
    """
    hints = get_type_hints(kind)
    taken: Dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = " or ".join(_nearest(f"{where}{key}"))
            problems.append(f"unknown key {where}{key}" + (f" (did you mean {near}?)" if near else ""))
            continue
        inner, optional = _unwrap(hints[key])
        if dataclasses.is_dataclass(inner) and isinstance(value, dict):
            taken[key] = _build(inner, value, f"{where}{key}.", problems)
        elif dataclasses.is_dataclass(inner) and not (optional and value is None):
            problems.append(f"{where}{key} must be a mapping, found {value!r}")
        else:
            before = len(problems)
            value = _typed(inner, optional, value, f"{where}{key}", problems)
            if len(problems) == before:
                taken[key] = value
    return kind(**taken)


def _nearest(key: str) -> List[str]:
    """Keys that exist and may have been meant: the same last word elsewhere, else the most alike (at most two)."""
    every = list(_keys(Profile))
    last = key.lower().split(".")[-1]
    same = [name for name in every if name.lower().split(".")[-1] == last]
    alike = difflib.get_close_matches(key, every, 1) or [
        name
        for word in difflib.get_close_matches(last, {name.split(".")[-1] for name in every}, 1)
        for name in every
        if name.split(".")[-1] == word
    ]
    return (difflib.get_close_matches(key, same, 2, 0.0) or alike)[:2]


def _keys(kind: Any, where: str = "") -> Iterator[str]:
    for key, hint in get_type_hints(kind).items():
        inner, _ = _unwrap(hint)
        yield f"{where}{key}"
        if dataclasses.is_dataclass(inner):
            yield from _keys(inner, f"{where}{key}.")


def _typed(kind: Any, optional: bool, value: Any, where: str, problems: List[str]) -> Any:
    if value is None and optional:
        return None
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML reads 8e-4 as a text
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        problems.append(f"{where} must be {kind.__name__}, found {value!r}")
    return value


def _unwrap(hint: Any) -> Tuple[Any, bool]:
    if get_origin(hint) is Union:
        inner = [part for part in get_args(hint) if part is not type(None)]
        return inner[0], True
    return hint, False
