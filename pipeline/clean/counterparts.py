"""Rows that say the same in different languages: over a table's own texts, for a build and for `glotloom parallel`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clean.parallel import Groups, parallel_groups
from pipeline.clean.shingles import I64
from pipeline.engine.step import Context, Decisions, Progress, Spread, here, silent
from pipeline.errors import InputError
from pipeline.files import content_hash
from pipeline.rows.tables import TextTable, append_to_lists
from pipeline.text.facts import Facts, facts
from pipeline.vectors.embeddings import DIMENSIONS, LANGUAGES, Embedder, Vectors

LINEAGE = "group_id"
PRECISION = 0.97

Codes = np.ndarray[tuple[int], np.dtype[np.str_]]


@dataclass(frozen=True)
class Compared:
    """`rows` are the numbers of the rows that could be compared, in the order of their ids; so are the rows of `groups`."""

    rows: I64
    groups: Groups


def compare(
    table: TextTable,
    ids: pa.Array,
    codes: Codes,
    chosen: set[str],
    work: Path,
    *,
    precision: float,
    spread: Spread = here,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Compared:
    """Which rows of the `chosen` languages say the same; `ids` and `codes` are those of all rows, `work` holds the vectors."""
    order = pc.sort_indices(ids).to_numpy()
    place = np.empty(len(ids), dtype=np.int64)
    place[order] = np.arange(len(ids))
    usable = _say_something(table, np.isin(codes, sorted(chosen)), lambda done: progress("reading", done, len(ids)))
    places = np.sort(place[usable])  # of the rows that are compared, their places by id
    place = np.searchsorted(places, place)
    vectors = _on_disk(work / "vectors.npy", len(places))
    stated: list[Facts] = [facts("")] * len(places)
    with Embedder(spread, cache) as embedder:
        done = 0
        for found in embedder.embed(_texts(table, usable, place, stated)):
            vectors[place[usable[done : done + len(found)]]] = found
            done += len(found)
            progress("embedding", done, len(places))
    rows = order[places]
    groups = parallel_groups(
        vectors,
        codes[rows].tolist(),
        stated.__getitem__,
        known=_lineage(table)[rows] if LINEAGE in table.schema.names else None,
        precision=precision,
        progress=lambda done, total: progress("comparing", done, total),
    )
    return Compared(rows, groups)


def _on_disk(file: Path, rows: int) -> Vectors:
    if not rows:
        return np.empty((0, DIMENSIONS), dtype=np.float16)
    with file.open("wb") as target:
        for _ in range(rows):
            target.write(bytes(2 * DIMENSIONS))  # where the disk has no room to fill a hole, the process would be killed
    vectors: Vectors = np.memmap(file, np.float16, "r+", shape=(rows, DIMENSIONS))
    return vectors


def _say_something(table: TextTable, wanted: np.ndarray[tuple[int], np.dtype[np.bool_]], read: Callable[[int], None]) -> I64:
    """The numbers of the wanted rows that hold a letter or digit."""
    found, done = [], 0
    for texts in table.values():
        for number, text in enumerate(texts, done):
            if wanted[number] and any(letter.isalnum() for letter in text):
                found.append(number)
        done += len(texts)
        read(done)
    return np.array(found, dtype=np.int64)


def _texts(table: TextTable, usable: I64, place: I64, stated: list[Facts]) -> Iterator[str]:
    """The texts of the usable rows; on the way their facts are stated."""
    wanted = set(usable.tolist())
    nothing = stated[0] if stated else None
    number = 0
    for texts in table.values():
        for text in texts:
            if number in wanted:
                own = facts(text)
                if own != nothing:
                    stated[place[number]] = own
                yield text
            number += 1


def _lineage(table: TextTable) -> I64:
    """Equal numbers for rows of an equal value, -1 for none, an empty text and NaN."""
    kind = table.schema.field(LINEAGE).type
    values = pa.chunked_array([batch.column(0) for batch in table.batches([LINEAGE])], kind)
    try:
        if pa.types.is_floating(kind):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
        encoded = pc.dictionary_encode(values)
    except pa.ArrowNotImplementedError:
        raise InputError(f"{table.path}: column {LINEAGE!r} is {kind}; expected texts or numbers, or no such column") from None
    encoded = encoded.combine_chunks()
    numbers: I64 = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_string(encoded.dictionary.type) or pa.types.is_large_string(encoded.dictionary.type):
        numbers[numbers == pc.index(encoded.dictionary, "").as_py()] = -1
    return numbers


def members_of(group: I64) -> Iterator[I64]:
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def decide_counterparts(table: TextTable, context: Context) -> Decisions:
    """Unites the groups of rows that say the same; every row stays, whatever its language.

    The rows of united groups get a `group_id` made of theirs, which they keep among their `parent_ids`.
    """
    former = [group for batch in table.batches([LINEAGE]) for group in batch.column(0).to_pylist()]
    codes = np.array(table.languages("language"), dtype=np.str_)
    notes: list[str | None] = [None] * len(former)
    linked: list[list[str]] = []
    for rows, margins in _found(table, codes, context):
        linked.append([former[row] for row in rows])
        for number, margin in zip(rows, margins, strict=True):
            if not math.isnan(margin):
                others = sorted({str(codes[other]) for other in rows if former[other] != former[number]})
                notes[number] = f"says what a row in {' and one in '.join(others)} says (margin {margin:.2f})"
    united = _united(linked)
    if not united:
        return Decisions.of((), notes)
    groups = pa.array([united.get(group, group) for group in former], pa.string())
    parents = pa.array([group if group in united else None for group in former], pa.string())
    lists = [batch.column(0) for batch in table.batches(["parent_ids"])]
    context.counters["rows_regrouped"] = len(former) - parents.null_count
    context.counters["groups_united"] = len(united)
    columns = {LINEAGE: groups, "parent_ids": append_to_lists(pa.concat_arrays(lists), parents)}
    return Decisions(Decisions.of(()).dropped, pa.array(notes, pa.string()), columns)


def _found(table: TextTable, codes: Codes, context: Context) -> Iterator[tuple[list[int], list[float]]]:
    """The groups of rows that say the same: their numbers, and the margin of each (NaN where only lineage put it there)."""
    chosen = set(codes.tolist()) & set(LANGUAGES)
    if beyond := int((~np.isin(codes, sorted(chosen))).sum()):
        context.counters["rows_not_comparable"] = beyond
    if len(chosen) < 2:
        return
    found = compare(
        table,
        table.ids(),
        codes,
        chosen,
        context.folder,
        precision=PRECISION,
        spread=context.spread,
        progress=lambda phase, done, total: context.progress(done, total),
    )
    for members in members_of(found.groups.group):
        yield found.rows[members].tolist(), found.groups.score[members].tolist()


def _united(linked: Iterable[Sequence[str]]) -> dict[str, str]:
    """The new id of each group that became one with others."""
    above: dict[str, str] = {}

    def root(group: str) -> str:
        while (higher := above.setdefault(group, group)) != group:
            above[group] = group = above[higher]
        return group

    for first, *others in linked:
        for other in others:
            above[root(other)] = root(first)
    whole: dict[str, list[str]] = defaultdict(list)
    for group in sorted(above):
        whole[root(group)].append(group)
    return {group: content_hash(groups) for groups in whole.values() if len(groups) > 1 for group in groups}
