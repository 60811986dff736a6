"""The models of a run that can be asked: base, LoRA and fully fine-tuned, each opened when first needed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Collection, Dict, Iterator, Mapping, Optional, Sequence, Type, Union

from qwenlib.infer import choose
from qwenlib.infer.choose import Choice
from qwenlib.infer.session import Session
from qwenlib.profile import Profile


class Models(Mapping[str, Session]):
    """``{"base": Session, "lora": Session, …}``; a session's process starts at the first look-up of its name.

    ``checkpoints``: ``{name: (path, adapter task or "")}``; ``raw``: names of base models, which know no ChatML.
    Closing ends every process; a name that is looked up again after that is loaded again.
    """

    def __init__(
        self,
        profile: Profile,
        checkpoints: Mapping[str, Any],
        *,
        vocab_file: Union[str, Path],
        merges_file: Union[str, Path],
        run_dir: Union[str, Path],
        raw: Collection[str] = ("base",),
    ):
        self._begin(
            {
                name: Choice(name, profile, path, vocab_file, merges_file, adapter_task, name in raw)
                for name, (path, adapter_task) in checkpoints.items()
            },
            run_dir,
        )

    @classmethod
    def of_run(
        cls, run_dir: Union[str, Path], *, folder: Union[str, Path], profile: str = "", settings: Sequence[str] = ()
    ) -> Models:
        """The models of a workbook run (:func:`qwenlib.infer.choose.of_run`); their processes work in ``folder``.

        Raises:
            Refused: see there.
        """
        models = cls.__new__(cls)
        models._begin(choose.of_run(run_dir, profile, settings), folder)
        return models

    def _begin(self, choices: Mapping[str, Choice], folder: Union[str, Path]) -> None:
        self.choices = dict(choices)
        """What each name stands for."""
        self._folder = Path(folder)
        self._open: Dict[str, Session] = {}

    def __getitem__(self, name: str) -> Session:
        choice = choose.pick(self.choices, name)
        session = self._open.get(name)
        if session is None or not session.alive:
            if session is not None:
                session.close()
            session = self._open[name] = choice.open(self._folder / f"model_{name}")
        return session

    def __contains__(self, name: object) -> bool:
        return name in self.choices

    def __iter__(self) -> Iterator[str]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def opened(self) -> Collection[str]:
        """Names of the models that are loaded."""
        return [name for name, session in self._open.items() if session.alive]

    def release(self, name: str) -> None:
        """Give the memory of one model back; it is loaded again when it is asked again."""
        session = self._open.pop(name, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """End the process of every open session and give its memory back."""
        for session in self._open.values():
            session.close()
        self._open.clear()

    def __enter__(self) -> Models:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
