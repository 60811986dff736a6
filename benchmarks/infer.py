"""Answers a second: our session against bare MindFormers, and against transformers, on the same weights and threads.

python benchmarks/infer.py [--size tiny] [--size half] [--rounds 7] [--threads 2]

Three contenders, each in a process of its own, that answer the same prompts greedily with the key/value cache, float32,
batch 1, a fixed number of tokens, no stop token reached:

- bare: MindFormers' own ``generate`` on ids, in a process that does nothing else (no socket, no text, no streaming);
- ours: :class:`qwenlib.infer.Session`, timed where the asker stands: tokenizing, socket, text streamed piece by piece;
- transformers: ``Qwen2ForCausalLM.generate`` on ids.

All three must give the same tokens. A round runs each of them once on each prompt; ratios are taken within rounds:
median, and in brackets the lowest and highest; then the best round of one against the best of the other, which a busy
machine disturbs least. Each prompt is answered twice by each: one token (the time to the first one, the prompt's pass
included), then all, so that every timed answer follows upon one of the same process.

Sizes: ``tiny`` is the smoke profile's network, ``half`` has the shape of Qwen1.5-0.5B with random weights and an output
layer of its own (620 M parameters, 2.5 GB a process).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TOKENS = {"tiny": 64, "half": 16}
"""Tokens of an answer."""
SEQ_LENGTH = {"tiny": 128, "half": 64}
HALF = {
    "hidden_size": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "vocab_size": 151936,
    "intermediate_size": 2816,
    "max_position_embedding": 32768,
}
PROMPTS = ("The iris is a flower that", "How many days are in a leap year?", "最小的质数是多少？")
NEVER = "<|im_start|>"
"""The stop text of this measurement."""


def make(size: str, folder: Path) -> Any:
    """A checkpoint in both formats in ``folder``, and its profile."""
    from qwenlib import data, weights
    from qwenlib import profile as profiles

    settings = [f"data.seq_length={SEQ_LENGTH[size]}"]
    if size == "half":
        settings += [f"model.{key}={value}" for key, value in HALF.items()]
    profile = profiles.load("smoke", settings)
    small = profiles.load("smoke").model
    weights.make_tiny(folder / "hf", data.plain_texts(data.sample_path()), small, steps=0)
    if size == "half":
        _random(folder / "hf", profile.model)
    weights.convert(folder / "hf", folder / "model_dir", dtype="float32")
    return profile


def _random(folder: Path, model: Any) -> None:
    """Replace the weights in ``folder`` by random ones of another shape; the vocabulary stays."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    for old in folder.glob("model*"):
        old.unlink()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads,
        max_position_embeddings=model.max_position_embedding,
        rms_norm_eps=model.rms_norm_eps,
        rope_theta=model.theta,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(str(folder), safe_serialization=True, max_shard_size="1GB")


class Child:
    """A contender behind a pair of pipes: a line of JSON to it, a line back."""

    def __init__(self, kind: str, folder: Path, threads: int):
        command = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "--folder", str(folder)]
        with open(folder / f"{kind}.log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=str(folder),
                text=True,
            )
        self.log = folder / f"{kind}.log"
        self.answer()

    def answer(self) -> Dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
        raise SystemExit(f"{self.log}:\n{self.log.read_text(errors='replace')[-3000:]}")

    def ask(self, ids: List[int], count: int) -> Tuple[List[int], float]:
        """``(new ids, seconds)``."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"ids": ids, "count": count}) + "\n")
        self.process.stdin.flush()
        found = self.answer()
        return found["ids"], found["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def child(kind: str, folder: Path, threads: int) -> None:
    """The loop of a contender's process; lines of its answers begin with @."""
    generate = _bare(folder) if kind == "bare" else _transformers(folder, threads)

    def tell(value: Any) -> None:
        print("@" + json.dumps(value), flush=True)

    generate([1, 2, 3], 2)
    tell({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        ids = generate(asked["ids"], asked["count"])
        tell({"seconds": time.perf_counter() - began, "ids": ids})


def _bare(folder: Path) -> Any:
    """MindFormers' generate on the network that a session would load."""
    import numpy

    from qwenlib.engine import job as jobs
    from qwenlib.engine import network as networks
    from qwenlib.engine import rank

    job = jobs.load(folder / "ours" / "job.json")
    network, tokenizer = networks.build(rank.prepare(job), job.load_checkpoint)
    stop = tokenizer.fast.token_to_id(NEVER)

    def generate(ids: List[int], count: int) -> List[int]:
        found = network.generate(
            numpy.asarray([ids], dtype=numpy.int32), max_new_tokens=count, do_sample=False, eos_token_id=stop
        )
        return [int(token) for token in found[0][len(ids) : len(ids) + count]]

    return generate


def _transformers(folder: Path, threads: int) -> Any:
    import torch
    from transformers import Qwen2ForCausalLM

    torch.set_num_threads(threads)
    network = Qwen2ForCausalLM.from_pretrained(str(folder / "hf"), torch_dtype=torch.float32, local_files_only=True)
    network.eval()

    def generate(ids: List[int], count: int) -> List[int]:
        with torch.no_grad():
            found = network.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                use_cache=True,
                eos_token_id=None,
                pad_token_id=0,
            )
        return [int(token) for token in found[0, len(ids) :]]

    return generate


def measure(size: str, rounds: int, threads: int, folder: Path) -> List[Dict[str, Dict[str, Tuple[float, float]]]]:
    """For each round: contender -> prompt -> (first token, all tokens), in seconds."""
    from qwenlib import infer
    from qwenlib.infer.prompt import tokenizer_of

    profile = make(size, folder)
    files = {"vocab_file": folder / "hf" / "vocab.json", "merges_file": folder / "hf" / "merges.txt"}
    tokenizer, count = tokenizer_of(**files), TOKENS[size]
    prompts = {text: tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS}
    found = []
    with infer.Session(profile, load_checkpoint=folder / "model_dir", run_dir=folder / "ours", **files) as session:
        session.wait_ready()
        others = {kind: Child(kind, folder, threads) for kind in ("bare", "transformers")}
        for number in range(rounds + 1):
            times: Dict[str, Dict[str, Tuple[float, float]]] = {"bare": {}, "ours": {}, "transformers": {}}
            for text, ids in prompts.items():
                said: Dict[str, str] = {}
                for kind, other in others.items():
                    _, first = other.ask(ids, 1)
                    new, seconds = other.ask(ids, count)
                    assert len(new) == count, f"{kind} made {len(new)} tokens"
                    times[kind][text] = (first, seconds)
                    said[kind] = tokenizer.decode(new, skip_special_tokens=False)
                first = _ask(session, text, 1)[1]
                answer, seconds = _ask(session, text, count)
                times["ours"][text] = (first, seconds)
                said["ours"] = answer
                assert len(set(said.values())) == 1, f"they do not say the same: {said}"
            if number:  # the first round warms everything up
                found.append(times)
        for other in others.values():
            other.close()
    return found


def _ask(session: Any, text: str, count: int) -> Tuple[str, float]:
    """``(answer, seconds)`` of our session, streamed, as the asker sees it."""
    pieces: List[str] = []
    began = time.perf_counter()
    done = session.ask(text, chat=False, max_new_tokens=count, stop=[NEVER], on_text=pieces.append)
    seconds = time.perf_counter() - began
    assert done["answer_tokens"] == count and "".join(pieces) == done["text"], done
    return done["text"], seconds


def report(size: str, rounds: List[Dict[str, Dict[str, Tuple[float, float]]]]) -> None:
    """The table of a size."""
    count = TOKENS[size]

    def total(times: Dict[str, Tuple[float, float]], place: int) -> float:
        return sum(pair[place] for pair in times.values())

    def spread(values: List[float]) -> str:
        return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"

    print(f"\n{size}: {len(rounds)} rounds of {len(PROMPTS)} prompts, {count} tokens each")
    print(f"{'':14}{'tokens/s':>10}{'first token, ms':>17}")
    for kind in ("bare", "ours", "transformers"):
        speed = statistics.median(count * len(PROMPTS) / total(item[kind], 1) for item in rounds)
        first = statistics.median(1000 * total(item[kind], 0) / len(PROMPTS) for item in rounds)
        print(f"{kind:14}{speed:>10.1f}{first:>17.1f}")
    for one, other in (("ours", "bare"), ("ours", "transformers")):
        for place, what in ((1, "time of an answer"), (0, "first token")):
            ratios = [total(item[one], place) / total(item[other], place) for item in rounds]
            best = min(total(item[one], place) for item in rounds) / min(total(item[other], place) for item in rounds)
            print(f"{what}, {one} / {other}: {spread(ratios)}, best {best:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=list(TOKENS), help="default: both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=["bare", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder, arguments.threads)
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # MindSpore's kernels and torch alike
    for size in arguments.size or list(TOKENS):
        with tempfile.TemporaryDirectory(prefix="qwenlib-bench-") as folder:
            report(size, measure(size, arguments.rounds, arguments.threads, Path(folder)))


if __name__ == "__main__":
    main()
