"""`glotloom dedup`: exact and near-duplicates in any Parquet file or folder, also against an earlier release."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clean.exact import first_of_equal, letter_sums, normalise
from pipeline.clean.near import Keys, Pairs, Texts, near_duplicates, take
from pipeline.clean.shingles import I64, U64, Bands, Measure, band_keys, code_points
from pipeline.errors import InputError
from pipeline.rows.tables import DROPPED_SCHEMA, TextTable, check_out, open_table, text_of, working_folder, write_table

KEEP = ("longest", "first", "highest:COLUMN", "lowest:COLUMN")

_CONTAINED = 0.8  # of the threshold: at .8 the bands find 99 % of texts of which one is the other and a half more (J = .67)

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class DedupReport:
    """`rows_in == kept + exact + near`."""

    rows_in: int
    kept: int
    exact: int
    near: int
    candidates: int
    """Pairs whose similarity was computed."""
    not_compared: int
    """Pairs that were not, of buckets too large (thousands of rows from one template)."""


def dedup(
    path: Path,
    column: str,
    out: Path,
    *,
    threshold: float = 0.8,
    against: Path | None = None,
    keep: str = "longest",
    containment: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> DedupReport:
    """Write to `out` the rows at `path` that duplicate no other that stays, and the rest to `out.dropped.parquet`.

    Reasons: `exact_duplicate` (the same after NFKC, case, white space and Chinese script) and `near_duplicate` (the Jaccard
    similarity of the lower-cased shingles of 5 characters is at least `threshold`; it is the score). `partner_id` is the row that
    it lost to; that of an exact duplicate may have left as a near-duplicate itself. `keep` says which of several stays: the
    longest (in characters), the first by id, or the one of the highest or lowest value in a column (`highest:quality`,
    `lowest:released_on`; rows without a value lose). Among equal ones the longest stays, then the one whose id sorts first. Rows of
    `against` always win, and are not written.

    With `containment` the share of the shorter text's shingles that stand in the other has to reach the threshold, and is the
    score. Candidates are pairs of like texts: at a threshold of .8 they are found where the longer is no more than a half longer.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold = {threshold}: expected more than 0 and at most 1")
    policy, _, by = keep.partition(":")
    if policy not in ("highest", "lowest") and keep not in KEEP:
        raise InputError(f"keep = {keep!r}: expected one of {', '.join(KEEP)}")
    check_out(out)
    table = open_table(path, column, out)
    if policy in ("highest", "lowest") and not by:
        raise InputError(f"keep = {keep!r}: expected a column, as in {policy}:quality")
    values = _values(table, by) if policy in ("highest", "lowest") else None
    released = open_table(against, column, out) if against else None
    with working_folder(out) as work:
        ids = table.ids()
        names = pa.concat_arrays([released.names(), ids]) if released else ids
        known = len(names) - len(ids)

        def texts() -> Iterator[pa.Array]:
            if released:
                yield from released.texts()
            yield from table.texts()

        def rank(lengths: I64) -> I64:
            return _rank(names, lengths, known, policy, values)

        measure: Measure = "containment" if containment else "jaccard"
        dropped, pairs = _duplicates(names, known, texts, threshold, measure, rank, work, progress)
        progress("writing", 0, 1)
        write_table(table, ids, out, work, dropped=dropped)
        progress("writing", 1, 1)
    near = int(pc.sum(pc.equal(dropped.column("reason"), "near_duplicate")).as_py() or 0)
    return DedupReport(
        rows_in=len(ids),
        kept=len(ids) - dropped.num_rows,
        exact=dropped.num_rows - near,
        near=near,
        candidates=pairs.compared,
        not_compared=pairs.not_compared,
    )


def _duplicates(
    names: pa.Array,
    known: int,
    texts: Texts,
    threshold: float,
    measure: Measure,
    rank_of: Callable[[I64], I64],
    work: Path,
    progress: Progress,
) -> tuple[pa.Table, Pairs]:
    """What leaves, and how many pairs were compared for it; the first `known` rows stay. `rank_of` ranks rows of such lengths."""
    bands = Bands.at(threshold if measure == "jaccard" else _CONTAINED * threshold)
    sums, lengths, keys = _read(texts, len(names), bands, lambda done: progress("reading", done, len(names)))
    rank = rank_of(lengths)
    first = _first(texts, sums, rank, work)
    del sums, lengths
    distinct = first == np.arange(len(names))
    exact = np.flatnonzero(~distinct[known:]) + known
    winners = first[exact]
    del first
    rows = np.flatnonzero(distinct)
    rank = rank[rows]
    matches = near_duplicates(
        lambda: _chosen(texts(), distinct),
        take(keys, rows),
        rank,
        threshold,
        work,
        lambda done, total: progress("comparing", done, total),
        protected=int(distinct[:known].sum()),
        measure=measure,
    )
    near = np.flatnonzero(matches.partner >= 0)
    dropped = pa.table(
        {
            "id": names.take(np.concatenate([exact, rows[near]])),
            "reason": ["exact_duplicate"] * len(exact) + ["near_duplicate"] * len(near),
            "partner_id": names.take(np.concatenate([winners, rows[matches.partner[near]]])),
            "score": np.concatenate([np.ones(len(exact)), matches.score[near]]),
        }
    )
    return dropped.cast(DROPPED_SCHEMA), matches.pairs


def _read(texts: Texts, total: int, bands: Bands, read: Callable[[int], None]) -> tuple[U64, I64, Keys]:
    """Of each row what `letter_sums` gives, its length in characters, and its band keys."""
    sums, lengths = np.empty(total, dtype=np.uint64), np.empty(total, dtype=np.int64)
    keys = [np.empty(total, dtype=np.uint32) for _ in range(bands.count)]
    done = 0
    for array in texts():
        points = code_points(array)
        place = slice(done, done + len(array))
        sums[place], lengths[place] = letter_sums(*points), np.diff(points[1])
        for band, own in zip(keys, band_keys(*points, bands), strict=True):
            band[place] = own
        done += len(array)
        read(done)
    return sums, lengths, keys


def _first(texts: Texts, sums: U64, rank: I64, work: Path) -> I64:
    """For each row the one of lowest rank that is equal to it; only rows of equal sums need be normalised to know."""
    order = np.argsort(sums, kind="stable")
    ordered = sums[order]
    equal = ordered[1:] == ordered[:-1]
    wanted = np.zeros(len(sums), dtype=bool)
    wanted[order[1:][equal]] = wanted[order[:-1][equal]] = True
    del order, ordered
    rows = np.flatnonzero(wanted)
    keys = np.empty(len(rows), dtype="V16")
    values = (value for array in _chosen(texts(), wanted) for value in array.to_pylist())
    for number, value in enumerate(values):
        text = normalise(text_of(value), "zh")  # of whatever language: a row may be told from another by more than a script
        keys[number] = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    first = np.arange(len(sums))
    first[rows] = rows[first_of_equal(keys, rank[rows], work)]
    return first


def _values(table: TextTable, column: str) -> pa.ChunkedArray:
    if column not in table.schema.names:
        raise InputError(f"{table.path}: no column {column!r} to keep rows by; it has {', '.join(table.schema.names)}")
    kind = table.schema.field(column).type
    values = pa.chunked_array([batch.column(0) for batch in table.batches([column])], kind)
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
    try:
        pc.sort_indices(values.slice(0, 1))
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise InputError(f"{table.path}: column {column!r} is {kind}, which has no order to keep rows by") from None
    return values


def _rank(names: pa.Array, lengths: I64, known: int, policy: str, values: pa.ChunkedArray | None) -> I64:
    """The row's place in the order in which rows win: those of an earlier release, then by the policy, then by id."""
    columns: dict[str, Any] = {"new": np.arange(len(names)) >= known, "id": names}
    order = [("new", "ascending"), ("id", "ascending")]
    if policy != "first":
        columns["length"] = -lengths
        order.insert(1, ("length", "ascending"))
    if values is not None:
        columns["value"] = pa.chunked_array([pa.nulls(known, values.type), *values.chunks], values.type)
        order.insert(1, ("value", "descending" if policy == "highest" else "ascending"))
    rank = np.empty(len(names), dtype=np.int64)
    rank[pc.sort_indices(pa.table(columns), sort_keys=order).to_numpy()] = np.arange(len(names))
    return rank


def _chosen(arrays: Iterable[pa.Array], wanted: npt.NDArray[np.bool_]) -> Iterator[pa.Array]:
    read = 0
    for array in arrays:
        yield array.filter(pa.array(wanted[read : read + len(array)]))
        read += len(array)
