"""Many items at once, outcomes in the order of the items: whatever the timing, the same items are used."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import WorkError
from pipeline.teacher.errors import BudgetError

HOPELESS_FAILURES = 10
"""So many items in a row that fail with one and the same error: the teacher is gone, the list need not be burnt."""
_AHEAD = 8  # times as many items as are worked on at once may be done and wait for an earlier one

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True)
class Refused:
    """No dialogue: the reason that dropped the item, or `teacher_failed`, which the next run tries again."""

    reason: str
    detail: str = ""
    request_keys: tuple[str, ...] = ()
    fault: int | None = None
    """The status of the teacher's error; its words may differ from one to the next."""


async def in_order(
    items: Iterable[Item],
    write: Callable[[Item], Coroutine[Any, Any, Outcome]],
    *,
    slots: int,
    count: int,
    worth: Callable[[Outcome], int],
) -> AsyncIterator[tuple[Item, Outcome]]:
    """What `write` makes of the items, until outcomes are worth `count`; later items may have been asked for nothing.

    Which items are used depends on their order and the outcomes alone, never on timing or concurrency. WorkError when
    `HOPELESS_FAILURES` items in a row (or all there are) fail with one kind of error. `slots`: requests under way at once.
    """
    waiting = iter(items)
    in_order: deque[tuple[Item, asyncio.Task[Outcome]]] = deque()
    under_way: set[asyncio.Task[Outcome]] = set()
    # Some more than slots: between its answer and its next question, and while it waits to try again, a dialogue needs none.
    at_once = slots + max(1, slots // 4)
    made = ready = 0
    failures = _Failures()

    def start_more() -> None:
        # Twice what is still wanted at most: what overshoots is paid for and thrown away. Behind enough dialogues that only
        # wait for an earlier one, nothing can be wanted.
        while made + ready < count and len(under_way) < at_once and len(in_order) < min(_AHEAD * at_once, 2 * (count - made)):
            if (item := next(waiting, None)) is None:
                return
            task = asyncio.create_task(write(item))
            under_way.add(task)
            task.add_done_callback(end)
            in_order.append((item, task))

    def end(task: asyncio.Task[Outcome]) -> None:
        nonlocal ready
        under_way.discard(task)
        ready += 0 if task.cancelled() or task.exception() else worth(task.result())
        if not ending:
            start_more()

    ending = False
    try:
        start_more()
        while in_order:
            item, task = in_order.popleft()
            outcome = await task
            made += worth(outcome)
            ready -= worth(outcome)
            start_more()
            failures.count(outcome, is_last=not in_order)
            yield item, outcome
            if made >= count:
                return
    except BudgetError:
        ending = True
        await asyncio.gather(*under_way, return_exceptions=True)  # what is asked is paid for: its answers are kept
        raise
    finally:
        ending = True
        for _, task in in_order:
            task.cancel()
        await asyncio.gather(*(task for _, task in in_order), return_exceptions=True)


class _Failures:
    """Counts items that fail in a row with one kind of error, and calls the run off when there is no hope."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._fault: int | None = None
        self._outcomes = 0

    def count(self, outcome: object, *, is_last: bool) -> None:
        refused = outcome if isinstance(outcome, Refused) and outcome.reason == "teacher_failed" else None
        fault = refused.fault if refused else None
        self._in_a_row = self._in_a_row + 1 if refused and fault == self._fault else int(refused is not None)
        self._fault = fault
        self._outcomes += 1
        if refused and (self._in_a_row >= HOPELESS_FAILURES or (is_last and self._in_a_row == self._outcomes)):
            raise WorkError(f"{self._in_a_row} passages in a row failed alike, nothing more is asked: {refused.detail}")
