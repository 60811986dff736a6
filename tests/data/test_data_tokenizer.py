"""The tokenizer against transformers', and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qwenlib.data.sample import sample_path
from qwenlib.data.texts import plain_texts
from qwenlib.errors import Refused

pytest.importorskip("tokenizers")

from qwenlib.data.tokenizer import (
    SPECIAL_TOKENS,
    encode_plain,
    load_tokenizer,
    special_ids,
    train_tokenizer,
)

ODD = [
    "",
    " ",
    "e\u0301\u212b",
    "\n\n  \t x\r\n",
    "I'LL don't ſ",
    "1234٣",
    "🙂👩‍👩‍👧 汉字ｶﾞ",
    "\u200b\u3000\ufeff",
    "a\x00b",
    "if x:\n\treturn 1  # x",
]


@pytest.fixture(scope="module")
def slow(vocabulary: Path) -> Any:
    """transformers' Qwen2Tokenizer."""
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer.from_pretrained(str(vocabulary))


@pytest.mark.stack
def test_the_sample_and_odd_texts_have_transformers_ids(vocabulary: Path, tokenizer: Any, slow: Any) -> None:
    from transformers import Qwen2TokenizerFast

    fast = Qwen2TokenizerFast.from_pretrained(str(vocabulary))
    for text in [*plain_texts(sample_path()), *ODD, "<|im_start|>user\nHi<|im_end|>\n"]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == slow(text).input_ids == fast(text).input_ids


@pytest.mark.stack
@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40))
@example("\u0958\u0344")
def test_any_text_has_transformers_ids(tokenizer: Any, slow: Any, text: str) -> None:
    assume(not any(token in text for token in SPECIAL_TOKENS))
    assert tokenizer.encode(text, add_special_tokens=False).ids == slow(text).input_ids
    assert encode_plain(tokenizer, [text]) == [slow(text).input_ids]


@pytest.mark.stack
def test_the_trained_folder_is_a_whole_tokenizer_for_transformers(vocabulary: Path, slow: Any) -> None:
    from transformers import AutoTokenizer

    automatic = AutoTokenizer.from_pretrained(str(vocabulary))
    for found in (slow, automatic):
        assert [found.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [1021, 1022, 1023]
        assert (found.eos_token, found.pad_token, found.bos_token) == ("<|endoftext|>", "<|endoftext|>", None)
        assert found.model_max_length == 32768


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_decoding_gives_the_nfc_text_back(tokenizer: Any, text: str) -> None:
    import unicodedata

    (ids,) = encode_plain(tokenizer, [text])
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_control_tokens_follow_the_base_vocabulary(tokenizer: Any) -> None:
    assert special_ids(tokenizer) == dict(zip(SPECIAL_TOKENS, (1021, 1022, 1023)))
    assert tokenizer.get_vocab_size(with_added_tokens=False) == 1021
    assert tokenizer.encode("a<|im_end|>").ids[-1] == 1023


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_spelled_control_token_is_plain_text(tokenizer: Any, token: str) -> None:
    (ids,) = encode_plain(tokenizer, [f"a{token}b"])
    assert max(ids) < 1021
    assert tokenizer.decode(ids) == f"a{token}b"


def test_training_twice_gives_the_same_files(vocabulary: Path, tmp_path: Path) -> None:
    again = train_tokenizer(plain_texts(sample_path()), 1024, tmp_path / "again")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (vocabulary / name).read_bytes()


def test_too_little_text_or_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="too few for vocab_size 400"):
        train_tokenizer(["abc"], 400, tmp_path)
    with pytest.raises(Refused, match="at least 259"):
        train_tokenizer(["abc"], 258, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_merge_that_begins_with_a_hash_is_no_comment(tmp_path: Path) -> None:
    train_tokenizer(["## a ## b ## c"] * 5, 262, tmp_path)
    assert "\n# #\n" in (tmp_path / "merges.txt").read_text(encoding="utf-8")
    made = load_tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert "##" in made.encode("## x").tokens[0]


def _vocab(change: Callable[[Dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "vocab.json"
        entries = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(entries) or entries), encoding="utf-8")

    return damage


def _merges(line: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with open(folder / "merges.txt", "a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "vocab.json").unlink(), "there is no vocabulary file"),
        (lambda folder: (folder / "merges.txt").unlink(), "there is no merges file"),
        (lambda folder: (folder / "vocab.json").write_text("{\n"), "line 2, column 1: not JSON"),
        (lambda folder: (folder / "merges.txt").write_bytes(b"\xff"), "merges.txt is not UTF-8"),
        (_vocab(lambda entries: [1]), "found list"),
        (_vocab(lambda entries: entries.update(a="x")), "must have a whole number as its id, found 'x'"),
        (_vocab(lambda entries: entries.update(a=5)), "id 5 is given twice"),
        (_vocab(lambda entries: entries.update(a=5000)), "is missing"),
        (
            _vocab(lambda entries: entries.update({"<|im_end|>": len(entries)})),
            "control token <|im_end|> is in the base",
        ),
        (_vocab(lambda entries: {str(number): number for number in range(300)}), "no byte-level BPE"),
        (_merges("a"), "merges.txt, line 767: a merge is two tokens"),
        (_merges("a b c"), "line 767: a merge is two tokens"),
        (_merges("zz qq"), "line 767: 'zz' is not in"),
        (_merges("t h"), "was given before"),
    ],
)
def test_malformed_files_are_refused_by_name(
    vocabulary: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(vocabulary, folder)
    damage(folder)
    with pytest.raises(Refused) as caught:
        load_tokenizer(folder / "vocab.json", folder / "merges.txt")
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)
