"""Convert a generated Qwen1.5 checkpoint: ours, upstream's way, and cp + fsync of the same bytes, side by side.

python benchmarks/weights.py                 0.6 B parameters (1.24 GB); needs torch, transformers and mindspore
python benchmarks/weights.py --shape 7b      7.72 B parameters (15.4 GB, twice); ours and cp only

Every way runs in a process of its own; memory is its peak RSS. Everything is removed afterwards.
Exit code 1: a bound of issue 8 does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwenlib.files import require_space
from qwenlib.profile import Model
from qwenlib.weights import check
from qwenlib.weights.layout import Planned, safetensors_layout
from qwenlib.weights.names import entries

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "tiny": Model(hidden_size=256, num_layers=2, num_heads=4, vocab_size=4096, intermediate_size=704),
    "0.6b": Model(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=2816),
    "7b": Model(),
}
UPSTREAM = """
import sys
import mindspore
import torch
from transformers import Qwen2ForCausalLM
network = Qwen2ForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
names = (("model.embed_tokens.", "model.tok_embeddings."), (".self_attn.", ".attention."), ("q_proj", "wq"),
         ("k_proj", "wk"), ("v_proj", "wv"), ("o_proj", "wo"), ("mlp.", "feed_forward."), ("gate_proj", "w1"),
         ("down_proj", "w2"), ("up_proj", "w3"), ("input_layernorm", "attention_norm"),
         ("post_attention_layernorm", "ffn_norm"), ("model.norm.", "model.norm_out."),
         ("tok_embeddings.weight", "tok_embeddings.embedding_weight"))
found = []
for name, value in network.named_parameters():
    for old, new in names:
        name = name.replace(old, new)
    found.append({"name": name, "data": mindspore.Tensor(value.detach().numpy(), dtype=mindspore.float16)})
mindspore.save_checkpoint(found, sys.argv[2])
"""
"""What upstream's convert_weight.py does, said again: load everything, make a list of tensors, save it."""
COPY = """
import os, shutil, sys
with open(sys.argv[1], "wb", buffering=0) as target:
    for path in sys.argv[2:]:
        with open(path, "rb", buffering=0) as source:
            while os.sendfile(target.fileno(), source.fileno(), None, 1 << 27):
                pass
    os.fsync(target.fileno())
"""


def generate(folder: Path, model: Model, shard_bytes: int) -> int:
    """A bfloat16 checkpoint of normal values (standard deviation about 0.02) in shards; returns its bytes."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_heads,
        "vocab_size": model.vocab_size,
        "intermediate_size": model.intermediate_size,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.theta,
        "max_position_embeddings": model.max_position_embedding,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shards: List[List[Planned]] = [[]]
    for entry in entries(model):
        if sum(item.bytes for item in shards[-1]) > shard_bytes:
            shards.append([])
        shards[-1].append(Planned(entry.hf, "bfloat16", entry.shape))
    draw = numpy.random.default_rng(0)
    block = (draw.standard_normal(1 << 22, dtype=numpy.float32) * 0.02).view(numpy.uint32) >> 16
    bits = block.astype(numpy.uint16)
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        layout = safetensors_layout(shard)
        with open(folder / name, "wb") as stream:
            stream.write(layout.heads[0][1])
            for item in shard:
                weight_map[item.name] = name
                left = item.bytes // 2
                while left:
                    stream.write(memoryview(bits[: min(left, bits.size)]))
                    left -= min(left, bits.size)
            os.fsync(stream.fileno())
        total += layout.size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def forget(*paths: Path) -> None:
    """Ask the kernel to drop these files from its cache, so that each way begins with the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(command: List[str]) -> Tuple[float, float, float]:
    """(seconds, peak RSS in MiB, processor seconds) of a process.

    It is started by a small process of its own: a child's peak RSS begins with that of the process that forked it.
    """
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        close_fds=False,
    )
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    if status:
        sys.exit(f"{' '.join(command[:4])} … failed:\n{errors.decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the table and judge the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.6b")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder below the system's)")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the best of each way counts")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    model = SHAPES[options.shape]
    parameters = sum(int(numpy.prod(entry.shape)) for entry in entries(model))
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="qwenlib-weights-", dir=options.folder))
    try:
        require_space(work, 2 * 2 * parameters, "the benchmark")
        size = generate(work / "hf", model, 4 * 10**9)
        sources = sorted((work / "hf").glob("*.safetensors"))
        out = work / "ours.ckpt"
        convert = ["-m", "qwenlib", "weights", "convert", "--torch_ckpt_dir", str(work / "hf")]
        ways: Dict[str, List[str]] = {
            "ours": [sys.executable, *convert, "--mindspore_ckpt_path", str(out)],
            "cp + fsync": [sys.executable, "-c", COPY, str(work / "copy.bin"), *map(str, sources)],
        }
        if options.shape != "7b":
            ways["upstream"] = [sys.executable, "-c", UPSTREAM, str(work / "hf"), str(work / "upstream.ckpt")]
        best: Dict[str, Tuple[float, float, float]] = {}
        rounds: Dict[str, List[float]] = {}
        same: Optional[bool] = None
        for _ in range(options.repeat):
            for way, command in ways.items():
                forget(*sources)
                os.sync()
                found = measure(command)
                best[way] = tuple(map(min, found, best.get(way, found)))  # type: ignore[assignment]
                rounds.setdefault(way, []).append(found[0])
                (work / "copy.bin").unlink(missing_ok=True)
                if way == "upstream" and same is None:
                    same = check(out, work / "upstream.ckpt")["max_abs_diff"] == 0
                if way == list(ways)[-1] or "upstream" not in ways:
                    for extra in ("ours.ckpt", "ours.ckpt.meta.json", "upstream.ckpt"):
                        (work / extra).unlink(missing_ok=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(options, parameters, size, best, rounds, same)


def report(
    options: argparse.Namespace,
    parameters: int,
    size: int,
    best: Dict[str, Tuple[float, float, float]],
    rounds: Dict[str, List[float]],
    same: Optional[bool],
) -> None:
    """Print, and exit with 1 when a bound does not hold."""
    ours, copy = best["ours"], best["cp + fsync"]
    bounds = [("ours / cp + fsync, time", ours[0] / copy[0], "<=", 2.0), ("ours, peak GiB", ours[1] / 1024, "<=", 2.0)]
    if "upstream" in best:
        bounds.append(("upstream / ours, time", best["upstream"][0] / ours[0], ">=", 5.0))
        bounds.append(("upstream / ours, peak", best["upstream"][1] / ours[1], ">=", 4.0))
    held = [same is not False]
    held += [value <= limit if sign == "<=" else value >= limit for _, value, sign, limit in bounds]
    if options.json:
        document = {
            "shape": options.shape,
            "parameters": parameters,
            "bytes": size,
            "ways": {
                way: {"seconds": found[0], "peak_mib": found[1], "cpu_seconds": found[2]} for way, found in best.items()
            },
            "bounds": {name: {"value": value, "limit": limit} for name, value, _, limit in bounds},
            "rounds": rounds,
            "equal_to_upstreams": same,
            "held": all(held),
        }
        print(json.dumps(document, indent=2))
    else:
        print(f"{options.shape}: {parameters:,} parameters, {size / 1e9:.2f} GB bfloat16 -> float16 checkpoint")
        print(f"{'way':14s} {'seconds':>9s} {'GB/s':>7s} {'peak MiB':>9s} {'CPU s':>6s}  all rounds")
        for way, (seconds, peak, busy) in best.items():
            every = " ".join(f"{value:.2f}" for value in rounds[way])
            print(f"{way:14s} {seconds:9.2f} {size / seconds / 1e9:7.2f} {peak:9.0f} {busy:6.2f}  {every}")
        if same is not None:
            print(f"every tensor equal to upstream's: {'yes' if same else 'NO'}")
        for (name, value, sign, limit), good in zip(bounds, held[1:]):
            print(f"{name:26s} {value:7.2f} {sign} {limit:g}  {'ok' if good else 'NOT HELD'}")
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
