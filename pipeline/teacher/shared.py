"""One client for all steps that ask a teacher at the same time: its slots, rates, budget and ledger are theirs together.

The client lives in a thread of its own with the event loop; steps run in other threads and take outcomes one by one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import WorkError
from pipeline.recipe import Teacher
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.opening import open_teacher

Outcome = TypeVar("Outcome")
Result = TypeVar("Result")
_Key = tuple[str, Teacher, Path]
_STOPPED = "stopped: another step failed, or the build was interrupted"
_PATIENCE = 1_000  # hundredths of a second


class _Loop:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result], stop: threading.Event | None = None) -> Result:
        """Wait for it; whoever waits and is interrupted takes it back. Once `stop` is set nothing more is done: WorkError."""
        with _REGISTRY.lock:
            if stop is not None and stop.is_set():
                work.close()
                raise WorkError(_STOPPED)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            _REGISTRY.waiting[future] = stop
        try:
            return future.result()
        except CancelledError:
            raise WorkError(_STOPPED) from None
        except BaseException:
            future.cancel()
            raise
        finally:
            with _REGISTRY.lock:
                del _REGISTRY.waiting[future]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class _Shared:
    loop: _Loop
    stack: AsyncExitStack
    client: TeacherClient
    users: int = 0


@dataclass
class _Registry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    opening: threading.Lock = field(default_factory=threading.Lock)
    """Held while a client opens or closes."""
    open: dict[_Key, _Shared] = field(default_factory=dict)
    waiting: dict[Future[Any], threading.Event | None] = field(default_factory=dict)
    """What threads wait for, and what stops it."""


_REGISTRY = _Registry()


@dataclass(frozen=True)
class Asking:
    """A step's view of the client: the usage is the step's own."""

    client: TeacherClient
    _loop: _Loop
    _stop: threading.Event | None

    def take(self, outcomes: AsyncIterator[Outcome]) -> Iterator[Outcome]:
        """What is made in the client's loop, one by one, in this thread; broken off, nothing more is asked."""
        none = object()
        try:
            while (outcome := self._loop.run(_next(outcomes, none), self._stop)) is not none:
                yield outcome
        finally:
            self._loop.run(_close(outcomes))


async def _next(outcomes: AsyncIterator[Any], none: object) -> Any:
    return await anext(outcomes, none)


async def _close(outcomes: AsyncIterator[Any]) -> None:
    for _ in range(_PATIENCE):
        try:
            await outcomes.aclose()  # type: ignore[attr-defined]  # it is a generator
            break
        except RuntimeError:  # what was taken back has not ended yet
            await asyncio.sleep(0.01)


@contextmanager
def shared_teacher(name: str, teacher: Teacher, ledger: Path, stop: threading.Event | None = None) -> Iterator[Asking]:
    """The recipe's teacher `name`, which all who ask for it at the same time share; the last one closes it.

    Once `stop` is set, by `stop_asking`, nothing more is asked: WorkError.
    """
    key = (name, teacher, ledger.absolute())
    with _REGISTRY.opening:
        if key not in _REGISTRY.open:
            _REGISTRY.open[key] = _open(name, teacher, ledger, stop)
        shared = _REGISTRY.open[key]
        shared.users += 1
    try:
        yield Asking(shared.client.sharing(), shared.loop, stop)
    finally:
        with _REGISTRY.opening:
            shared.users -= 1
            if not shared.users:
                del _REGISTRY.open[key]
                try:
                    shared.loop.run(shared.stack.aclose())
                finally:
                    shared.loop.close()


def _open(name: str, teacher: Teacher, ledger: Path, stop: threading.Event | None) -> _Shared:
    loop, stack = _Loop(f"teacher {name}"), AsyncExitStack()
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        return _Shared(loop, stack, loop.run(stack.enter_async_context(open_teacher(name, teacher, ledger)), stop))
    except BaseException:
        loop.close()
        raise


def stop_asking(stop: threading.Event) -> None:
    """Set `stop`, and break off all that is asked under it: who waits is told. Answers that came are kept."""
    with _REGISTRY.lock:
        stop.set()
        under_way = [future for future, own in _REGISTRY.waiting.items() if own is stop]
    for future in under_way:
        future.cancel()
