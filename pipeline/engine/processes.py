"""Work spread over processes, results in the order of the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipeline.errors import WorkError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Generic[Item, Result]):
    """`function` (of a module, so that other processes find it) applied to items in `count` processes, or in this one if 1.

    What comes out is the same for any count. Raises what the function raises, and WorkError where a process was killed.
    """

    def __init__(self, function: Callable[[Item], Result], count: int) -> None:
        self._function = function
        self._count = count
        # Spawned: a fork of a process that has threads (Arrow's, BLAS's) may hang.
        context = multiprocessing.get_context("spawn")
        waited_for, self._end = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(count, context, _end_with_parent, (waited_for,)) if count > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._end.close()  # what is at work need not be waited for
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """In order; only a few items are taken ahead of the results."""
        if self._pool is None:
            yield from map(self._function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._submit(self._pool, item))
                if len(waiting) > 2 * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkError("a worker process was killed; is the memory enough? Fewer --workers need less") from error
        finally:
            for future in waiting:
                future.cancel()

    def _submit(self, pool: ProcessPoolExecutor, item: Item) -> Future[Result]:
        """Processes start here, and inherit that Ctrl-C is blocked: this one is told, and ends them."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _without_main():
                return pool.submit(self._function, item)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_MAIN = threading.Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """A spawned process runs the script that it came from again, which would start all anew where that has no guard.

    What it needs is in modules of their own, so it is told of no script.
    """
    script = sys.modules["__main__"]
    with _MAIN:
        told = {name: vars(script)[name] for name in ("__file__", "__spec__") if name in vars(script)}
        for name in told:
            setattr(script, name, None)
        try:
            yield
        finally:
            for name, value in told.items():
                setattr(script, name, value)


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    block: list[Item] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _end_with_parent(end: Connection) -> None:
    """A parent that was killed cannot stop its workers: they see to it themselves, and when the other side of `end` closes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel, end]), os._exit(1)), daemon=True).start()
