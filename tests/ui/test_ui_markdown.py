"""What a model may write: read as a browser reads it, by an HTML parser, never by searching the text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("markdown_it")
from qwenlib.ui.markdown import is_plain, to_html

TAGS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "pre", "code", "em", "strong", "a", "br", "hr"}
TAGS |= {"blockquote", "table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"a": {"href", "title", "target", "rel"}, "code": {"class"}, "ol": {"start"}, "th": {"style"}}


class Page(HTMLParser):
    """The elements and the text of a piece of HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", {}))

    def handle_decl(self, decl: str) -> None:
        self.elements.append(("declaration", {}))

    def handle_pi(self, data: str) -> None:
        self.elements.append(("instruction", {}))


def check(text: str) -> Page:
    page = Page(to_html(text))
    for tag, attributes in page.elements:
        assert tag in TAGS, tag
        assert set(attributes) <= ATTRIBUTES.get(tag, {"style"} if tag == "td" else set()), (tag, attributes)
        if tag == "a":
            assert str(attributes["href"]).lower().startswith(("http://", "https://", "mailto:"))
            assert attributes["rel"] == "noopener noreferrer" and attributes["target"] == "_blank"
        if "style" in attributes:
            assert attributes["style"] in ("text-align:left", "text-align:right", "text-align:center")
    return page


HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<svg/onload=alert(1)>",
    "<!-- a --><?php ?><!DOCTYPE html>",
    "[a](javascript:alert(1)) [b](JaVaScRiPt&colon;alert(1)) [c](data:text/html,<script>1</script>) [d](vbscript:1)",
    "![p](http://tracker/p.png) ![p][1]\n\n[1]: http://tracker/q.png",
    '[a](http://x "<script>\\" onmouseover=alert(1)")',
    '[a](<http://x" onmouseover="alert(1)>)',
    '```py"><img src=x onerror=alert(1)>\n</code></pre><script>1</script>\n```',
    '<javascript:alert(1)> <http://x/"onclick=alert(1)>',
    "| <b>a</b> | b |\n|:-|-:|\n| <img src=x onerror=1> | `</td><script>` |",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62;",
    "[x]: javascript:alert(1)\n\n[x]",
    "a\x00<scr\x00ipt>alert(1)</script>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    check(text)


PIECES = [*HOSTILE, "`", "```\n", "[", "](", ")", "<", ">", "\n", "|", "&", '"', "\\"]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=12))
def test_no_mixture_of_them_becomes_an_element_either(parts: List[str]) -> None:
    check("".join(parts))


def test_what_is_shown_of_a_script_is_its_text() -> None:
    assert check("<script>alert(1)</script>").text.strip() == "<script>alert(1)</script>"


def test_markdown_is_shown_as_such() -> None:
    text = "# Title\n\nsome **bold** `code`\n\n```python\nif a < b:\n    pass\n```\n\n- one\n- [two](https://a.b)\n\n|a|b|\n|-|-|\n|1|2|"
    page = check(text)
    assert {tag for tag, _ in page.elements} >= {"h1", "strong", "code", "pre", "ul", "li", "a", "table", "td"}
    assert "if a < b:\n    pass\n" in page.text


@pytest.mark.parametrize("text", ["", "plain", "# h\n\n- a\n- `b`", "```\nclosed <b>\n```", "1 < 2", "中文"])
def test_plain_texts(text: str) -> None:
    assert is_plain(text)


@pytest.mark.parametrize("text", ["```\nopen", "<b>x</b>", "a ![i](http://x)", "<!-- ", "~~~py\nx\n```", "<div>\nx"])
def test_texts_that_would_load_run_or_swallow_something(text: str) -> None:
    assert not is_plain(text)
