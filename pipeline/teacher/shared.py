"""One client for all steps that ask a teacher at the same time: its slots, rates, budget and ledger are theirs together.

The client lives in a thread of its own with the event loop; steps run in other threads and take outcomes one by one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError
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


class _Loop:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for it; whoever waits and is interrupted takes it back, and `stop` is told as WorkError."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise WorkError("stopped: another step failed, or the build was interrupted") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancel all that is under way."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])

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
    open: dict[_Key, _Shared] = field(default_factory=dict)


_REGISTRY = _Registry()


@dataclass(frozen=True)
class Asking:
    """A step's view of the client: the usage is the step's own."""

    client: TeacherClient
    _loop: _Loop

    def take(self, outcomes: AsyncIterator[Outcome]) -> Iterator[Outcome]:
        """What is made in the client's loop, one by one, in this thread; broken off, nothing more is asked."""
        none = object()
        try:
            while (outcome := self._loop.run(_next(outcomes, none))) is not none:
                yield outcome
        finally:
            self._loop.run(_close(outcomes))


async def _next(outcomes: AsyncIterator[Any], none: object) -> Any:
    return await anext(outcomes, none)


async def _close(outcomes: AsyncIterator[Any]) -> None:
    await outcomes.aclose()  # type: ignore[attr-defined]  # it is a generator


@contextmanager
def shared_teacher(name: str, teacher: Teacher, ledger: Path) -> Iterator[Asking]:
    """The recipe's teacher `name`, which all who ask for it at the same time share; the last one closes it."""
    key = (name, teacher, ledger.absolute())
    with _REGISTRY.lock:
        if key not in _REGISTRY.open:
            _REGISTRY.open[key] = _open(name, teacher, ledger)
        shared = _REGISTRY.open[key]
        shared.users += 1
    try:
        yield Asking(shared.client.sharing(), shared.loop)
    finally:
        with _REGISTRY.lock:
            shared.users -= 1
            if not shared.users:
                del _REGISTRY.open[key]
                try:
                    shared.loop.run(shared.stack.aclose())
                finally:
                    shared.loop.close()


def _open(name: str, teacher: Teacher, ledger: Path) -> _Shared:
    loop, stack = _Loop(f"teacher {name}"), AsyncExitStack()
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        return _Shared(loop, stack, loop.run(stack.enter_async_context(open_teacher(name, teacher, ledger))))
    except BaseException:
        loop.close()
        raise


def stop_asking() -> None:
    """Break off all that is asked in this process: who waits for it is told. Answers that came are kept."""
    with _REGISTRY.lock:
        for shared in _REGISTRY.open.values():
            shared.loop.stop()
