"""The same prompts answered by several models, side by side."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from qwenlib.infer.models import Models
from qwenlib.infer.prompt import question
from qwenlib.infer.session import Session
from qwenlib.progress import Progress


def compare(sessions: Mapping[str, Session], prompts: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
    """Ask every session every prompt, with the profile's settings (greedy) unless ``settings`` say otherwise.

    One after the other: of :class:`~qwenlib.infer.Models`, a model that was not loaded before is given back before the
    next one is loaded, so that one card is enough.

    ``prompts``: ``{"prompt": text, "answer": expected text or ""}`` each; with ``messages`` beside it (as
    :func:`qwenlib.data.prompts` gives them) these are asked, system message included.

    Returns:
        A DataFrame with one row a prompt: ``prompt``, ``expected``, and one column of answers for each session.
    """
    import pandas

    table: Dict[str, List[str]] = {
        "prompt": [item["prompt"] for item in prompts],
        "expected": [item.get("answer", "") for item in prompts],
    }
    loaded = set(sessions.opened()) if isinstance(sessions, Models) else set(sessions)
    for name in sessions:
        session = sessions[name]
        with Progress(f"ask {name}", len(prompts), "prompts") as bar:
            table[name] = []
            for item in prompts:
                table[name].append(session.chat(question(item), **settings)["text"])
                bar.advance()
        if isinstance(sessions, Models) and name not in loaded:
            sessions.release(name)
    return pandas.DataFrame(table)


def exact_match(table: Any) -> Dict[str, Dict[str, Any]]:
    """How many answers equal the expected ones, character by character, for each model column of :func:`compare`.

    Returns:
        ``{model: {"right", "of", "share"}}``; rows without an expected answer do not count.
    """
    counted = table[table["expected"] != ""]
    found: Dict[str, Dict[str, Any]] = {}
    for name in table.columns:
        if name in ("prompt", "expected"):
            continue
        right = int((counted[name] == counted["expected"]).sum())
        found[name] = {"right": right, "of": len(counted), "share": right / max(len(counted), 1)}
    return found
