"""The smallest Qwen1.5 that the real MindFormers trains and asks, made once for all tests of the ``stack`` tier."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Tuple

from qwenlib import profile as profiles
from qwenlib.profile import Profile

SETTINGS = (
    "model.hidden_size=32",
    "model.num_layers=1",
    "model.num_heads=4",
    "model.n_kv_heads=2",  # grouped-query heads, as the 32B has them
    "model.vocab_size=300",
    "model.intermediate_size=64",
    "model.max_position_embedding=128",
    "data.seq_length=128",
    "data.labels=all",
    "lora.epochs=10",
    "finetune.epochs=10",
    "lora.learning_rate=2e-2",
    "finetune.learning_rate=1e-2",
    "predict.max_new_tokens=12",
)
RECORDS = 40
"""Of the shipped sample; 2 ranks of 8 rows make 2 steps of an epoch."""

SENTENCE = "🙂é한a"
"""What :meth:`Micro.speaker` answers to a chat message: characters of 4, 2, 3 and 1 bytes, each byte a token."""
LOOP = "xy"
"""Asked to continue "x", it says these two for ever."""
GARBAGE = "q"
"""Asked to continue this, it says a byte for ever that is no character."""


class Micro:
    """A folder with a checkpoint in both formats, a vocabulary and a MindRecord; more is made when first asked for."""

    def __init__(self, folder: Path):
        from qwenlib import data, weights

        self.folder = folder
        self.profile: Profile = profiles.load("smoke", SETTINGS)
        self.hf, self.model_dir = folder / "hf", folder / "model_dir"
        weights.make_tiny(self.hf, data.plain_texts(data.sample_path()), self.profile.model, steps=40)
        weights.convert(self.hf, self.model_dir, dtype="float32")
        self.files = {"vocab_file": self.hf / "vocab.json", "merges_file": self.hf / "merges.txt"}
        self.mindrecord = self.build(RECORDS)

    @property
    def messages(self) -> Path:
        """Of the records of :attr:`mindrecord`."""
        return self.folder / "messages.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The converted base."""
        return self.model_dir / "rank_0" / "qwen1_5.ckpt"

    def build(self, records: int) -> Path:
        """A MindRecord of that many records of the sample."""
        from qwenlib import data

        path = self.folder / f"{records}.mindrecord"
        if not path.exists():
            sample = json.loads(data.sample_path().read_text(encoding="utf-8"))[:records]
            messages = self.messages if records == RECORDS else self.folder / f"{records}.jsonl"
            (self.folder / "alpaca.json").write_text(json.dumps(sample), encoding="utf-8")
            data.convert(self.folder / "alpaca.json", messages)
            data.build(
                messages,
                path,
                seq_length=self.profile.data.seq_length,
                labels=self.profile.data.labels,
                **self.files,
            )
        return path

    def one_rank(self, *settings: str) -> Profile:
        """The profile for training in a single process."""
        return profiles.load(
            "smoke", [*SETTINGS, "lora.parallel.data_parallel=1", "finetune.parallel.data_parallel=1", *settings]
        )

    @cache  # noqa: B019 (one instance)
    def speaker(self, sentence: str = SENTENCE, ends: bool = True) -> Path:
        """A model_dir whose network only knows which token follows which: what it says is known beforehand.

        It answers ``sentence``, in which no token may come twice; not ``ends``: over and over.
        """
        import torch
        from transformers import Qwen2ForCausalLM

        from qwenlib import weights

        succession = self.succession(sentence, ends)
        place = {
            token: number for number, token in enumerate(dict.fromkeys(token for pair in succession for token in pair))
        }
        network = Qwen2ForCausalLM.from_pretrained(str(self.hf), local_files_only=True)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.fill_(1.0 if "norm" in name else 0.0)  # neither attention nor feed-forward add anything
            for token, number in place.items():
                network.model.embed_tokens.weight[token, number] = 1.0
            for token, following in succession:
                network.lm_head.weight[following, place[token]] = 1.0
        folder = self.folder / f"speaker_{sentence.encode().hex()}_{ends}"
        network.save_pretrained(str(folder / "hf"), safe_serialization=True)
        weights.convert(folder / "hf", folder / "model_dir", dtype="float32")
        return folder / "model_dir"

    def succession(self, sentence: str = SENTENCE, ends: bool = True) -> List[Tuple[int, int]]:
        """``(token, the token that follows)`` of the speaker."""
        from qwenlib.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(**self.files)

        def ids(text: str) -> List[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        said = [*ids("\n"), *ids(sentence), tokenizer.token_to_id("<|im_end|>")]
        (x, y), (q,) = ids(LOOP), ids(GARBAGE)
        broken = ids("好")[0]  # the first byte of three
        assert len({*said, x, y, q, broken}) == len(said) + 4, "every token must have one successor"
        assert len(said) == 12 or sentence != SENTENCE, "every byte of the sentence is a token"
        if not ends:
            said[-1] = said[1]
        return [*zip(said, said[1:]), (x, y), (y, x), (q, broken), (broken, broken)]

    def run(self, run_dir: Path, base: Path, **checkpoints: Path) -> Path:
        """``run_dir`` as a workbook leaves it: 02_weights with ``base``, 03_data, and ``lora=`` or ``finetune=``."""
        import yaml

        from qwenlib.infer.choose import TRAINED
        from qwenlib.workspace import open_stage

        shape = self.folder / "micro.yaml"
        config = profiles.to_dict(self.profile)
        shape.write_text(yaml.safe_dump(config), encoding="utf-8")
        sizes = {key: config["model"][key] for key in ("hidden_size", "num_layers", "num_heads", "n_kv_heads")}
        open_stage("02_weights", run_dir, str(shape)).finish({"model_dir": base, **self.files}, config={"sizes": sizes})
        data = {"messages": self.messages, "mindrecord": self.mindrecord}
        open_stage("03_data", run_dir, str(shape)).finish(data)
        for name, checkpoint in checkpoints.items():
            open_stage(TRAINED[name], run_dir, str(shape)).finish({"checkpoint": checkpoint}, config=config)
        return run_dir

    @cache  # noqa: B019
    def trained(self) -> Dict[str, Any]:
        """Both tasks on 2 ranks, one after the other in one run directory: what ``work.finetune`` returned for each.

        The second set the first one's ``output`` aside; the checkpoint of the first is given where it lies now.
        """
        from qwenlib.engine import work

        run_dir = self.folder / "train"
        found = {}
        for task in ("finetune", "lora"):
            found[task] = work.finetune(
                self.profile,
                task,
                load_checkpoint=self.model_dir,
                train_dataset=self.mindrecord,
                run_dir=run_dir,
                **self.files,
            )
        moved = run_dir / "output.previous" / "checkpoint_network" / "rank_0" / found["finetune"]["checkpoint"].name
        found["finetune"] = {**found["finetune"], "checkpoint": moved}
        return found


@cache
def micro() -> Micro:
    """The one of this test run; its folder goes when the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="qwenlib-micro-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Micro(folder)
