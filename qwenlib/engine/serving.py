"""The plan of a background process, or of several, that hold a model and answer (:mod:`qwenlib.engine.serve`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Union

from qwenlib import launch
from qwenlib.engine import render, single, work
from qwenlib.errors import Refused
from qwenlib.files import make_folder
from qwenlib.profile import Profile


def serve_plan(
    profile: Profile,
    *,
    load_checkpoint: Union[str, Path],
    vocab_file: Union[str, Path],
    merges_file: Union[str, Path],
    run_dir: Union[str, Path],
    socket: Union[str, Path],
    adapter_task: str = "",
    use_past: bool = True,
    rank_table: Optional[Union[str, Path]] = None,
) -> launch.Plan:
    """The plan of a background process that loads a checkpoint and answers over ``socket``.

    It writes ``run_dir/ready.json`` when it listens. ``adapter_task``: "lora" when the checkpoint holds an adapter;
    ``use_past`` False: every token is computed from the whole text again. With ``predict.model_parallel`` above 1 that
    many ranks of this host hold the network together, as ``rank_table`` says.

    Raises:
        Refused: no checkpoint, or not as it is needed: several ranks take a model_dir and a rank table of as many.
    """
    run_dir = Path(run_dir).absolute()
    ranks = profile.predict.model_parallel if profile.predict is not None else 1
    config = render.predict_config(
        profile,
        vocab_file=Path(vocab_file).absolute(),
        merges_file=Path(merges_file).absolute(),
        output_dir=run_dir / "output",
        tokens=work.token_ids(work.base_vocabulary(vocab_file)),
        adapter_task=profile.task(adapter_task) if adapter_task else None,
        use_past=use_past,
        model_parallel=ranks,
    )
    fields: Dict[str, Any] = {}
    if ranks > 1:
        fields = sharing(ranks, rank_table, load_checkpoint)
    job = single.predict_job(
        "serve", profile, config, load_checkpoint, run_dir, "ready.json", {"socket": str(socket)}, whole=ranks > 1
    )
    make_folder(run_dir)
    Path(job.result).unlink(missing_ok=True)
    job_file = job.save(run_dir / "job.json")
    return launch.Plan(
        work.command(job_file), run_dir=run_dir, device_target=profile.device_target, share_devices=True, **fields
    )


def sharing(ranks: int, rank_table: Optional[Union[str, Path]], load_checkpoint: Union[str, Path]) -> Dict[str, Any]:
    """The fields of :class:`qwenlib.launch.Plan` for ``ranks`` cards of this host that answer with one network.

    Raises:
        Refused: no rank table, one of another size or of several hosts, or a checkpoint that is no model_dir.
    """
    from qwenlib.ascend.devices import device_nodes
    from qwenlib.ranktable.parse import load
    from qwenlib.ranktable.whoami import rank_environments, who_am_i

    if not rank_table:
        raise Refused(f"{ranks} Ascend ranks need a rank table: run 01_env, or give --rank_table.")
    table = load(Path(rank_table))
    if table.ranks != ranks or len(table.servers) != 1:
        raise Refused(
            f"{rank_table} holds {table.ranks} ranks on {len(table.servers)} host(s); predict.model_parallel "
            f"{ranks} needs as many, on one. Make it with: qwenlib ranktable subset"
        )
    if not (Path(load_checkpoint) / "rank_0").is_dir():
        raise Refused(f"several ranks need a model_dir with rank_0/x.ckpt in it, found {load_checkpoint}.")
    environments = rank_environments(table, who_am_i(table), Path(rank_table), device_nodes())
    cards = [int(item["DEVICE_ID"]) for item in environments]
    return {"ranks": ranks, "rendezvous": "rank_table", "rank_table": Path(rank_table), "device_ids": cards}
