"""Decontamination: rows that hold a stretch of an evaluation item, or a translation of one, leave."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.clean.evaluation import NGRAM, Item, Overlap, Shared, ngrams, read_sets
from pipeline.clean.translated_items import TranslatedItems
from pipeline.engine.processes import Workers, blocks
from pipeline.engine.step import Stage, StageRun, row_count, rows_of
from pipeline.recipe import Recipe
from pipeline.rows.sample import SAMPLE_SCHEMA, drop, sample_from_row
from pipeline.vectors.embeddings import LANGUAGES, MAX_TOKENS, Embedder, check_installed, model_name

REASONS = ("contaminated", "contaminated_translation")
_ROWS_OF_A_TASK = 500
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
    rows: Iterable[Row], sets: Sequence[Path], checked: Checked, *, translations: bool, workers: int = 1, cache: Path | None = None
) -> Iterator[Contamination | None]:
    """For each row, in order, what of the evaluation sets it holds. `checked` is filled in on the way."""
    items = read_sets(sets)
    _overlap_of.cache_clear()  # the files may have changed since an earlier run of this process
    checked.items, checked.items_too_short = len(items), sum(not ngrams(item.text) for item in items)
    with ExitStack() as stack:
        processes = stack.enter_context(Workers(functools.partial(_overlaps, tuple(sets)), workers))
        finder = None
        if translations:
            finder = TranslatedItems(items, stack.enter_context(Embedder(workers, cache)))
            checked.items_not_comparable = finder.not_comparable
        for tasks in blocks(_tasks(rows), 4 * workers):
            block = [row for task in tasks for row in task]
            texts = ([turns for _, turns in task] for task in tasks)
            found = [None if shared is None else _overlap(shared) for part in processes.map(texts) for shared in part]
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


def _overlaps(sets: tuple[Path, ...], rows: Sequence[Sequence[str]]) -> list[Shared | None]:
    overlap = _overlap_of(sets)
    found = ([shared for turn in turns if (shared := overlap.find(turn))] for turns in rows)
    return [max(of_row, key=lambda shared: shared.share, default=None) for of_row in found]


@functools.cache
def _overlap_of(sets: tuple[Path, ...]) -> Overlap:
    return Overlap(read_sets(sets))


def _overlap(shared: Shared) -> Contamination:
    return Contamination(REASONS[0], shared.item, shared.share, f"{shared.item.name}: {shared.stretch!r}")


def decontaminate_stage(recipe: Recipe, inputs: Stage) -> Stage:
    """Drop what shares `NGRAM` words with an item of the recipe's evaluation sets, and translations if the recipe says so."""
    paths = tuple(recipe.path(text) for text in recipe.clean.evaluation_sets)
    translations = recipe.clean.evaluation_translations and bool(paths)
    if translations:
        check_installed()
    return Stage(
        name="decontaminate",
        version=4,
        run=functools.partial(_run, paths=paths, translations=translations),
        config={
            "sets": [path.name for path in paths],
            "ngram": NGRAM,
            "translations": [model_name(), MAX_TOKENS] if translations else None,
        },
        files=paths,
        inputs=(inputs,),
        schema=SAMPLE_SCHEMA,
    )


def _run(run: StageRun, *, paths: tuple[Path, ...], translations: bool) -> None:
    folder = run.inputs[0]
    total = row_count(folder)
    rows = ((row["language"], [message["content"] for message in row["messages"]]) for row in rows_of(folder))
    checked = Checked()
    found = contaminations(rows, paths, checked, translations=translations)
    for number, (row, own) in enumerate(zip(rows_of(folder), found, strict=True), 1):
        run.progress(run.stage.name, number, total)
        sample = sample_from_row(row)
        if own is None:
            run.keep(sample)
        else:
            run.drop(drop(sample, own.reason, detail=own.detail))
    for name in ("items", "items_too_short", "items_not_comparable", "rows_not_comparable"):
        if count := getattr(checked, name):
            run.counters[name] = count
