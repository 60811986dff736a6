"""The labels of the widgets, in English and Chinese."""

from __future__ import annotations

from typing import Dict

from qwenlib.errors import Refused

WORDS: Dict[str, Dict[str, str]] = {
    "en": {
        "prompt": "Prompt",
        "placeholder": "Type a question, then press Answer",
        "models": "Models",
        "answer": "Answer",
        "stop": "Stop",
        "loading": "loading the model …",
        "figures": "{answer_tokens} tokens in {seconds:.1f} s, {speed:.0f} tokens/s",
        "choose": "Choose at least one model.",
        "empty": "Type a question first.",
        "row": "Row",
        "tokens": "token by token",
        "headless": "No front end here: the table above is what the widget would show. Open this notebook in "
        "JupyterLab to try prompts of your own.",
    },
    "zh": {
        "prompt": "提示词",
        "placeholder": "输入问题，然后点“回答”",
        "models": "模型",
        "answer": "回答",
        "stop": "停止",
        "loading": "正在加载模型……",
        "figures": "{answer_tokens} 个词元，{seconds:.1f} 秒，每秒 {speed:.0f} 个",
        "choose": "请至少选择一个模型。",
        "empty": "请先输入问题。",
        "row": "行",
        "tokens": "逐个词元",
        "headless": "这里没有前端：上面的表格就是控件会显示的内容。在 JupyterLab 中打开本笔记本即可输入自己的提示词。",
    },
}


def words(lang: str) -> Dict[str, str]:
    """The labels of one language.

    Raises:
        Refused: a language without labels.
    """
    if lang not in WORDS:
        raise Refused(f"lang must be one of {', '.join(WORDS)}, found {lang!r}.")
    return WORDS[lang]
