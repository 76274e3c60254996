"""Where the tasks of a plan are done: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

from pipeline.engine.executors.processes import Processes
from pipeline.engine.step import OnProgress, Spread
from pipeline.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
Kind = Literal["inline", "processes", "ray"]
KINDS: tuple[str, ...] = get_args(Kind)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


class Executor(Protocol):
    """Does the tasks of steps; the results are the same for every executor."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items; the function is one of a module, and items can be sent to other processes."""

    def alone(self, function: Callable[[Item, Spread, int, OnProgress], Result], item: Item, progress: OnProgress) -> Result:
        """One task that may use all cores of a machine; it is given a `Spread` over them and their number."""

    def close(self, *, at_once: bool = False) -> None:
        """The work is over; `at_once` after an error."""


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Which executor, with how many workers (None: one a core, or as many as the cluster has), at which Ray address."""

    kind: Kind = "processes"
    workers: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"executor = {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers = {self.workers}: expected at least 1")
        if self.kind == "inline" and self.workers not in (None, 1):
            raise InputError(f"workers = {self.workers}: the executor inline is one process; take processes")
        if self.ray_address is not None and self.kind != "ray":
            raise InputError(f"ray_address = {self.ray_address!r}: has no effect with the executor {self.kind}; take ray")


_OPEN: dict[ExecutorOptions, list[Any]] = {}
_LOCK = threading.Lock()


@contextmanager
def open_executor(options: ExecutorOptions | None = None) -> Iterator[Executor]:
    """The executor; opened again while it is open, as by each task of a flow, it is the same one."""
    options = options or ExecutorOptions()
    with _LOCK:
        if options not in _OPEN:
            _OPEN[options] = [_start(options), 0]
        _OPEN[options][1] += 1
        executor: Executor = _OPEN[options][0]
    failed = True
    try:
        yield executor
        failed = False
    finally:
        with _LOCK:
            _OPEN[options][1] -= 1
            last = not _OPEN[options][1]
            if last:
                del _OPEN[options]
        if last:
            executor.close(at_once=failed)


def _start(options: ExecutorOptions) -> Executor:
    if options.kind == "ray":
        from pipeline.engine.executors.ray import Ray

        return Ray(options.ray_address, options.workers)
    return Processes(1 if options.kind == "inline" else options.workers or cores())
