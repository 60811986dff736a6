"""Reading ahead in a thread: while one batch is written, the next is being tokenized."""

from __future__ import annotations

import collections
import threading
from typing import Any, Callable, Deque, Generator, Iterable, List, Tuple, TypeVar

Value = TypeVar("Value")

_END = object()


def ahead(
    values: Iterable[Value], depth: int = 2, weight: Callable[[Value], int] = lambda value: 0, most: int = 0
) -> Generator[Value, None, None]:
    """Iterate over ``values`` in a thread that starts at once, at most ``depth`` values ahead.

    A value waits to be let in, too, while those inside and it weigh more than ``most``; alone it always is.
    An exception there is raised here. Close the generator when stopping early: then the thread ends.
    """
    line: Deque[Tuple[Any, int]] = collections.deque()
    changed = threading.Condition()
    stopped = threading.Event()
    failure: List[BaseException] = []

    def full(own: int) -> bool:
        return len(line) >= depth or (bool(line) and sum(other for _, other in line) + own > most)

    def put(value: Any, own: int) -> bool:
        with changed:
            changed.wait_for(lambda: stopped.is_set() or not full(own))
            line.append((value, own))
            changed.notify_all()
        return not stopped.is_set()

    def run() -> None:
        try:
            for value in values:
                if not put(value, weight(value)):
                    return
        except BaseException as error:
            failure.append(error)
        finally:
            with changed:
                line.append((_END, 0))
                changed.notify_all()

    thread = threading.Thread(target=run, name="qwenlib-ahead", daemon=True)
    thread.start()

    def results() -> Generator[Any, None, None]:
        try:
            yield None
            while True:
                with changed:
                    changed.wait_for(lambda: line)
                    value, _ = line.popleft()
                    changed.notify_all()
                if value is _END:
                    break
                yield value
            if failure:
                raise failure[0]
        finally:
            with changed:
                stopped.set()
                changed.notify_all()
            thread.join()

    found = results()
    next(found)  # into the try: closing it now ends the thread
    return found
