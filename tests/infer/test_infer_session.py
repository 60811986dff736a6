"""Talking to a real MindFormers process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import psutil
import pytest
from micro import LOOP, SENTENCE, SETTINGS, Micro

from qwenlib import infer
from qwenlib.engine.answer import Request
from qwenlib.errors import WorkFailed

pytestmark = pytest.mark.stack

PROMPTS = ["The ", "An iris has", "你好", "Write a poem about", "1 + 1 =", "a", "\n\n", "Paris is the capital of", "🙂"]
MORE = 24
"""Questions of the shipped sample that are asked besides, as ChatML."""


@pytest.fixture(scope="module")
def base(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Iterator[infer.Session]:
    """The micro base: it knows no language, but every logit of it."""
    with infer.Session(
        micro.profile, load_checkpoint=micro.model_dir, run_dir=tmp_path_factory.mktemp("base"), **micro.files
    ) as session:
        yield session


@pytest.fixture(scope="module")
def speaker(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Iterator[infer.Session]:
    """A network of which every answer is known."""
    with infer.Session(
        micro.profile,
        load_checkpoint=micro.speaker(),
        run_dir=tmp_path_factory.mktemp("speaker"),
        name="speaker",
        **micro.files,
    ) as session:
        session.wait_ready()
        yield session


def ask(session: infer.Session, text: str, **settings: Any) -> Dict[str, Any]:
    """An answer, with its ``pieces``."""
    pieces: List[str] = []
    settings.setdefault("send_seconds", 0.0)
    return {**session.ask(text, on_text=pieces.append, **settings), "pieces": pieces}


@pytest.fixture(scope="module")
def greedy(micro: Micro) -> Dict[str, Dict[str, Any]]:
    """What transformers answers greedily to PROMPTS and MORE questions, with the same weights in float32."""
    import torch
    from transformers import Qwen2ForCausalLM

    from qwenlib import data
    from qwenlib.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(**micro.files)
    network = Qwen2ForCausalLM.from_pretrained(str(micro.hf), torch_dtype=torch.float32, local_files_only=True).eval()
    stops = [tokenizer.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>")]
    questions = [item["prompt"] for item in data.prompts(micro.messages, MORE)]
    found = {}
    for prompt in [*PROMPTS, *(infer.chat_prompt(question) for question in questions)]:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        theirs = network.generate(
            ids, max_new_tokens=24, do_sample=False, use_cache=True, eos_token_id=stops, pad_token_id=stops[1]
        )[0, ids.shape[1] :].tolist()
        ended = bool(theirs) and theirs[-1] in stops
        found[prompt] = {
            "text": tokenizer.decode(theirs[:-1] if ended else theirs, skip_special_tokens=False),
            "finish": "stop" if ended else "length",
            "prompt_tokens": ids.shape[1],
            "answer_tokens": len(theirs) - ended,
        }
    assert len(found) >= 32
    return found


def test_greedy_answers_are_those_of_transformers(base: infer.Session, greedy: Dict[str, Dict[str, Any]]) -> None:
    for prompt, theirs in greedy.items():
        ours = base.ask(prompt, chat=False, max_new_tokens=24)
        assert {key: ours[key] for key in theirs} == theirs


def test_greedy_answers_are_those_of_transformers_without_the_cache_too(
    micro: Micro, greedy: Dict[str, Dict[str, Any]], tmp_path: Path
) -> None:
    with infer.Session(
        micro.profile, load_checkpoint=micro.model_dir, run_dir=tmp_path, use_past=False, **micro.files
    ) as session:
        for prompt, theirs in greedy.items():
            ours = session.ask(prompt, chat=False, max_new_tokens=24)
            assert {key: ours[key] for key in theirs} == theirs
        assert json.loads((tmp_path / "job.json").read_text())["config"]["model"]["model_config"]["use_past"] is False


def drawn(session: infer.Session, **settings: Any) -> str:
    """A sampled answer to the same two words."""
    hot = {"do_sample": True, "temperature": 2.0, "top_p": 1.0, "top_k": 0, **settings}
    return str(session.ask("The", chat=False, max_new_tokens=16, **hot)["text"])


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(base: infer.Session) -> None:
    first = drawn(base, seed=1)
    base.ask("Something else in between", chat=False, do_sample=True, seed=5)
    assert drawn(base, seed=1) == first
    assert len({drawn(base, seed=seed) for seed in range(4)}) == 4


def test_every_setting_of_sampling_does_what_it_says(base: infer.Session) -> None:
    greedy = base.ask("The", chat=False, max_new_tokens=16)["text"]
    assert all(drawn(base, seed=seed, top_k=1) == greedy for seed in range(3)), "the one most likely token"
    assert all(drawn(base, seed=seed, top_p=1e-6) == greedy for seed in range(3)), "the smallest nucleus"
    assert all(drawn(base, seed=seed, temperature=1e-3) == greedy for seed in range(3)), "as good as frozen"
    assert drawn(base, seed=1) != greedy


def test_a_repetition_penalty_keeps_the_model_from_saying_it_again(base: infer.Session) -> None:
    def repeated(penalty: float) -> int:
        settings = {"chat": False, "max_new_tokens": 40, "repetition_penalty": penalty, "stop": ["<|im_start|>"]}
        pieces = [piece for piece in ask(base, "The iris", **settings)["pieces"] if piece]  # a token each
        assert len(pieces) > 20
        return len(pieces) - len(set(pieces))

    assert repeated(1.0) > 5 and repeated(1e6) == 0


def test_the_profile_gives_the_settings_that_are_not_given(base: infer.Session, micro: Micro) -> None:
    assert micro.profile.predict is not None
    answer = base.ask("The", chat=False)
    assert answer["answer_tokens"] == micro.profile.predict.max_new_tokens == 12


def test_an_answer_streams_in_whole_characters_and_ends_at_its_stop_token(speaker: infer.Session) -> None:
    answer = ask(speaker, "Hello")
    assert answer["pieces"] == list(SENTENCE), "characters of 4, 2, 3 and 1 tokens"
    assert "".join(answer["pieces"]) == answer["text"] == SENTENCE
    assert (answer["finish"], answer["answer_tokens"], answer["cut_tokens"]) == ("stop", 10, 0)
    assert answer["prompt"] == infer.chat_prompt("Hello")
    assert 0 < answer["first_token_seconds"] <= answer["seconds"] < 60


def test_text_is_sent_on_a_hundred_times_a_second_at_most(speaker: infer.Session) -> None:
    answer = ask(speaker, "x", chat=False, max_new_tokens=120, send_seconds=Request("x").send_seconds)
    assert answer["text"] == "".join(answer["pieces"]) == "yx" * 60
    assert 1 < len(answer["pieces"]) <= 2 + answer["seconds"] / 0.01


def test_a_conversation_is_answered_and_its_oldest_exchanges_go_when_it_outgrows_the_context(
    speaker: infer.Session, micro: Micro
) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "x"}]
    pieces: List[str] = []
    answer = speaker.chat(messages, on_text=pieces.append)
    assert "".join(pieces) == answer["text"] == SENTENCE and answer["dropped_turns"] == 0
    assert answer["prompt"] == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    for number in range(6):
        messages += [{"role": "assistant", "content": answer["text"]}, {"role": "user", "content": f"again {number}"}]
    seen = speaker.sees(messages)
    answer = speaker.chat(messages)
    assert answer["text"] == SENTENCE and 0 < answer["dropped_turns"] == seen.dropped_turns < 6
    assert answer["prompt"] == seen.prompt and answer["prompt_tokens"] == seen.tokens, "counted as the engine counts"
    assert seen.tokens + 12 <= micro.profile.data.seq_length and answer["cut_tokens"] == 0


def test_text_is_continued_as_it_stands_without_chat(speaker: infer.Session) -> None:
    answer = ask(speaker, "x", chat=False, max_new_tokens=9)
    assert answer["prompt"] == "x" and answer["prompt_tokens"] == 1
    assert answer["text"] == "".join(answer["pieces"]) == "yxyxyxyxy" and answer["finish"] == "length"


def test_stop_ends_the_answer(speaker: infer.Session) -> None:
    for _ in range(20):  # an answer takes a fifth of a second: on a busy machine it may end before it is stopped
        pieces: List[str] = []
        answer = speaker.ask(
            "x",
            chat=False,
            max_new_tokens=120,
            on_text=pieces.append,
            stopped=lambda said=pieces: len(said) >= 3,
        )
        if answer["finish"] == "asked":
            break
    assert answer["finish"] == "asked" and 3 <= answer["answer_tokens"] < 120
    assert answer["text"] == "".join(pieces) == ("yx" * 60)[: answer["answer_tokens"]]
    assert ask(speaker, "Hello")["text"] == SENTENCE, "the next answer is whole again"


def test_stop_works_while_no_whole_character_has_come(speaker: infer.Session) -> None:
    for _ in range(20):
        answer = speaker.ask("q", chat=False, max_new_tokens=120, stopped=lambda: True)
        if answer["finish"] == "asked":
            break
    assert answer["finish"] == "asked" and answer["answer_tokens"] < 120


def test_a_stop_that_comes_together_with_its_question_is_heard(speaker: infer.Session) -> None:
    """As when somebody presses stop while the model is still being loaded."""
    question = {"prompt": "x", "max_new_tokens": 120}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(speaker._socket))
        connection.sendall(json.dumps(question).encode() + b'\n{"stop": true}\n')
        with connection.makefile("rb") as lines:
            done = next(message["done"] for message in map(json.loads, lines) if "done" in message)
    assert (done["finish"], done["answer_tokens"], done["text"]) == ("asked", 1, "y")
    assert ask(speaker, "Hello")["text"] == SENTENCE, "the next answer is whole"


def test_bytes_that_never_make_a_character_are_shown_as_such_at_the_end(speaker: infer.Session) -> None:
    answer = ask(speaker, "q", chat=False, max_new_tokens=5)
    assert "".join(answer["pieces"]) == answer["text"] == "\ufffd" * 5


def test_a_stop_text_of_one_s_own(speaker: infer.Session) -> None:
    assert ask(speaker, "x", chat=False, stop=["x"])["text"] == "y"


def test_a_prompt_that_is_too_long_loses_its_beginning_and_says_so(speaker: infer.Session, micro: Micro) -> None:
    answer = ask(speaker, LOOP * 100, chat=False)
    assert (answer["prompt_tokens"], answer["cut_tokens"]) == (200, 200 - (micro.profile.data.seq_length - 1))
    assert answer["answer_tokens"] == 1 and answer["text"] == "x"


def test_an_answer_never_outgrows_the_sequence(speaker: infer.Session, micro: Micro) -> None:
    answer = ask(speaker, "x", chat=False, max_new_tokens=10_000)
    assert answer["prompt_tokens"] + answer["answer_tokens"] == micro.profile.data.seq_length


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("", {}, "the prompt is empty"),
        ("x<|endoftext|>", {}, "the prompt ends with <.endoftext.>, which MindFormers takes for padding"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens must be at least 1, found 0"),
        ("x", {"temprature": 1.0}, "temprature"),
        ("x", {"stop": ["x y"]}, "stop: 'x y' is not one token"),
        ("x", {"do_sample": True, "seed": -1}, "Seed must be between"),
        ("x", {"do_sample": True, "temperature": "hot"}, "."),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_and_the_next_one_is(
    speaker: infer.Session, text: str, settings: Dict[str, Any], said: str
) -> None:
    with pytest.raises(WorkFailed, match=f"speaker could not answer: .*{said}"):
        speaker.ask(text, chat=False, **settings)
    assert speaker.alive and ask(speaker, "Hello")["text"] == SENTENCE


def test_an_asker_that_goes_away_takes_nothing_along(speaker: infer.Session) -> None:
    class Gone(Exception):
        pass

    def on_text(piece: str) -> None:
        raise Gone

    for _ in range(2):
        with pytest.raises(Gone):
            speaker.ask("x", chat=False, max_new_tokens=120, on_text=on_text)
    assert ask(speaker, "Hello")["text"] == SENTENCE


def test_several_models_answer_the_same_prompts_side_by_side(speaker: infer.Session) -> None:
    prompts = [{"prompt": "Hello", "answer": SENTENCE}, {"prompt": "Bye", "answer": ""}]
    table = infer.compare({"one": speaker, "two": speaker}, prompts, max_new_tokens=10)
    assert list(table.columns) == ["prompt", "expected", "one", "two"]
    assert table["one"].tolist() == table["two"].tolist() == [SENTENCE, SENTENCE]
    assert infer.exact_match(table)["one"] == {"right": 1, "of": 1, "share": 1.0}


def processes_of(run_dir: Path) -> List[psutil.Process]:
    """Every process whose command line names the run directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(run_dir) in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_closing_leaves_no_process_and_no_folder_and_is_told_when_asked_again(micro: Micro, tmp_path: Path) -> None:
    session = infer.Session(micro.profile, load_checkpoint=micro.model_dir, run_dir=tmp_path, **micro.files)
    assert session.alive and processes_of(tmp_path)
    session.close()
    session.close()
    assert not session.alive and processes_of(tmp_path) == [] and not session._folder.exists()
    with pytest.raises(WorkFailed, match="model is closed; open it again"):
        session.ask("x")


def test_a_program_that_ends_without_closing_leaves_no_process_and_no_folder(micro: Micro, tmp_path: Path) -> None:
    code = (
        "import json, sys, tempfile\nfrom qwenlib import infer, profile\n"
        "tempfile.tempdir, hf, checkpoint, run_dir, settings = sys.argv[1:]\n"
        "prof = profile.load('smoke', json.loads(settings))\n"
        "files = {'vocab_file': hf + '/vocab.json', 'merges_file': hf + '/merges.txt'}\n"
        "session = infer.Session(prof, load_checkpoint=checkpoint, run_dir=run_dir, **files)\n"
        "assert session.alive and session._folder.exists()"
    )
    (tmp_path / "temporary").mkdir()
    paths = [tmp_path / "temporary", micro.hf, micro.model_dir, tmp_path / "run"]
    subprocess.run(
        [sys.executable, "-c", code, *map(str, paths), json.dumps(SETTINGS)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(infer.__file__).parents[2])},
    )
    deadline = time.monotonic() + 60
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(tmp_path) == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_process_that_was_killed_is_told_in_a_sentence(speaker: infer.Session) -> None:
    """The last test of this file: the session is dead after it."""
    (rank,) = speaker._run.poll()["ranks"]

    def on_text(piece: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank["pid"], signal.SIGKILL)

    with pytest.raises(WorkFailed, match="rank 0 was killed by SIGKILL"):
        speaker.ask("x", chat=False, max_new_tokens=120, on_text=on_text)
    assert not speaker.alive
    with pytest.raises(WorkFailed, match="rank 0 was killed by SIGKILL"):
        speaker.ask("x")
