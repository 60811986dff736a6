"""Tables of figures, as people read them."""

from __future__ import annotations

import pytest

pytest.importorskip("pandas")

from qwenlib.ui import facts


def test_a_mapping_is_told_row_by_row() -> None:
    shown = facts(
        {
            "parameters": 658816,
            "max_abs_diff": 9.5367431640625e-06,
            "tokens_per_second": 19468.5984,
            "argmax_equal": True,
            "clamped": {},
            "none": None,
            "sizes": {"hidden_size": 128, "names": ["a", "b"]},
            "checkpoint": "/a/b.ckpt",
            "scale": 0,
        }
    )
    assert list(shown) == ["value"]
    assert dict(shown["value"]) == {
        "parameters": "658,816",
        "max_abs_diff": "9.537e-06",
        "tokens_per_second": "19,469",
        "argmax_equal": "yes",
        "clamped": "none",
        "none": "none",
        "sizes: hidden_size": "128",
        "sizes: names": "['a', 'b']",
        "checkpoint": "/a/b.ckpt",
        "scale": "0",
    }


def test_nothing_is_an_empty_table() -> None:
    assert facts({}, "bytes").empty and list(facts({}, "bytes")) == ["bytes"]
