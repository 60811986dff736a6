"""What only shows inside one process with the real MindSpore and MindFormers.

``python stack_probe.py CASES.json FOUND.json``: runs everything in turn, writes what happened; the tests judge it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

from qwenlib.errors import QwenlibError

TEXTS = [
    "Hello, world! It's 2024.",
    "你好，世界。鸢尾花有三种",
    "emoji 🙂👨‍👩‍👧 and \u0301combining é",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    "a<|endoftext|>b",
    "  spaces \t\n\n  tabs\r\n",
    "def f(x):\n    return x ** 2  # code",
]
MISSPELT = [
    [["model", "model_config"], "rms_norm_esp", "rms_norm_eps"],
    [["model", "model_config"], "rotary_emb_base", ""],
    [["model", "model_config", "pet_config"], "lora_rang", "lora_rank"],
    [["optimizer"], "weight_decy", "weight_decay"],
    [["lr_schedule"], "warmup_ration", "warmup_ratio"],
    [["callbacks", 1], "keep_checkpoint_maxi", "keep_checkpoint_max"],
]


def told(call: Callable[[], Any]) -> Dict[str, Any]:
    """``{"error": type or "", "message"}`` of what a call raised."""
    try:
        call()
    except Exception as error:
        ours = isinstance(error, QwenlibError)
        return {"error": type(error).__name__, "ours": ours, "message": str(error)}
    return {"error": "", "ours": False, "message": ""}


@contextlib.contextmanager
def without(owner: Any, name: str) -> Iterator[None]:
    """``owner`` as a newer MindSpore might have it: with one thing gone."""
    kept = getattr(owner, name)
    delattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def probe_patches() -> Dict[str, Any]:
    """Each patch on its own, its target gone; then all of them, twice."""
    from mindspore import nn
    from mindspore._c_expression import MSContext

    from qwenlib.engine import compat

    step = nn.TrainOneStepWithLossScaleCell
    targets = [
        ("answer_soc_version", MSContext, "get_ascend_soc_version"),
        ("give_cells_a_cast", nn, "Cell"),
        ("check_dense_input_shape", nn.layer, "basic"),
        ("check_overflow_by_is_finite", nn, "TrainOneStepWithLossScaleCell"),
        ("check_overflow_by_is_finite", step, "start_overflow_check"),
        ("check_overflow_by_is_finite", step, "get_overflow_status"),
        ("check_overflow_by_is_finite", step, "_get_distributed_overflow_status_on_infnan_mode"),
    ]
    patches = {function.__name__.lstrip("_"): function for _, function in compat._PATCHES}
    gone = []
    for name, owner, target in targets:
        with without(owner, target):
            gone.append({"patch": name, "target": target, **told(patches[name])})
    sys.modules["mindformers"] = types.ModuleType("mindformers")
    late = told(compat.apply_cpu_patches)
    del sys.modules["mindformers"]
    first = compat.apply_cpu_patches()
    import mindformers  # noqa: F401

    return {"names": list(patches), "gone": gone, "late": late, "first": first, "again": compat.apply_cpu_patches()}


def probe_tokenizer(case: Dict[str, Any]) -> Dict[str, Any]:
    """Our class as MindFormers builds it from the YAML, on every text of the case."""
    from mindformers import MindFormerConfig
    from mindformers.models.build_tokenizer import build_tokenizer

    from qwenlib.engine import tokenizer

    kind = tokenizer.register()
    made = build_tokenizer(MindFormerConfig(**case["config"]["processor"]["tokenizer"]))
    ids = [list(made(text)["input_ids"]) for text in TEXTS]
    return {
        "same_class": kind is tokenizer.register() and type(made) is kind,
        "ids": ids,
        "decoded": [made.decode(row) for row in ids],
        "without_controls": [made.decode(row, skip_special_tokens=True) for row in ids],
        "tokens_there_and_back": [made.convert_tokens_to_string(made.tokenize(text)) for text in TEXTS],
        "special": {name: getattr(made, f"{name}_token_id") for name in ("unk", "eos", "pad")},
        "vocab_size": made.vocab_size,
        "length": len(made),
        "saved": [Path(path).name for path in made.save_vocabulary(case["folder"])],
    }


def probe_keys(case: Dict[str, Any]) -> Dict[str, Any]:
    """``check_keys`` on configurations as rendered, and with one key misspelt each."""
    from qwenlib.engine.keys import check_keys

    misspelt = []
    for place, wrong, _ in MISSPELT:
        tree = json.loads(json.dumps(case["configs"]["lora_7b_910a lora"]))
        part = tree
        for name in place:
            part = part[name]
        part[wrong] = 1
        misspelt.append({"place": place, "wrong": wrong, **told(lambda tree=tree: check_keys(tree))})
    rendered = {name: told(lambda tree=tree: check_keys(tree)) for name, tree in case["configs"].items()}
    return {"rendered": rendered, "misspelt": misspelt}


def make_checkpoints(base: str, folder: Path) -> Dict[str, str]:
    """Broken copies of a good checkpoint, by name."""
    import mindspore

    whole = mindspore.load_checkpoint(base)
    bias = "model.layers.0.attention.wq.bias"

    def save(name: str, content: Dict[str, Any]) -> str:
        path = folder / f"{name}.ckpt"
        mindspore.save_checkpoint([{"name": key, "data": value} for key, value in content.items()], str(path))
        return str(path)

    missing = {name: value for name, value in whole.items() if name != bias}
    other = mindspore.Parameter(mindspore.Tensor(whole["lm_head.weight"].asnumpy()[:-1]))
    return {
        "missing": save("missing", missing),
        "renamed": save("renamed", {**missing, bias.replace("bias", "bais"): whole[bias]}),
        "nothing_fits": save("nothing_fits", {f"x.{name}": value for name, value in whole.items()}),
        "another_size": save("another_size", {**whole, "lm_head.weight": other}),
    }


def probe_guard(case: Dict[str, Any], folder: Path) -> Dict[str, Any]:
    """Training, scoring and answering from what is no proper start: what is said, and what is left behind."""
    from qwenlib.engine import rank
    from qwenlib.engine.job import Job

    broken = {**make_checkpoints(case["checkpoint"], folder), "lora": case["lora"], "base": case["checkpoint"]}
    found: Dict[str, Any] = {}
    for number, (name, (task, config, checkpoint, settings)) in enumerate(case["jobs"].items()):
        tree = json.loads(json.dumps(case["configs"][config]))
        dataset = settings.pop("dataset_dir", None)
        if dataset:
            tree["train_dataset"]["data_loader"]["dataset_dir"] = dataset
            tree["train_dataset_task"]["dataset_config"]["data_loader"]["dataset_dir"] = dataset
        output = Path(tree["output_dir"])
        shutil.rmtree(output, ignore_errors=True)
        result = folder / (f"result_{number}" + (".npz" if task == "logits" else ".json"))
        job = Job(task, "CPU", tree, broken[checkpoint], str(result), settings)
        outcome = told(lambda job=job: rank.run(job))
        found[name] = {
            **outcome,
            "result": _read(result) if result.exists() else None,
            "checkpoints": sorted(path.name for path in output.rglob("*.ckpt") if "strategy" not in path.name),
        }
    return found


def _read(result: Path) -> Any:
    return str(result) if result.suffix == ".npz" else json.loads(result.read_text())


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2]).parent
    found: Dict[str, Any] = {"patches": probe_patches()}
    found["tokenizer"] = probe_tokenizer(cases["tokenizer"])
    found["keys"] = probe_keys(cases["keys"])
    found["guard"] = probe_guard(cases["guard"], folder)
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
