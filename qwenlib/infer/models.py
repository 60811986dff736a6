"""The models of a run that can be asked: base, LoRA and fully fine-tuned, each opened when first needed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterator, Mapping, Optional, Type, Union

from qwenlib.errors import Refused
from qwenlib.infer.session import Session
from qwenlib.profile import Profile


class Models(Mapping[str, Session]):
    """``{"base": Session, "lora": Session, …}``; a session's process starts at the first look-up of its name.

    ``checkpoints``: ``{name: (path, adapter task or "")}``. Closing ends every process; a name that is looked up
    again after that is loaded again.
    """

    def __init__(
        self,
        profile: Profile,
        checkpoints: Mapping[str, Any],
        *,
        vocab_file: Union[str, Path],
        merges_file: Union[str, Path],
        run_dir: Union[str, Path],
    ):
        self.profile, self.checkpoints = profile, dict(checkpoints)
        self._files: Dict[str, Any] = {"vocab_file": vocab_file, "merges_file": merges_file}
        self._run_dir = Path(run_dir)
        self._open: Dict[str, Session] = {}

    def __getitem__(self, name: str) -> Session:
        if name not in self.checkpoints:
            raise Refused(f"there is no model {name!r} in this run; it has: {', '.join(self.checkpoints) or 'none'}.")
        session = self._open.get(name)
        if session is None or not session.alive:
            if session is not None:
                session.close()
            path, adapter_task = self.checkpoints[name]
            session = Session(
                self.profile,
                load_checkpoint=path,
                run_dir=self._run_dir / f"model_{name}",
                adapter_task=adapter_task,
                name=name,
                **self._files,
            )
            self._open[name] = session
        return session

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoints

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)

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
