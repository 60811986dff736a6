"""Reading ahead in a thread: while one batch is written, the next is being tokenized."""

from __future__ import annotations

import queue
import threading
from typing import Any, Generator, Iterable, List, TypeVar

Value = TypeVar("Value")

_END = object()


def ahead(values: Iterable[Value], depth: int = 2) -> Generator[Value, None, None]:
    """Iterate over ``values`` in a thread that starts at once, at most ``depth`` values ahead.

    An exception there is raised here. Close the generator when stopping early: then the thread ends.
    """
    line: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    failure: List[BaseException] = []

    def put(value: Any) -> bool:
        while not stopped.is_set():
            try:
                line.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for value in values:
                if not put(value):
                    return
        except BaseException as error:
            failure.append(error)
        finally:
            put(_END)

    thread = threading.Thread(target=run, name="qwenlib-ahead", daemon=True)
    thread.start()

    def results() -> Generator[Any, None, None]:
        try:
            yield None
            while True:
                value = line.get()
                if value is _END:
                    break
                yield value
            if failure:
                raise failure[0]
        finally:
            stopped.set()
            thread.join()

    found = results()
    next(found)  # into the try: closing it now ends the thread
    return found
