"""How the chat looks: HTML of its turns, its style sheet, and the few lines of script for the Enter key.

The page works without the script (a front end that does not trust the notebook runs none): then Enter begins a line
and the button sends. That the kernel was restarted, ipywidgets itself tells by a class on the widget. Of one that was
shut down it tells nothing: there JupyterLab's own sign in the toolbar does ("unknown": no kernel). The rest is style.
"""

from __future__ import annotations

import html
from typing import Mapping

from qwenlib.ui.conversation import Answer, Turn
from qwenlib.ui.markdown import to_html

SENT = "\x1e"
"""Between the text that the script sends and a number, which makes the same text twice two values."""

STYLE = """<style>
.qwenlib-chat { border: 1px solid var(--jp-border-color2, #ccc); border-radius: 6px; padding: 8px }
.qwenlib-chat .qwenlib-user { margin: 4px 4px 4px 15%; padding: 6px 10px; border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; line-height: 1.45; background: #e3f2fd; color: #0d2a44 }
.qwenlib-chat .qwenlib-answers { display: flex; gap: 8px }
.qwenlib-chat .qwenlib-answer { flex: 1 1 0; min-width: 0; margin: 4px; padding: 6px 10px; border-radius: 8px;
  overflow-wrap: anywhere; line-height: 1.45; background: var(--jp-layout-color2, #eee);
  color: var(--jp-ui-font-color1, #222) }
.qwenlib-chat .qwenlib-answer p, .qwenlib-chat .qwenlib-answer pre { margin: 4px 0 }
.qwenlib-chat .qwenlib-answer ul, .qwenlib-chat .qwenlib-answer ol { margin: 4px 0; padding-left: 1.6em }
.qwenlib-chat .qwenlib-answer h1, .qwenlib-chat .qwenlib-answer h2, .qwenlib-chat .qwenlib-answer h3 {
  font-size: 110%; margin: 6px 0 }
.qwenlib-chat .qwenlib-answer pre { padding: 6px 8px; overflow-x: auto; white-space: pre; border-radius: 4px;
  line-height: 1.35; background: var(--jp-layout-color0, #fff); border: 1px solid var(--jp-border-color2, #ccc) }
.qwenlib-chat .qwenlib-answer code { font-family: var(--jp-code-font-family, monospace); font-size: 95% }
.qwenlib-chat .qwenlib-answer table { border-collapse: collapse }
.qwenlib-chat .qwenlib-answer td, .qwenlib-chat .qwenlib-answer th {
  padding: 2px 8px; border: 1px solid var(--jp-border-color2, #ccc) }
.qwenlib-chat .qwenlib-note, .qwenlib-chat details { font-size: 85%; line-height: 1.4;
  color: var(--jp-ui-font-color2, #666) }
.qwenlib-chat details pre { max-height: 12em; overflow: auto; white-space: pre-wrap !important }
.qwenlib-chat .qwenlib-sent, .qwenlib-chat .qwenlib-gone { display: none }
.qwenlib-chat.jupyter-widgets-disconnected .qwenlib-live { display: none }
.qwenlib-chat.jupyter-widgets-disconnected .qwenlib-gone { display: block; font-weight: bold; padding: 4px 0 }
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator[data-status="unknown"]) .qwenlib-live { display: none }
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator[data-status="unknown"]) .qwenlib-gone {
  display: block; font-weight: bold; padding: 4px 0 }
.qwenlib-chat.jupyter-widgets-disconnected::before,
.qwenlib-chat .jupyter-widgets-disconnected::before { display: none }
</style>"""

_KEYS = """<script>
(() => {
  if (window.qwenlibKeys) { return }
  window.qwenlibKeys = true
  const send = chat => {
    const box = chat.querySelector('.qwenlib-prompt textarea')
    const sent = chat.querySelector('.qwenlib-sent textarea')
    if (!box || !sent || !box.value.trim() || chat.querySelector('.qwenlib-send').disabled) { return false }
    sent.value = box.value + '\\u001e' + Date.now()
    sent.dispatchEvent(new Event('input', { bubbles: true }))
    box.value = ''
    box.dispatchEvent(new Event('input', { bubbles: true }))
    return true
  }
  window.addEventListener('keydown', event => {
    if (event.key !== 'Enter' || !event.target.matches?.('.qwenlib-prompt textarea')) { return }
    event.stopPropagation()
    if (event.shiftKey || event.isComposing || event.keyCode === 229) { return }
    event.preventDefault()
    send(event.target.closest('.qwenlib-chat'))
  }, true)
  window.addEventListener('click', event => {
    const button = event.target.closest?.('.qwenlib-send')
    if (button && send(button.closest('.qwenlib-chat'))) { event.stopPropagation() }
  }, true)
})()
</script>"""

_HIDE = """<style>
.jp-OutputArea-child:has(.qwenlib-notice):has(+ .jp-OutputArea-child .qwenlib-chat) { display: none }
.jp-OutputArea-child:has(.qwenlib-notice) + .jp-OutputArea-child:not(:has(.qwenlib-chat)) { display: none }
</style>"""


def notice_html(sentence: str) -> str:
    """What stands in the notebook where the panel was: ``sentence``, hidden as long as there is a panel below it.

    With it comes the script: Enter sends, Shift+Enter begins a new line; Enter that ends the input of Chinese does
    neither.
    """
    return f'<div class="qwenlib-notice">{html.escape(sentence)}</div>{_HIDE}{_KEYS}'


def gone_html(sentence: str) -> str:
    """The style sheet, and what is shown in place of the controls when the kernel is gone."""
    return f'{STYLE}<div role="status" style="line-height: 1.4">{html.escape(sentence)}</div>'


def turn_html(turn: Turn, label: Mapping[str, str]) -> str:
    """A question and its answers beside each other; what a model says is Markdown without HTML of its own."""
    answers = "".join(_answer(name, answer, label) for name, answer in turn.answers.items())
    user = f'<div class="qwenlib-user">{html.escape(turn.user)}</div>'
    return f'{user}<div class="qwenlib-answers" role="log">{answers}</div>'


def _answer(name: str, answer: Answer, label: Mapping[str, str]) -> str:
    parts = [f"<b>{html.escape(name)}</b>", to_html(answer.text)]
    if answer.note:
        parts.append(f'<div class="qwenlib-note">{html.escape(answer.note)}</div>')
    if answer.figures.get("prompt"):
        seen = html.escape(label["seen"].format(**answer.figures))
        parts.append(
            f"<details><summary>{seen}</summary><pre>{html.escape(str(answer.figures['prompt']))}</pre></details>"
        )
    return f'<div class="qwenlib-answer">{"".join(parts)}</div>'
