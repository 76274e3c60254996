"""Decontamination: rows that hold a stretch of an evaluation item, or a translation of one, leave."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.clean.evaluation import Item, Overlap, Shared, ngrams, read_sets
from pipeline.clean.translated_items import TranslatedItems
from pipeline.engine.batches import blocks
from pipeline.engine.step import Context, Decisions, Drop, Spread, here
from pipeline.files import stamp
from pipeline.rows.tables import TextTable, turns_of
from pipeline.vectors.embeddings import LANGUAGES, Embedder

REASONS = ("contaminated", "contaminated_translation")
_ROWS_OF_A_TASK = 500
_TASKS_AT_ONCE = 16
_CHARACTERS_OF_A_TASK = 2_000_000

Row = tuple[str, Sequence[str]]
"""Its language and its turns."""


@dataclass(frozen=True)
class Contamination:
    """`reason` is one of `REASONS`; `score` the share of the item's stretches that the row holds, or the cosine to the item."""

    reason: str
    item: Item
    score: float
    detail: str


@dataclass
class Checked:
    """What could not be checked."""

    items: int = 0
    items_too_short: int = 0
    """To be looked for word by word."""
    items_not_comparable: int = 0
    """In a language that embeddings do not know."""
    rows_not_comparable: int = 0
    """The same, of rows."""
    languages_not_comparable: set[str] = field(default_factory=set)


def contaminations(
    rows: Iterable[Row],
    sets: Sequence[Path],
    checked: Checked,
    *,
    translations: bool,
    spread: Spread = here,
    cache: Path | None = None,
) -> Iterator[Contamination | None]:
    """For each row, in order, what of the evaluation sets it holds. `checked` is filled in on the way."""
    stamped = tuple((path, stamp(path)) for path in sets)
    items = _items(stamped)
    checked.items, checked.items_too_short = len(items), sum(not ngrams(item.text) for item in items)
    with ExitStack() as stack:
        finder = None
        if translations:
            finder = TranslatedItems(items, stack.enter_context(Embedder(spread, cache)))
            checked.items_not_comparable = finder.not_comparable
        for tasks in blocks(_tasks(rows), _TASKS_AT_ONCE):
            block = [row for task in tasks for row in task]
            texts = [[turns for _, turns in task] for task in tasks]
            shared = (own for part in spread(functools.partial(_overlaps, stamped), texts) for own in part)
            found = [None if own is None else _overlap(own) for own in shared]
            if finder is not None:
                left = [number for number, own in enumerate(found) if own is None]
                beyond = [block[number][0] for number in left if _not_comparable(block[number])]
                checked.rows_not_comparable += len(beyond)
                checked.languages_not_comparable |= set(beyond)
                for number, translated in zip(left, finder.find(block[n] for n in left), strict=True):
                    if translated is not None:
                        where = f"{translated.item.name}: {translated.item.text[:80]!r}"
                        found[number] = Contamination(REASONS[1], translated.item, translated.cosine, where)
            yield from found


def _not_comparable(row: Row) -> bool:
    language, turns = row
    return language not in LANGUAGES and any(map(str.strip, turns))


def _tasks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """A few hundred rows, and fewer where they are long."""
    task: list[Row] = []
    characters = 0
    for row in rows:
        task.append(row)
        characters += sum(map(len, row[1]))
        if len(task) == _ROWS_OF_A_TASK or characters > _CHARACTERS_OF_A_TASK:
            yield task
            task, characters = [], 0
    if task:
        yield task


Stamped = tuple[tuple[Path, str], ...]
"""Files and what tells whether one has changed since an earlier run of this process."""


def _overlaps(sets: Stamped, rows: Sequence[Sequence[str]]) -> list[Shared | None]:
    overlap = _overlap_of(sets)
    found = ([shared for turn in turns if (shared := overlap.find(turn))] for turns in rows)
    return [max(of_row, key=lambda shared: shared.share, default=None) for of_row in found]


@functools.lru_cache(maxsize=2)
def _overlap_of(sets: Stamped) -> Overlap:
    return Overlap(_items(sets))


@functools.lru_cache(maxsize=2)
def _items(sets: Stamped) -> list[Item]:
    return read_sets([path for path, _ in sets])


def _overlap(shared: Shared) -> Contamination:
    return Contamination(REASONS[0], shared.item, shared.share, f"{shared.item.name}: {shared.stretch!r}")


def decide_contamination(table: TextTable, context: Context, *, paths: tuple[Path, ...], translations: bool) -> Decisions:
    """Drops what holds something of an evaluation set."""
    checked = Checked()
    found = contaminations(_rows(table), paths, checked, translations=translations, spread=context.spread)
    drops: list[Drop] = [
        (number, own.reason, own.item.name, own.score, own.detail) for number, own in enumerate(found) if own is not None
    ]
    for name in ("items", "items_too_short", "items_not_comparable"):
        if count := getattr(checked, name):
            context.facts[name] = count
    if checked.rows_not_comparable:
        context.counters["rows_not_comparable"] = checked.rows_not_comparable
    return Decisions.of(drops)


def _rows(table: TextTable) -> Iterator[Row]:
    for batch in table.batches(["language", "messages"]):
        yield from zip(batch.column(0).to_pylist(), turns_of(batch.column(1)), strict=True)
