"""What a model writes, as Markdown that can do no harm: no HTML of its own, no image, no link but to the web."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

LINK = re.compile(r"(https?://|mailto:)\S", re.IGNORECASE)
"""What a link may lead to; anything else stays text."""


def to_html(text: str) -> str:
    """``text`` (CommonMark and tables) as HTML.

    HTML in it is shown as text and an image as a link, so that nothing runs or is loaded by looking at it; a link
    opens a tab of its own, which learns nothing of this page.
    """
    return str(_safe().render(text))


def is_plain(text: str) -> bool:
    """True when any Markdown viewer may show ``text`` as it stands, with more text behind it.

    That is: no HTML, no image, and nothing left open, such as a block of code, that would swallow what follows.
    """
    tokens = _any().parse(f"{text}\n\n# end\n")
    whole = len(tokens) > 2 and tokens[-3].type == "heading_open" and tokens[-3].level == 0
    kinds = {child.type for token in tokens for child in [token, *(token.children or [])]}
    return whole and kinds.isdisjoint({"html_block", "html_inline", "image"})


@lru_cache(maxsize=1)
def _safe() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.validateLink = lambda address: LINK.match(address) is not None
    parser.add_render_rule("link_open", _open_link)
    return parser


def _open_link(self: Any, tokens: Any, place: int, options: Any, env: Any) -> str:
    tokens[place].attrSet("target", "_blank")
    tokens[place].attrSet("rel", "noopener noreferrer")
    return str(self.renderToken(tokens, place, options, env))


@lru_cache(maxsize=1)
def _any() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True})
