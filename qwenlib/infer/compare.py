"""The same prompts answered by several models, side by side."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from qwenlib.infer.session import Session
from qwenlib.progress import Progress


def compare(sessions: Mapping[str, Session], prompts: Sequence[Mapping[str, str]], **settings: Any) -> Any:
    """Ask every session every prompt, greedily unless ``settings`` say otherwise.

    ``prompts``: ``{"prompt": text, "answer": expected text or ""}`` each.

    Returns:
        A DataFrame with one row a prompt: ``prompt``, ``expected``, and one column of answers for each session.
    """
    import pandas

    table: Dict[str, List[str]] = {
        "prompt": [item["prompt"] for item in prompts],
        "expected": [item.get("answer", "") for item in prompts],
    }
    for name, session in sessions.items():
        with Progress(f"ask {name}", len(prompts), "prompts") as bar:
            table[name] = []
            for item in prompts:
                table[name].append(session.ask(item["prompt"], **settings)["text"])
                bar.advance()
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
