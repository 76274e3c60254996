"""The contract of a step: it says all that anyone has to know of it, and reads and writes nothing.

A step either *makes* rows (`Make`: of rows or of files) or *decides* about the rows that it is given (`Decide`: which are dropped
and why, what is noted, which values change). Both are done part by part or over everything at once. Part by part, part n of the
output comes from part n of the input, so where and in which order parts are done changes no byte.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipeline.rows.sample import Dropped, Passage, Sample
from pipeline.rows.tables import TextTable

Item = TypeVar("Item")
Result = TypeVar("Result")
Raw = Mapping[str, Any]
"""A row as Parquet or JSON has it."""
Row = Sample | Passage
Outcome = Row | tuple[Row, ...] | Dropped
"""What one row of the input became: a row, several rows, or a drop."""
Progress = Callable[[str, int, int | None], None]
"""Called with the name of a step or a phase, the rows done so far and their total where it is known."""


OnProgress = Callable[[int, int | None], None]
"""The same of one step."""


def silent(name: str, done: int, total: int | None) -> None:
    """A `Progress` that says nothing."""


class Spread(Protocol):
    """Applies a function of a module to items on whatever cores there are; results in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]: ...


def here(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """A `Spread` over this process alone."""
    return map(function, items)


class Source(Protocol):
    """Where the rows of one part come from: a part of another step, or a slice of a file. It can be sent to another process."""

    def rows(self) -> Iterator[Any]: ...

    def size(self) -> int:
        """Bytes on the disk, about."""


@dataclass(kw_only=True)
class Context:
    """What a step's code sees besides its rows, and where it says what it does not give as rows."""

    name: str
    folder: Path
    """For what does not fit in memory; emptied when the task is done."""
    work: Path
    rows: int | None = None
    """How many rows there are to come, where it is known."""
    spread: Spread = here
    workers: int = 1
    """The cores that `spread` has."""
    progress: OnProgress = lambda done, total: None
    reasons: Counter[str] = field(default_factory=Counter)
    """Drops so far, by reason."""
    counters: Counter[str] = field(default_factory=Counter)
    """What else is worth knowing (`turns`); summed over the parts."""
    facts: dict[str, int] = field(default_factory=dict)
    """The same where it is no sum: every part says the same."""
    usage: dict[str, Any] = field(default_factory=dict)
    """What a teacher was asked for; it goes with the timings, since another run may find it all in the ledger."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when another step failed: nothing more need be asked."""
    run_again: bool = False
    """Set where something failed that the next run should try again (a teacher that did not answer)."""

    def pass_over(self, reason: str, count: int = 1) -> None:
        """`count` rows of the input are dropped that are too many to list one by one (redirects of a dump, pages not sampled)."""
        if count:
            self.reasons[reason] += count


DECISION = pa.schema(
    [("row", pa.int64()), ("reason", pa.string()), ("partner_id", pa.string()), ("score", pa.float64()), ("detail", pa.string())]
)
Drop = tuple[int, str, str, float | None, str]
"""`row` (its number, from 0), `reason`, `partner_id`, `score`, `detail`: an entry of `DECISION`."""


@dataclass(frozen=True)
class Decisions:
    """What was decided about the rows 0 … n-1 of a table."""

    dropped: pa.Table
    """`DECISION`, each row at most once; what it does not name stays."""
    notes: pa.Array | None = None
    """Of all rows: what is added to their `decisions`, null for nothing."""
    columns: Mapping[str, pa.Array] = field(default_factory=dict)
    """Of all rows: columns that take the place of those they had."""

    @classmethod
    def of(cls, drops: Iterable[Drop], notes: Sequence[str | None] | None = None) -> Decisions:
        """From plain values."""
        columns = list(zip(*drops, strict=True)) or [()] * len(DECISION)
        decisions = cls.of_columns(**dict(zip(DECISION.names, columns, strict=True)))
        return cls(decisions.dropped, None if notes is None else pa.array(notes, pa.string()))

    @classmethod
    def of_columns(cls, **columns: Any) -> Decisions:
        """From the columns of `DECISION`."""
        return cls(pa.table([pa.array(columns[kind.name], kind.type) for kind in DECISION], schema=DECISION))


@dataclass(frozen=True)
class Make:
    """Gives the outcome of every row, in order. Of a step that reads files itself there are no rows to take.

    `cut` gives the parts of what is made part by part out of files: so many rows each, in their order.
    """

    run: Callable[[Iterator[Any], Context], Iterable[Outcome]]
    by_part: bool
    cut: Callable[[int], Sequence[Source]] | None = None


@dataclass(frozen=True)
class Decide:
    """An operator over columns of the rows of one part, or of all; the same that a command applies to anybody's rows."""

    run: Callable[[TextTable, Context], Decisions]
    by_part: bool


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The account of one step: `rows_in == rows_used + Σ dropped`, and for what decides `rows_used == rows_out`."""

    stage: str
    unit_in: str
    unit_out: str
    rows_in: int
    rows_used: int
    rows_out: int
    dropped: dict[str, int]
    counters: dict[str, int] = field(default_factory=dict)
    """What else is worth knowing: `{"turns": 12}`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a build that has been described but not run."""

    name: str
    version: int
    """Of the step's code: raised when the same input should give other bytes."""
    does: Make | Decide
    config: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    inputs: tuple[Step, ...] = ()
    schema: pa.Schema
    teacher: str | None = None
    """The teacher of the recipe that it asks."""
    unit_in: str = "rows"
    unit_out: str = "rows"
    refuse: Callable[[StepReport], str | None] | None = None
    """What is wrong with the input if this is the account (nothing came of a file), or None."""
