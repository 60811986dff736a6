"""Qwen2Tokenizer for MindFormers 1.0: registered under the name that upstream's YAML asks for.

MindFormers' wheel does not carry ``research/``, where upstream keeps its class. Ours lets the fast tokenizer of
:mod:`qwenlib.data` do the byte-level BPE, so that data and generation share one tokenization.
"""

from __future__ import annotations

from typing import Any, ClassVar, Dict, List, Optional, Tuple

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def register() -> Any:
    """Define ``Qwen2Tokenizer`` (once) and return the class; the CPU patches must be applied before on a CPU."""
    from mindformers.models.base_tokenizer import AddedToken, Tokenizer
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    if MindFormerRegister.is_exist(MindFormerModuleType.TOKENIZER, "Qwen2Tokenizer"):
        return MindFormerRegister.get_cls(MindFormerModuleType.TOKENIZER, "Qwen2Tokenizer")

    @MindFormerRegister.register(MindFormerModuleType.TOKENIZER)
    class Qwen2Tokenizer(Tokenizer):  # type: ignore[misc]
        """Byte-level BPE of Qwen1.5; ids below ``vocab_size`` are the base vocabulary, three control tokens follow."""

        vocab_files_names: ClassVar[Dict[str, str]] = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
        model_input_names: ClassVar[List[str]] = ["input_ids", "attention_mask"]
        _support_list: ClassVar[List[str]] = []

        def __init__(
            self,
            vocab_file: str,
            merges_file: str,
            unk_token: str = END_OF_TEXT,
            eos_token: str = END_OF_TEXT,
            pad_token: str = END_OF_TEXT,
            bos_token: Optional[str] = None,
            **kwargs: Any,
        ):
            from qwenlib.data.tokenizer import load_tokenizer

            self.fast = load_tokenizer(vocab_file, merges_file)
            self._base = self.fast.get_vocab(with_added_tokens=False)
            controls = [AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, IM_START, IM_END)]
            self._added_tokens_decoder = {len(self._base) + place: token for place, token in enumerate(controls)}
            super().__init__(
                unk_token=unk_token,
                eos_token=eos_token,
                pad_token=pad_token,
                bos_token=bos_token,
                additional_special_tokens=[IM_START, IM_END],
                clean_up_tokenization_spaces=False,
                **kwargs,
            )

        @property
        def vocab_size(self) -> int:
            return len(self._base)

        def get_vocab(self) -> Dict[str, int]:
            return {**self._base, **self.added_tokens_encoder}

        def _tokenize(self, text: str, **kwargs: Any) -> List[str]:
            return list(self.fast.encode(text, add_special_tokens=False).tokens)

        def _convert_token_to_id(self, token: str) -> Optional[int]:
            found = self.fast.token_to_id(token)
            return found if found is None else int(found)

        def _convert_id_to_token(self, index: int) -> Optional[str]:
            found = self.fast.id_to_token(int(index))
            return found if found is None else str(found)

        def convert_tokens_to_string(self, tokens: List[str]) -> str:
            ids = [self.fast.token_to_id(token) for token in tokens]
            return str(self.fast.decode(ids, skip_special_tokens=False))

        def _decode(self, token_ids: List[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
            ids = [int(token) for token in token_ids]
            return str(self.fast.decode(ids, skip_special_tokens=skip_special_tokens))

        def save_vocabulary(self, save_directory: str, filename_prefix: Optional[str] = None) -> Tuple[str, ...]:
            return tuple(self.fast.model.save(save_directory, filename_prefix))

    return Qwen2Tokenizer
