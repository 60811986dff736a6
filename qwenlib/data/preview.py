"""Look at data: how long conversations are, and what the model will really see of one row."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Sequence, Tuple, Union

import numpy

from qwenlib.data.meta import packing
from qwenlib.data.pack import saving_text
from qwenlib.data.rows import IGNORE
from qwenlib.errors import Refused
from qwenlib.profile import Profile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LEARNED_STYLE = "background:#d5f0dc;color:#0b5129"
PLAIN_STYLE = "color:#57606a"
_CELL = "padding:1px 8px;text-align:left;font-family:monospace;white-space:pre"
_ANSI_LEARNED, _ANSI_PLAIN, _ANSI_END = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that are learned alike, with their text."""

    text: str
    learned: bool
    tokens: int


def pieces(row: Mapping[str, Any], tokenizer: Tokenizer) -> List[Piece]:
    """The row's text without its padding, cut wherever learned and not learned tokens meet."""
    ids, learned = _real(row)
    found: List[Piece] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[start]:
            text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            found.append(Piece(text, learned[start], end - start))
            start = end
    return found


def text(row: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """The row as plain text, control tokens included, padding left out."""
    return str(tokenizer.decode(_real(row)[0], skip_special_tokens=False))


def to_html(row: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """The row as HTML, learned text on green; everything that comes from the data is escaped."""
    spans = "".join(
        f'<span style="{LEARNED_STYLE if piece.learned else PLAIN_STYLE}">{html.escape(piece.text)}</span>'
        for piece in pieces(row, tokenizer)
    )
    return (
        f'<div style="font-size:0.9em;margin-bottom:0.4em">{html.escape(_summary(row))}; '
        f'<span style="{LEARNED_STYLE}">learned</span>, <span style="{PLAIN_STYLE}">read only</span></div>'
        f'<pre style="white-space:pre-wrap;line-height:1.5;margin:0">{spans}</pre>'
    )


def to_ansi(row: Mapping[str, Any], tokenizer: Tokenizer, colour: bool = True) -> str:
    """The row for a terminal, learned text in bold green (``colour=False``: between ``[[`` and ``]]``).

    Control characters of the data are shown as ``\\x1b``: a text cannot steer the terminal.
    """
    begin, end = (_ANSI_LEARNED, _ANSI_END) if colour else ("[[", "]]")
    plain, plain_end = (_ANSI_PLAIN, _ANSI_END) if colour else ("", "")
    body = "".join(
        f"{begin}{_tame(piece.text)}{end}" if piece.learned else f"{plain}{_tame(piece.text)}{plain_end}"
        for piece in pieces(row, tokenizer)
    )
    return f"{_summary(row)}\n{body}"


def tokens_ansi(row: Mapping[str, Any], tokenizer: Tokenizer, colour: bool = True) -> str:
    """A line a real token for a terminal: position, id, target (as in the file), token; learned ones as in to_ansi."""
    lines = ["position      id  target  token"]
    for item in table(row, tokenizer):
        line = f"{item['position']:8d}  {item['id']:6d}  {item['target']:6d}  {_tame(item['token'])}"
        if colour:
            line = f"{_ANSI_LEARNED if item['learned'] else _ANSI_PLAIN}{line}{_ANSI_END}"
        lines.append(line)
    return "\n".join(lines)


def table(row: Mapping[str, Any], tokenizer: Tokenizer) -> List[Dict[str, Any]]:
    """One dict a real token: ``position``, ``id``, ``token`` (as in vocab.json), ``text``, ``target``, ``learned``."""
    ids, learned = _real(row)
    return [
        {
            "position": position,
            "id": number,
            "token": tokenizer.id_to_token(number),
            "text": tokenizer.decode([number], skip_special_tokens=False),
            "target": int(row["target_ids"][position]),
            "learned": learned[position],
        }
        for position, number in enumerate(ids)
    ]


def tokens_html(row: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """:func:`table` as an HTML table that scrolls, learned tokens on green; escaped."""
    heads = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("position", "id", "target", "token", "text"))
    lines = ""
    for item in table(row, tokenizer):
        values = (item["position"], item["id"], item["target"], item["token"], repr(item["text"]))
        style = f"{_CELL};{LEARNED_STYLE if item['learned'] else PLAIN_STYLE}"
        lines += "<tr>" + "".join(f'<td style="{style}">{html.escape(str(value))}</td>' for value in values) + "</tr>"
    return f'<div style="max-height:24em;overflow:auto"><table><tr>{heads}</tr>{lines}</table></div>'


def histogram(lengths: Union[Sequence[int], numpy.ndarray], seq_length: int) -> Any:
    """A matplotlib figure: how many conversations have how many tokens, with the row's length as a line.

    The title says which share is cut, and which share of all places in rows holds a real token.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = numpy.asarray(lengths)
    if not len(found):
        raise Refused("there are no conversations to draw.")
    width = seq_length + 1
    cut = float((found > width).mean())
    real = float(numpy.minimum(found, width).sum() / (len(found) * width))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(found, bins=min(60, max(5, int(found.max() - found.min()) + 1)), color="#4c78a8", edgecolor="white")
    axes.axvline(width, color="#e45756", linestyle="--", label=f"row: seq_length {seq_length} + 1")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("tokens in a conversation")
    axes.set_ylabel("conversations")
    axes.set_title(
        f"{len(found):,} conversations; {100 * cut:.1f} % cut, {100 * real:.1f} % of the places in rows are real"
    )
    axes.legend(frameon=False)
    return figure


def png(figure: Any) -> bytes:
    """A figure as PNG: ``display(Image(png(figure)))`` shows it in any front end and keeps it in the notebook."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def figures(meta: Mapping[str, Any]) -> Any:
    """The counts of a build, for people: a pandas DataFrame with one column."""
    import pandas

    quantiles = meta["length_quantiles"]
    rows = {
        "conversations": f"{meta['records']:,}",
        "rows": f"{meta['rows']:,}  ({'packed' if meta['pack'] else 'one conversation each'})",
        "row length (seq_length + 1)": f"{meta['seq_length'] + 1:,}",
        "real tokens": f"{meta['tokens']:,}",
        "real share of the places": f"{100 * meta['real_share']:.1f} %",
        "learned share of the real tokens": f"{100 * meta['label_share']:.1f} %  (labels: {meta['labels']})",
        "tokens a conversation: median, 99 %, most": " / ".join(
            f"{quantiles[key]:.0f}" for key in ("0.5", "0.99", "1")
        ),
        f"longer than a row ({meta['too_long']})": f"{meta['longer_than_row']:,}",
        "rows in which nothing is learned": f"{meta['without_labels']:,}",
        "control tokens in texts (kept plain)": f"{meta['special_tokens_in_text']:,}",
    }
    return pandas.DataFrame({"value": rows})


def packing_text(meta: Mapping[str, Any], profile: Profile) -> str:
    """What packing would change, or has changed, in an epoch of each training task of ``profile``: a line each."""
    lines = []
    for name in profile.tasks():
        task = profile.task(name)
        per_step = task.batch_size * task.parallel.data_parallel * task.parallel.micro_batch_num
        lines.append(f"{name}, {per_step} rows a step: {saving_text(packing(meta, per_step), bool(meta.get('pack')))}")
    return "\n".join(lines)


def check_vocabulary(row: Mapping[str, Any], tokenizer: Tokenizer, path: Union[str, Path]) -> None:
    """Refuse a row whose ids go beyond ``tokenizer``'s: it was made with another vocabulary."""
    most, known = int(max(row["input_ids"])), tokenizer.get_vocab_size()
    if most >= known:
        raise Refused(f"{path} holds id {most}, but the vocabulary ends at {known - 1}: it was built with another one.")


def _real(row: Mapping[str, Any]) -> Tuple[List[int], List[bool]]:
    mask = numpy.asarray(row["attention_mask"]).astype(bool)
    ids = [int(number) for number in numpy.asarray(row["input_ids"])[mask]]
    learned = [bool(value) for value in (numpy.asarray(row["target_ids"]) != IGNORE)[mask]]
    return ids, learned


def _summary(row: Mapping[str, Any]) -> str:
    ids, learned = _real(row)
    return f"{len(ids)} tokens of {len(row['input_ids'])} places, {sum(learned)} learned"


def _tame(text: str) -> str:
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
