"""docs/fidelity.md, generated: ``python -m qwenlib.fidelity > docs/fidelity.md``.

Artefact by artefact: equal to upstream's or different, why, and which test holds it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

EQUAL, DIFFERENT = "equal", "different"


@dataclass(frozen=True)
class Artefact:
    """One artefact: ``state`` says how it stands to upstream's; ``test`` is ``file::name`` below tests/."""

    name: str
    state: str
    reason: str
    test: str


ARTEFACTS = (
    Artefact(
        "rank table (hccl_tools.py)",
        EQUAL,
        "same name, keys, order and values; bad ranges are refused",
        "ranktable/test_ranktable_tools.py::test_generate_writes_what_hccl_tools_writes",
    ),
    Artefact(
        "merged rank table (merge_hccl.py)",
        EQUAL,
        "same document for the files in node order",
        "ranktable/test_ranktable_tools.py::test_merge_writes_what_merge_hccl_writes",
    ),
    Artefact(
        "merged rank table, bad inputs",
        DIFFERENT,
        "refused: upstream merges a table into itself, repeated addresses and an order by text",
        "ranktable/test_ranktable_tools.py::test_merging_refuses_what_upstream_lets_through",
    ),
    Artefact(
        "messages file (alpaca_converter.py)",
        EQUAL,
        "object by object; JSON Lines, as the script really writes (the guide shows something else)",
        "data/test_data_convert.py::test_the_sample_converts_as_upstream_does_object_by_object",
    ),
    Artefact(
        "MindRecord rows (qwen1_5_preprocess.py)",
        EQUAL,
        "labels all: token by token, seq_length + 1 long, padding -100; int32 in the file",
        "data/test_data_rows.py::test_the_sample_gives_upstreams_rows",
    ),
    Artefact(
        "MindRecord rows, labels assistant",
        DIFFERENT,
        "a choice of the profile (smoke has it): only answers and their ends are learned",
        "data/test_data_rows.py::test_assistant_labels_spell_the_answers_and_their_ends",
    ),
    Artefact(
        "MindRecord rows, too long",
        DIFFERENT,
        "an answer that is cut keeps its <|im_end|>, so that stopping is learned; upstream cuts that off, too",
        "data/test_data_pack.py::test_a_cut_answer_keeps_its_closing_token",
    ),
    Artefact(
        "MindRecord rows, control tokens spelled in texts",
        DIFFERENT,
        "stay text (and are counted); upstream makes real ones of them, which end the turn in the middle",
        "data/test_data_tokenizer.py::test_a_spelled_control_token_is_plain_text",
    ),
    Artefact(
        "token ids, merges that begin with #",
        DIFFERENT,
        "are merges, as in the model's own tokenizer.json; upstream's class takes them for comments and splits ##",
        "data/test_data_tokenizer.py::test_a_merge_that_begins_with_a_hash_is_no_comment",
    ),
    Artefact(
        "checkpoint tensors (convert_weight.py)",
        EQUAL,
        "names, order, shapes, float16; values that float16 cannot hold are refused, upstream makes them inf",
        "weights/test_weights_convert.py::test_every_form_gives_upstreams_tensors",
    ),
    Artefact(
        "sliced tensors",
        EQUAL,
        "cuts by model_parallel, stages and flags as in the network that MindFormers builds, and the bytes of its Adam",
        "estimate/test_estimate_mindformers.py::test_slices_are_mindformers_own",
    ),
    Artefact(
        "a rank's slice file",
        EQUAL,
        "rank by rank and tensor by tensor of the size that those cuts give",
        "estimate/test_estimate_mindformers.py::test_a_card_holds_what_the_slicer_writes_for_it",
    ),
    Artefact(
        "stages of the pipeline",
        EQUAL,
        "layer by layer, as MindFormers deals them",
        "estimate/test_estimate_mindformers.py::test_stages_are_mindformers_own",
    ),
    Artefact(
        "YAML keys",
        "equal but for the list below",
        "every key of upstream's and of ours is compared",
        "profiles/test_profiles_fidelity.py::test_every_difference_has_a_reason",
    ),
    Artefact(
        "YAML as MindFormers reads it",
        EQUAL,
        "parsed by MindFormerConfig, and no key is ignored",
        "profiles/test_profiles_fidelity.py::test_mindformers_parses_it_and_ignores_no_key",
    ),
    Artefact(
        "training that the YAML leads to",
        EQUAL,
        "small sizes on the CPU, built and run by MindFormers; as many parameters learn as upstream's choice gives",
        "profiles/test_profiles_run.py::test_small_profile_trains",
    ),
    Artefact(
        "rank environment (run_singlenode.sh, run_multinode.sh)",
        "equal, and more",
        "the four variables of upstream; the others are listed below",
        "profiles/test_profiles_docs.py::test_ranks_get_upstreams_environment",
    ),
    Artefact(
        "16 ranks on two hosts, started by the notebooks",
        EQUAL,
        "environment, folder, command and YAML of every rank are the expected 16 (on fake hosts, without MindFormers)",
        "profiles/test_profiles_two_hosts.py::test_every_rank_is_started_with_what_it_must_be",
    ),
    Artefact(
        "command line of a rank",
        DIFFERENT,
        "python -m qwenlib.engine.rank JOB.json instead of run_qwen1_5.py: its --use_parallel default switches the "
        "YAML's off, --train_data works by accident only, and a YAML's load_checkpoint is ignored in silence; the same "
        "MindFormers Trainer is called with the same values",
        "profiles/test_profiles_docs.py::test_command_of_a_rank_is_one_program_and_one_file",
    ),
    Artefact(
        "working folder and log of a rank",
        DIFFERENT,
        "run_dir/rank_N with its own rank.log; upstream's ranks share one folder and race for ./configs and ./output",
        "launch/test_launch_plan.py::test_rank_table",
    ),
)

UPSTREAMS = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE")
VARIABLES: Dict[str, str] = {
    "RANK_ID": "the global number of the rank (run_multinode.sh's; run_singlenode.sh restarts at 0 on node 2)",
    "RANK_SIZE": "ranks of all nodes",
    "DEVICE_ID": "the logical card in this container, 0 first",
    "RANK_TABLE_FILE": "absolute",
    "HCCL_CONNECT_TIMEOUT": "1800 unless the user set it: HCCL's own 120 s end before rank 0 has sliced the checkpoint",
    "ASCEND_PROCESS_LOG_PATH": "CANN's own logs beside the rank's, not in ~/ascend of all jobs",
    "PYTHONUNBUFFERED": "a killed rank does not take its last lines with it",
    "PYTHONFAULTHANDLER": "a segmentation fault leaves a Python stack in the log",
    "QWENLIB_RANK_DIR": "the rank's folder, for its signs of life",
    "PYTHONPATH": "used from a checkout: the ranks stand in other folders and must find the same qwenlib",
}
"""Every variable that a rank gets, and why."""


def environments() -> List[Dict[str, Optional[str]]]:
    """What the 16 ranks of the full fine-tuning get: 8 on each of two hosts."""
    from qwenlib.launch.plan import Plan, rank_environment

    found = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "hccl.json"
        for first in (0, 8):
            plan = Plan(
                ["python"],
                ranks=8,
                world_size=16,
                first_rank=first,
                run_dir="/run",
                rendezvous="rank_table",
                rank_table=table,
                device_target="Ascend",
            )
            found += [{**rank_environment(plan, rank), "RANK_TABLE_FILE": "/run/hccl.json"} for rank in plan.rank_ids]
    return found


def document() -> str:
    """The whole file."""
    from qwenlib.engine import upstream

    lines = [
        "# How faithful this is",
        "",
        "None of us has an Ascend: what will touch one is held against upstream's own behaviour "
        "(MindFormers r1.0.a, `research/qwen1_5`) by tests. This file is generated; after a change run",
        "`python -m qwenlib.fidelity > docs/fidelity.md`.",
        "",
        "## Artefacts",
        "",
        *_table(
            ("artefact", "against upstream's", "why", "held by"),
            [(item.name, item.state, item.reason, f"`tests/{item.test}`") for item in ARTEFACTS],
        ),
        "",
        "## Environment of a rank",
        "",
        "Ranks 0 and 8 of two nodes with eight cards each; variables of other jobs are taken away first.",
        "",
    ]
    ranks = environments()
    names = [name for name, value in ranks[0].items() if value is not None or name in UPSTREAMS]
    if "PYTHONPATH" not in names:
        names.append("PYTHONPATH")  # only when used from a checkout
    rows = []
    for name in sorted(names, key=lambda item: (item not in UPSTREAMS, item)):
        shown = (
            ["(the checkout first)"] * 2 if name == "PYTHONPATH" else [f"{ranks[rank].get(name)}" for rank in (0, 8)]
        )
        rows.append((f"`{name}`", "set" if name in UPSTREAMS else "not set", *shown, VARIABLES.get(name, "")))
    lines += _table(("variable", "upstream", "rank 0", "rank 8", "why"), rows)
    for kind, profile in upstream.PROFILE_OF.items():
        compared = upstream.compare(kind)
        different = [row for row in compared if not row.equal]
        lines += [
            "",
            f"## YAML: `run_qwen1_5_7b_{kind}.yaml` and `{profile}`",
            "",
            f"{len(compared)} keys: {len(compared) - len(different)} equal, {len(different)} different:",
            "",
            *_table(
                ("key", "upstream", "ours", "why"),
                [(f"`{row.key}`", _value(row.upstream), _value(row.ours), row.reason) for row in different],
            ),
        ]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    return value if isinstance(value, str) and value.startswith("(") else f"`{value!r}`"


def _table(head: Tuple[str, ...], rows: List[Tuple[str, ...]]) -> List[str]:
    cells = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


if __name__ == "__main__":
    print(document(), end="")
