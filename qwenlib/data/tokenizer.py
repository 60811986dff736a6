"""Qwen1.5's tokenizer: byte-level BPE from ``vocab.json`` and ``merges.txt``, and the training of a small one.

Same ids as transformers' ``Qwen2Tokenizer`` and as upstream's (MindFormers r1.0.a, ``qwen1_5_tokenizer.py``): text is
NFC-normalized, cut by Qwen2's pattern, and merged byte by byte. The control tokens are no part of the base vocabulary;
they take the ids directly behind it, which makes 151643, 151644 and 151645 with Qwen1.5's own files.

One difference is meant: upstream, and the slow class of transformers 4.37, take every line of merges.txt that begins
with "#" for a comment and so never make "##" one token, as the model was trained. Here only the version line is one,
as in transformers' own ``tokenizer.json`` for Qwen1.5.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Set, Tuple, Union

from qwenlib.errors import Refused
from qwenlib.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PathLike = Union[str, Path]

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
"""Control tokens, in the order of their ids. ``<|endoftext|>`` is also the padding."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where text is cut before merging (Hugging Face ``Qwen2Tokenizer``); each digit stands alone."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Plain ChatML as in MindFormers; Hugging Face's template for Qwen1.5 would add a system message where none is."""

MODEL_MAX_LENGTH = 32768
BYTES = 256


def load_tokenizer(vocab_file: PathLike, merges_file: PathLike) -> Tokenizer:
    """The fast tokenizer (``tokenizers.Tokenizer``) of a pair of vocabulary files.

    Raises:
        Refused: a file is missing or malformed (with path and line), ids have gaps, or a merge does not fit the
            vocabulary; or the package ``tokenizers`` is not installed.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise Refused("tokenizing needs the package tokenizers, which is not installed: pip install 'qwenlib[data]'")
    vocabulary = read_vocabulary(vocab_file)
    merges = _read_merges(Path(merges_file), vocabulary, Path(vocab_file))
    return _tokenizer(vocabulary, merges)


def read_vocabulary(vocab_file: PathLike) -> Dict[str, int]:
    """``vocab.json`` as ``{token: id}``, checked: ids 0..n-1 once each, all 256 bytes, no control token inside.

    Raises:
        Refused: as above, naming the file and the first offending entry.
    """
    path = Path(vocab_file)
    vocabulary = _read_vocab_json(path)
    seen: Dict[int, str] = {}
    for token, number in vocabulary.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise Refused(f"{path}: token {token!r} must have a whole number as its id, found {number!r}.")
        if number in seen:
            raise Refused(f"{path}: id {number} is given twice, to {seen[number]!r} and to {token!r}.")
        seen[number] = token
    gap = next((number for number in range(len(vocabulary)) if number not in seen), None)
    if gap is not None:
        raise Refused(f"{path}: ids must run from 0 to {len(vocabulary) - 1}, but id {gap} is missing.")
    for token in SPECIAL_TOKENS:
        if token in vocabulary:
            raise Refused(
                f"{path}: the control token {token} is in the base vocabulary (id {vocabulary[token]}). Give the "
                "vocab.json that ships with Qwen1.5, where control tokens follow behind it."
            )
    missing = next((symbol for symbol in _alphabet() if symbol not in vocabulary), None)
    if missing is not None:
        raise Refused(f"{path}: {missing!r}, one of the 256 byte symbols, is missing: no byte-level BPE vocabulary.")
    return vocabulary


def special_ids(tokenizer: Tokenizer) -> Dict[str, int]:
    """``{control token: id}``."""
    return {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}


def encode_plain(tokenizer: Tokenizer, texts: List[str]) -> List[List[int]]:
    """Ids of each text, in which a control token's spelling is ordinary text (``<|im_end|>`` becomes several tokens).

    Equal to ``tokenizer.encode`` for text without such spellings.
    """
    return [encoding.ids for encoding in plain(tokenizer).encode_batch(texts, add_special_tokens=False)]


def plain(tokenizer: Tokenizer, normalize: bool = True) -> Tokenizer:
    """A copy of ``tokenizer`` that knows no control tokens; without ``normalize``, for text that is NFC already."""
    from tokenizers import Tokenizer as Fast

    copy = Fast(tokenizer.model)
    if normalize:
        copy.normalizer = tokenizer.normalizer
    copy.pre_tokenizer = tokenizer.pre_tokenizer
    copy.decoder = tokenizer.decoder
    return copy


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: PathLike) -> Path:
    """Train a byte-level BPE on ``texts`` and write vocab.json, merges.txt and tokenizer_config.json into ``folder``.

    ``vocab_size`` counts the three control tokens: the base vocabulary has ``vocab_size - 3`` entries. The same texts
    give the same files.

    Raises:
        Refused: ``vocab_size`` is below 259, or the texts do not hold enough different pairs to fill it.
    """
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, trainers

    base = vocab_size - len(SPECIAL_TOKENS)
    if base < BYTES:
        raise Refused(f"vocab_size must be at least {BYTES + 3} (256 bytes and 3 control tokens), found {vocab_size}.")
    draft = Fast(models.BPE())
    _dress(draft)
    trainer = trainers.BpeTrainer(vocab_size=base, show_progress=False, initial_alphabet=sorted(_alphabet()))
    draft.train_from_iterator(texts, trainer)
    model = json.loads(draft.to_str())["model"]
    if len(model["vocab"]) != base:
        raise Refused(
            f"the texts are too few for vocab_size {vocab_size}: they give {len(model['vocab']) + 3} entries at most. "
            "Give more text or a smaller vocab_size."
        )
    folder = Path(folder)
    vocabulary = sorted(model["vocab"].items(), key=lambda item: item[1])
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    write_text(folder / "vocab.json", json.dumps(dict(vocabulary), ensure_ascii=False) + "\n")
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(base))
    return folder


def _tokenizer(vocabulary: Dict[str, int], merges: List[Tuple[str, str]]) -> Tokenizer:
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Fast

    tokenizer = Fast(models.BPE(vocab=vocabulary, merges=merges))
    _dress(tokenizer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _dress(tokenizer: Tokenizer) -> None:
    """Everything around the merges: normalizer, pre-tokenizer, decoder."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()


def _alphabet() -> List[str]:
    from tokenizers import pre_tokenizers

    return list(pre_tokenizers.ByteLevel.alphabet())


def _read_vocab_json(path: Path) -> Dict[str, Any]:
    if not path.is_file():
        raise Refused(f"there is no vocabulary file {path}. Give the vocab.json of the model's folder as vocab_file.")
    vocabulary = read_json(path)
    if not isinstance(vocabulary, dict) or not vocabulary:
        found = "an empty object" if vocabulary == {} else type(vocabulary).__name__
        raise Refused(f"{path}: vocab.json must be a JSON object of token: id, found {found}.")
    return vocabulary


def _read_merges(path: Path, vocabulary: Dict[str, int], vocab_file: Path) -> List[Tuple[str, str]]:
    """Pairs of merges.txt in order; blank lines and the ``#version`` line are skipped."""
    if not path.is_file():
        raise Refused(f"there is no merges file {path}. Give the merges.txt of the model's folder as merges_file.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text (byte {error.start}).") from None
    merges: List[Tuple[str, str]] = []
    seen: Set[Tuple[str, str]] = set()
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise Refused(f"{path}, line {number}: a merge is two tokens with one space between, found {line[:80]!r}.")
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise Refused(
                    f"{path}, line {number}: {token!r} is not in {vocab_file}: the files do not belong together."
                )
        if (left, right) in seen:
            raise Refused(f"{path}, line {number}: the merge {line!r} was given before.")
        seen.add((left, right))
        merges.append((left, right))
    return merges


def _tokenizer_config(base: int) -> Dict[str, Any]:
    """tokenizer_config.json the way Qwen1.5 ships it, for a base vocabulary of ``base`` entries."""
    added = {
        str(base + place): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for place, token in enumerate(SPECIAL_TOKENS)
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
