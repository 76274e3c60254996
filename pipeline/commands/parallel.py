"""`glotloom parallel`: which rows of any Parquet file or folder say the same in different languages."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clean.counterparts import PRECISION, Codes, compare, members_of
from pipeline.clean.parallel import Threshold
from pipeline.clean.shingles import I64
from pipeline.engine.executors.processes import Processes
from pipeline.engine.step import Progress, silent
from pipeline.errors import InputError, some_of
from pipeline.files import AtomicFile, content_hash
from pipeline.rows.tables import ID, open_table
from pipeline.rows.write import check_out, working_folder
from pipeline.text.identify import UNDETERMINED
from pipeline.vectors.embeddings import LANGUAGES, check_languages

SCHEMA = pa.schema([(ID, pa.string()), ("group_id", pa.string()), ("score", pa.float64())])


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
    progress: Progress = silent,
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
    with working_folder(out) as work, Processes(workers) as processes:
        ids = table.ids()
        compared = compare(
            table, ids, codes, chosen, work, precision=precision, spread=processes.map, cache=cache, progress=progress
        )
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
