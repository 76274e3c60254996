"""`glotloom parallel`: which rows of any Parquet file or folder say the same in different languages."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.clean.parallel import Groups, Threshold, parallel_groups
from pipeline.clean.shingles import I64
from pipeline.errors import InputError, some_of
from pipeline.files import AtomicFile
from pipeline.rows.sample import content_hash
from pipeline.rows.tables import ID, TextTable, check_out, open_table, working_folder
from pipeline.text.facts import Facts, facts
from pipeline.text.identify import UNDETERMINED
from pipeline.vectors.embeddings import DIMENSIONS, LANGUAGES, Embedder, Vectors, check_languages

LINEAGE = "group_id"
PRECISION = 0.97
SCHEMA = pa.schema([(ID, pa.string()), ("group_id", pa.string()), ("score", pa.float64())])

Codes = np.ndarray[tuple[int], np.dtype[np.str_]]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class ParallelReport:
    """`rows_in == grouped + alone + not_compared`."""

    rows_in: int
    groups: int
    grouped: int
    alone: int
    not_compared: int
    """In other languages than those asked for, or without a letter or digit."""
    pairs: dict[tuple[str, str], int]
    """Pairs of rows in the groups, by pair of languages."""
    thresholds: dict[tuple[str, str], Threshold]


def parallel(
    path: Path,
    column: str,
    out: Path,
    *,
    language_column: str | None = None,
    languages: Sequence[str] = (),
    precision: float = PRECISION,
    workers: int = 1,
    cache: Path | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> ParallelReport:
    """Write `id, group_id, score` of every row that has a counterpart in another language to `out`, sorted by id.

    A group holds at most one row of a language, but for what a column `group_id` says: rows that share a value there belong
    together, whatever they say. `score` is a row's mean ratio margin to the others of its group, those aside that belong to it
    by `group_id`: about 1 for texts that have no more to do with each other than with their neighbours. `precision` is the
    estimated share of right pairs at which the least margin of each pair of languages is set. `cache` holds the embeddings
    (default: the user's cache folder).
    """
    if not 0 < precision < 1:
        raise InputError(f"precision = {precision}: expected between 0 and 1")
    check_out(out)
    table = open_table(path, column, out)
    spoken = table.language_column(language_column)
    if spoken is None:
        raise InputError(
            f"{path}: no column tells the language; name it with --language-column, or add one with `glotloom identify`"
        )
    codes = np.array(table.languages(spoken), dtype=np.str_)
    chosen = _chosen(codes, languages, f"{path}, column {spoken}")
    with working_folder(out) as work:
        ids = table.ids()
        compared = compare(table, ids, codes, chosen, work, precision=precision, workers=workers, cache=cache, progress=progress)
        rows, groups = compared.rows, compared.groups
        found = _table(ids.take(rows), groups.group, groups.score)
        with AtomicFile(out) as target:
            pq.write_table(found, target, compression="zstd")
        pairs: Counter[tuple[str, str]] = Counter()
        for members in members_of(groups.group):
            counts = Counter(codes[rows[members]].tolist())
            pairs.update({(a, b): counts[a] * counts[b] for a, b in itertools.combinations(sorted(counts), 2)})
    return ParallelReport(
        rows_in=len(ids),
        groups=len(set(groups.group[groups.group >= 0].tolist())),
        grouped=found.num_rows,
        alone=len(rows) - found.num_rows,
        not_compared=len(ids) - len(rows),
        pairs=dict(sorted(pairs.items())),
        thresholds=groups.thresholds,
    )


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
    workers: int = 1,
    cache: Path | None = None,
    progress: Progress = lambda phase, done, total: None,
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
    with Embedder(workers, cache) as embedder:
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


def _chosen(codes: Codes, languages: Sequence[str], where: str) -> set[str]:
    """The languages to compare: those asked for, or all that there are."""
    present = set(codes.tolist())
    if not present:  # a file without rows has no groups
        return set(languages)
    if languages and (absent := sorted(set(languages) - present)):
        there = some_of(present - {""}) or "none"
        raise InputError(f"--languages: no row is in {', '.join(absent)}; the languages there are: {there}")
    chosen = set(languages) or present - {"", UNDETERMINED}
    check_languages(chosen, where)
    if len(chosen) < 2:
        raise InputError(
            f"{where}: the rows to compare are in {''.join(chosen) or 'no language'}: "
            f"counterparts need two of {', '.join(LANGUAGES)}"
        )
    return chosen


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


def _table(ids: pa.Array, group: I64, score: np.ndarray[tuple[int], np.dtype[np.float64]]) -> pa.Table:
    names = {int(group[members[0]]): content_hash(sorted(ids.take(members).to_pylist())) for members in members_of(group)}
    rows = np.flatnonzero(group >= 0)
    return pa.table(
        {
            ID: ids.take(rows).cast(pa.string()),
            "group_id": [names[number] for number in group[rows].tolist()],
            "score": pa.array(score[rows].round(6), from_pandas=True),
        },
        schema=SCHEMA,
    )
