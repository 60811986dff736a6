"""Which model is asked: base, LoRA or fine-tuned of a workbook run, by the run's directory; or any checkpoint."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Union

from qwenlib import launch, workspace
from qwenlib import profile as profiles
from qwenlib.engine import serving, work
from qwenlib.errors import Refused
from qwenlib.files import read_json
from qwenlib.infer import prompt as prompts
from qwenlib.infer.prompt import Message, Seen
from qwenlib.infer.session import Session
from qwenlib.profile import Adapter, Model, Profile

TRAINED = {"lora": "04_lora", "finetune": "05_finetune"}
"""Which stage of a run hands over which tuned model."""
NAMES = ("base", *TRAINED)


@dataclass(frozen=True)
class Choice:
    """A model that can be loaded; nothing of it is looked at before :meth:`open`."""

    name: str
    profile: Profile
    checkpoint: Union[str, Path]
    vocab_file: Union[str, Path]
    merges_file: Union[str, Path]
    adapter_task: str = ""
    """"lora" when the checkpoint holds an adapter of that task's shape."""
    raw: bool = False
    """A base model: it continues text and knows no ChatML."""
    rank_table: Optional[Union[str, Path]] = None
    """Of the cards that share the network, when ``predict.model_parallel`` of the profile is above 1."""

    def sees(
        self, messages: Sequence[Message], *, raw: Optional[bool] = None, max_new_tokens: Optional[int] = None
    ) -> Seen:
        """The prompt that the model would be given, with its token count; the model is not loaded.

        Raises:
            Refused: the messages are no conversation that ends with a question.
        """
        files = (self.vocab_file, self.merges_file)
        return prompts.seen(self.profile, files, messages, self.raw if raw is None else raw, max_new_tokens)

    def open(self, run_dir: Union[str, Path], **more: Any) -> Session:
        """Load it in a background process that works in ``run_dir``; ``more``: further arguments of Session."""
        return Session(
            self.profile,
            load_checkpoint=self.checkpoint,
            vocab_file=self.vocab_file,
            merges_file=self.merges_file,
            run_dir=run_dir,
            adapter_task=self.adapter_task,
            name=self.name,
            raw=self.raw,
            rank_table=self.rank_table,
            **more,
        )

    def plan(self, run_dir: Union[str, Path]) -> launch.Plan:
        """What :meth:`open` would start; the job is written into ``run_dir``, nothing is started.

        Raises:
            Refused: as there.
        """
        return serving.serve_plan(
            self.profile,
            load_checkpoint=self.checkpoint,
            vocab_file=self.vocab_file,
            merges_file=self.merges_file,
            run_dir=run_dir,
            socket=Path(run_dir) / "engine",
            adapter_task=self.adapter_task,
            rank_table=self.rank_table,
        )


def of_run(run_dir: Union[str, Path], profile: str = "", settings: Sequence[str] = ()) -> Dict[str, Choice]:
    """The models that a run has, base first.

    Of a workbook run: what its finished stages handed over in their meta.json. Of a single training (the
    ``--output_dir`` of ``qwenlib train``, or a stage's folder): the base that it began with and what it made. A LoRA
    model has the adapter's shape of its own training, whatever the profile says by now. A run that was moved is found
    where it lies. What several cards left in slices is no model yet and is passed over.

    Args:
        profile: whose settings of answering and whose ``seq_length`` count; "": the run's own (of 06_infer when it
            was run, else of 02_weights; of a single training: smoke on the CPU, infer_7b_910a on Ascend, and its
            ``seq_length``).
        settings: overrides of the profile.

    Raises:
        Refused: 02_weights was not finished there, a meta.json is not ours, or the profile does not fit.
    """
    folder = workspace.resolve(run_dir)
    if not folder.is_dir():
        raise Refused(f"there is no run directory {folder}.")
    try:
        if (folder / "job.json").is_file() and not (folder / "02_weights").is_dir():
            return _of_training(folder, profile, settings)
        return _of_workbook(folder, profile, settings)
    except (KeyError, TypeError) as error:
        raise Refused(f"{folder}: its files do not hold what is needed ({type(error).__name__}: {error}).") from None


def _of_workbook(folder: Path, profile: str, settings: Sequence[str]) -> Dict[str, Choice]:
    weights = workspace.read_meta(folder, "02_weights")
    metas = {name: workspace.read_meta(folder, stage) for name, stage in TRAINED.items() if _done(folder, stage)}
    if not profile:
        last = workspace.read_meta(folder, "06_infer") if _done(folder, "06_infer") else weights
        profile = str(last.get("profile", "smoke"))
    outputs = {key: here(folder, "02_weights", path) for key, path in weights["outputs"].items()}
    base = Choice(
        "base",
        work.with_sizes(profiles.load(profile, settings), weights["config"]["sizes"]),
        outputs["model_dir"],
        outputs["vocab_file"],
        outputs["merges_file"],
        raw=True,
    )
    found = {"base": base}
    for name, meta in metas.items():
        checkpoint, config = meta["outputs"].get("checkpoint"), meta["config"]
        plan = (config.get(name) or {}).get("parallel", {})
        if not checkpoint or _sliced(str(config.get("device_target")), plan):
            continue
        adapter = Adapter(**config["lora"]["adapter"]) if name == "lora" else None
        found[name] = _tuned(base, name, here(folder, TRAINED[name], checkpoint), adapter)
    return found


def _of_training(folder: Path, profile: str, settings: Sequence[str]) -> Dict[str, Choice]:
    job = read_json(folder / "job.json")
    config, model = job["config"], job["config"]["model"]["model_config"]
    pet, files = model.get("pet_config"), config["processor"]["tokenizer"]
    own = [f"data.seq_length={model['seq_length']}", *settings] if not profile else settings
    shipped = profile or ("smoke" if job["device_target"] == "CPU" else "infer_7b_910a")
    sizes = {item.name: model[item.name] for item in dataclasses.fields(Model) if item.name in model}
    sizes["use_flash_attention"] = False
    prof = work.with_sizes(profiles.load(shipped, own), sizes)
    base = Choice("base", prof, job["load_checkpoint"], files["vocab_file"], files["merges_file"], raw=True)
    name, adapter = "finetune", None
    if pet:
        shape = {item.name: pet[item.name] for item in dataclasses.fields(Adapter) if item.name in pet}
        name, adapter = "lora", Adapter(**shape, train_lm_head="*lm_head*" in pet["freeze_exclude"])
    found = {} if job["settings"].get("resumed_step") else {"base": base}
    if not _sliced(job["device_target"], config["parallel_config"]):
        found[name] = _tuned(base, name, work.outcome(folder)["checkpoint"], adapter)
    return found


def _tuned(base: Choice, name: str, checkpoint: Path, adapter: Optional[Adapter]) -> Choice:
    found = replace(base, name=name, checkpoint=checkpoint, raw=False)
    if adapter is None:
        return found
    return replace(found, profile=with_adapter(base.profile, adapter), adapter_task="lora")


def _sliced(device_target: str, plan: Mapping[str, Any]) -> bool:
    """Several cards save their slices (of the optimizer's parallelism, too); on the CPU each rank saves all."""
    ranks = math.prod(int(plan.get(key, 1)) for key in ("data_parallel", "model_parallel", "pipeline_stage"))
    return device_target != "CPU" and ranks > 1


def with_adapter(profile: Profile, adapter: Adapter) -> Profile:
    """``profile`` with that shape of LoRA adapter."""
    task = profile.lora or profiles.Task()
    return replace(profile, lora=replace(task, adapter=adapter))


def pick(choices: Mapping[str, Choice], name: str = "") -> Choice:
    """The model ``name``; without a name the most trained one: fine-tuned, else LoRA, else base.

    Raises:
        Refused: the run has no such model.
    """
    if not name:
        return choices[next((item for item in reversed(NAMES) if item in choices), next(iter(choices)))]
    if name not in choices:
        stage = TRAINED.get(name)
        hint = f" Stage {stage} was not finished, or left slices: merge them (qwenlib weights merge)." if stage else ""
        raise Refused(f"there is no model {name!r} in this run; it has: {', '.join(choices)}.{hint}")
    return choices[name]


def sight(choice: Choice, messages: Sequence[Message]) -> str:
    """What the model would see, as text, under a line with its token counts; the model is not loaded.

    Raises:
        Refused: the messages are no conversation that ends with a question.
    """
    seen = choice.sees(messages)
    how = "plain text" if choice.raw else "ChatML"
    context = choice.profile.data.seq_length
    head = f"{choice.name} sees {how}: {seen.tokens} of {context} tokens, room for an answer of {seen.room}"
    if seen.dropped_turns or seen.cut_tokens:
        head += f"; {prompts.left_out(seen.dropped_turns, seen.cut_tokens)}"
    return f"{head}\n{'-' * len(head)}\n{seen.prompt}"


def _done(folder: Path, stage: str) -> bool:
    return (folder / stage / workspace.META).is_file()


def here(folder: Path, stage: str, path: str) -> Path:
    """``path``, or, when the run was moved since, the same place below its stage's folder."""
    found = Path(path)
    if not found.exists() and stage in found.parts:
        moved = folder.joinpath(*found.parts[found.parts.index(stage) :])
        return moved if moved.exists() else found
    return found
