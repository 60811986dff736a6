"""The labels of the widgets, in English and Chinese."""

from __future__ import annotations

from typing import Dict

from qwenlib.errors import Refused

WORDS: Dict[str, Dict[str, str]] = {
    "en": {
        "conversation": "Conversation",
        "you": "You",
        "model": "Model",
        "compare": "Beside it",
        "nobody": "no other",
        "settings": "System prompt and settings",
        "system": "System prompt",
        "longest": "Longest answer (tokens)",
        "sample": "Draw tokens at random (off: always the likeliest)",
        "temperature": "Temperature (1: as trained)",
        "top_k": "Top k (tokens; 0: all)",
        "top_p": "Top p (share of probability)",
        "repetition": "Repetition penalty (factor; 1: none)",
        "seed": "Seed (0: a new one each time)",
        "default": ", default {value}",
        "defaults": "Back to the defaults",
        "placeholder": "Type a question. Enter sends, Shift+Enter begins a new line.",
        "send": "Send",
        "stop": "Stop",
        "again": "Answer again",
        "clear": "Clear",
        "keep": "Keep for training: {name}",
        "keep_hint": "Adds the conversation up to this answer to {path}",
        "json": "Save as JSON",
        "markdown": "Save as Markdown",
        "saved": "Saved {path}",
        "kept": "Added to {path}, which `qwenlib data build` reads.",
        "loading": "loading the model …",
        "waiting": "waits for its turn",
        "answering": "answering …",
        "figures": "{answer_tokens} tokens in {seconds:.1f} s, {speed:.0f} tokens/s, the first after {first:.2f} s",
        "seed_was": "seed {seed}",
        "finish_length": "ended at the longest answer or the end of the context",
        "finish_asked": "stopped",
        "dropped": "the {turns} oldest exchanges no longer fit and were left out",
        "cut": "the first {tokens} tokens of the prompt did not fit and were cut off",
        "seen": "What the model sees: {prompt_tokens} tokens",
        "empty": "Type a question first.",
        "nothing": "There is nothing to answer again, to keep or to save yet.",
        "busy": "An answer is on its way: wait for it, or stop it.",
        "notice": "The chat panel lives as long as the kernel of this notebook. "
        "Run the cells above and this one to have it (again).",
        "gone": "The kernel was restarted: this conversation can be read, but not go on. "
        "Run the cells above and this one again for a new one.",
        "column_prompt": "prompt",
        "column_model": "model",
        "column_answer": "answer",
        "column_tokens": "tokens",
        "column_seconds": "seconds",
        "column_speed": "tokens/s",
        "row": "Row",
        "tokens": "token by token",
        "headless": "No front end here. Open this notebook in JupyterLab to chat.",
    },
    "zh": {
        "conversation": "对话",
        "you": "你",
        "model": "模型",
        "compare": "并排对比",
        "nobody": "不对比",
        "settings": "系统提示词与参数",
        "system": "系统提示词",
        "longest": "回答最大长度（词元）",
        "sample": "随机采样（关闭：总取概率最大的词元）",
        "temperature": "温度（1：与训练时相同）",
        "top_k": "Top k（词元数；0：全部）",
        "top_p": "Top p（累积概率）",
        "repetition": "重复惩罚（倍数；1：无）",
        "seed": "随机种子（0：每次换新）",
        "default": "，默认 {value}",
        "defaults": "恢复默认值",
        "placeholder": "输入问题。Enter 发送，Shift+Enter 换行。",
        "send": "发送",
        "stop": "停止",
        "again": "重新回答",
        "clear": "清空",
        "keep": "留作训练数据：{name}",
        "keep_hint": "把到此回答为止的对话追加到 {path}",
        "json": "存为 JSON",
        "markdown": "存为 Markdown",
        "saved": "已保存 {path}",
        "kept": "已追加到 {path}，可由 `qwenlib data build` 读取。",
        "loading": "正在加载模型……",
        "waiting": "排队中",
        "answering": "正在回答……",
        "figures": "{answer_tokens} 个词元，{seconds:.1f} 秒，每秒 {speed:.0f} 个，首个词元 {first:.2f} 秒",
        "seed_was": "随机种子 {seed}",
        "finish_length": "到达最大长度或上下文末尾",
        "finish_asked": "已停止",
        "dropped": "最早的 {turns} 轮对话放不下，已略去",
        "cut": "提示词开头的 {tokens} 个词元放不下，已截去",
        "seen": "模型看到的内容：{prompt_tokens} 个词元",
        "empty": "请先输入问题。",
        "nothing": "还没有可以重新回答、保留或保存的内容。",
        "busy": "正在回答：请等待或先停止。",
        "notice": "聊天面板只在本笔记本的内核运行期间可用。运行上面的单元格和此单元格即可（重新）打开。",
        "gone": "内核已重启：这段对话可以阅读，但不能继续。重新运行上面的单元格和此单元格即可开始新的对话。",
        "column_prompt": "提示词",
        "column_model": "模型",
        "column_answer": "回答",
        "column_tokens": "词元数",
        "column_seconds": "秒",
        "column_speed": "词元/秒",
        "row": "行",
        "tokens": "逐个词元",
        "headless": "这里没有前端。在 JupyterLab 中打开本笔记本即可聊天。",
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
