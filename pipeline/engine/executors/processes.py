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
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self, TypeVar

from pipeline.engine.step import OnProgress, Spread
from pipeline.errors import WorkError

Item = TypeVar("Item")
Result = TypeVar("Result")
_TRIES = 3


class Processes:
    """Functions of modules, so that other processes find them, applied in `count` processes, or in this one if 1.

    What comes out is the same for any count. The processes start when there is work for two. One that is killed is replaced and
    its item tried again; WorkError where that happens `_TRIES` times without a result in between.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._end: Connection | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(at_once=error is not None)

    def close(self, *, at_once: bool = False) -> None:
        """End the processes; what is at work is waited for unless that is `at_once`."""
        if self._pool is not None and self._end is not None:
            if at_once:
                self._end.close()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """In order; only a few items are taken ahead of the results. Raises what the function raises."""
        if self.count == 1:
            yield from map(function, items)
            return
        first_two = list(islice(coming := iter(items), 2))
        if len(first_two) < 2:
            yield from map(function, first_two)
            return
        yield from self._spread(function, chain(first_two, coming))

    def alone(self, function: Callable[[Item, Spread, int, OnProgress], Result], item: Item, progress: OnProgress) -> Result:
        """One task that may use all cores, here; it is given the `Spread` over them and their number."""
        return function(item, self.map, self.count, progress)

    def _spread(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        waiting: deque[tuple[Item, ProcessPoolExecutor, Future[Result]]] = deque()
        lost = 0
        try:
            for item in items:
                waiting.append((item, *self._submit(function, item)))
                if len(waiting) <= 2 * self.count:
                    continue
                result, lost = self._first(function, waiting, lost)
                yield result
            while waiting:
                result, lost = self._first(function, waiting, lost)
                yield result
        except Exception:
            for _, _, future in waiting:
                future.cancel()
            wait_for([future for _, _, future in waiting])  # nothing of this work is under way when its error is told
            raise
        finally:
            for _, _, future in waiting:
                future.cancel()

    def _first(
        self, function: Callable[[Item], Result], waiting: deque[tuple[Item, ProcessPoolExecutor, Future[Result]]], lost: int
    ) -> tuple[Result, int]:
        """The result of the first item, and how many pools were lost since the one before."""
        while True:
            _, pool, future = waiting[0]
            try:
                result = future.result()
            except BrokenProcessPool as error:
                lost += 1
                self._give_up(pool)
                if lost >= _TRIES:
                    message = "a worker process was killed, three times; is the memory enough? Fewer --workers need less"
                    raise WorkError(message) from error
                for _ in range(len(waiting)):
                    item, pool, future = waiting.popleft()
                    broken = future.done() and (future.cancelled() or isinstance(future.exception(), BrokenProcessPool))
                    waiting.append((item, *self._submit(function, item)) if broken else (item, pool, future))
                continue
            waiting.popleft()
            return result, 0

    def _give_up(self, pool: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is pool:
                pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    def _submit(self, function: Callable[[Item], Result], item: Item) -> tuple[ProcessPoolExecutor, Future[Result]]:
        """Processes start here, and inherit that Ctrl-C is blocked: this one is told, and ends them."""
        with self._lock:
            if self._pool is None:
                # Spawned: a fork of a process that has threads (Arrow's, BLAS's) may hang.
                context = multiprocessing.get_context("spawn")
                waited_for, self._end = context.Pipe(duplex=False)
                self._pool = ProcessPoolExecutor(self.count, context, _end_with_parent, (waited_for,))
            pool = self._pool
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                with _without_main():
                    return pool, pool.submit(function, item)
            except BrokenProcessPool as error:  # as a future that is lost
                future: Future[Result] = Future()
                future.set_exception(error)
                return pool, future
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


def _end_with_parent(end: Connection) -> None:
    """A parent that was killed cannot stop its workers: they see to it themselves, and when the other side of `end` closes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel, end]), os._exit(1)), daemon=True).start()
