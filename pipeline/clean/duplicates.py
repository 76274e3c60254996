"""Exact and near-duplicates: one operator, for a build and for `glotloom dedup`, also against an earlier release."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.clean.exact import first_of_equal, letter_sums, normalise
from pipeline.clean.near import Keys, Pairs, Texts, near_duplicates, take
from pipeline.clean.shingles import (
    I64,
    U32,
    U64,
    Bands,
    Measure,
    band_keys,
    code_points,
    padded,
    set_sizes,
    similarity,
)
from pipeline.engine.batches import in_threads
from pipeline.engine.step import Context, Decisions, Progress, silent
from pipeline.rows.tables import TextTable, text_of

_CONTAINED = 0.8  # of the threshold: at .8 the bands find 99 % of texts of which one is the other and a half more (J = .67)

RankOf = Callable[[I64], I64]
"""From the lengths of all rows to their ranks: of duplicates the one of the lowest rank stays."""


@dataclass(frozen=True)
class Duplicates:
    """The rows that are dropped, ascending, with the row that each loses to, which stays; and how many pairs were compared."""

    row: I64
    partner: I64
    exact: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    """The similarity of the two, 1 where they are exact duplicates."""
    pairs: Pairs

    @property
    def reason(self) -> pa.Array:
        return pa.array(np.where(self.exact, "exact_duplicate", "near_duplicate"), pa.string())


def find_duplicates(
    texts: Texts,
    total: int,
    threshold: float,
    rank_of: RankOf,
    work: Path,
    *,
    known: int = 0,
    measure: Measure = "jaccard",
    threads: int = 1,
    progress: Progress = silent,
) -> Duplicates:
    """Of `total` texts; the first `known` stay in any case.

    Exact duplicates are the same after NFKC, case, white space and Chinese script; near-duplicates reach `threshold`. What is
    equal to a row that is dropped as a near-duplicate goes with it, as a near-duplicate of the same row, whatever its own score.
    Memory: 88 bytes a row at a threshold of .8, and what `near_duplicates` says; texts are read three times at the most.
    """
    bands = Bands.at(threshold if measure == "jaccard" else _CONTAINED * threshold)
    sums, lengths, keys = _read(texts, total, bands, threads, lambda done: progress("reading", done, total))
    rank = rank_of(lengths)
    first = _first(texts, sums, rank, work)
    del sums, lengths
    distinct = first == np.arange(total)
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
        threads=threads,
    )
    near = np.flatnonzero(matches.partner >= 0)
    near_rows, near_partners = rows[near], rows[matches.partner[near]]
    place = np.minimum(np.searchsorted(near_rows, winners), max(0, len(near_rows) - 1))
    follows = near_rows[place] == winners if len(near_rows) else np.zeros(len(winners), dtype=bool)
    winners[follows] = near_partners[place[follows]]
    scores = np.ones(len(exact))
    scores[follows] = _similarities(texts, exact[follows], winners[follows], measure)
    row = np.concatenate([exact, near_rows])
    order = np.argsort(row)
    return Duplicates(
        row=row[order],
        partner=np.concatenate([winners, near_partners])[order],
        exact=np.concatenate([~follows, np.zeros(len(near), dtype=bool)])[order],
        score=np.concatenate([scores, matches.score[near]])[order],
        pairs=matches.pairs,
    )


def decide_duplicates(table: TextTable, context: Context, *, threshold: float) -> Decisions:
    """The first of several stays; turns are compared without their roles."""
    found = find_duplicates(
        table.texts,
        table.rows,
        threshold,
        lambda lengths: np.arange(len(lengths)),
        context.folder,
        threads=context.workers,
        progress=lambda phase, done, total: context.progress(done, total),
    )
    if found.pairs.not_compared:
        context.counters["pairs_not_compared"] = found.pairs.not_compared
    ids = table.names()
    details = ["" if exact else f"Jaccard {score:.3f}" for exact, score in zip(found.exact, found.score, strict=True)]
    dropped = {"row": found.row, "reason": found.reason, "partner_id": ids.take(found.partner).cast(pa.string())}
    return Decisions.of_columns(**dropped, score=found.score, detail=details)


def _read(texts: Texts, total: int, bands: Bands, threads: int, read: Callable[[int], None]) -> tuple[U64, I64, Keys]:
    """Of each row what `letter_sums` gives, its length in characters, and its band keys."""
    sums, lengths = np.empty(total, dtype=np.uint64), np.empty(total, dtype=np.int64)
    keys = [np.empty(total, dtype=np.uint32) for _ in range(bands.count)]
    done = 0
    for own_sums, own_lengths, own_keys in in_threads(functools.partial(_read_some, bands=bands), texts(), threads):
        place = slice(done, done + len(own_sums))
        sums[place], lengths[place] = own_sums, own_lengths
        for band, own in zip(keys, own_keys, strict=True):
            band[place] = own
        done += len(own_sums)
        read(done)
    return sums, lengths, keys


def _read_some(array: pa.Array, bands: Bands) -> tuple[U64, I64, U32]:
    points = code_points(array)
    return letter_sums(*points), np.diff(points[1]), band_keys(*points, bands)


def _similarities(texts: Texts, left: I64, right: I64, measure: Measure) -> npt.NDArray[np.float64]:
    """Of pairs of rows; their texts are held in memory."""
    rows = np.unique(np.concatenate([left, right]))
    wanted = np.zeros(int(rows[-1]) + 1 if len(rows) else 0, dtype=bool)
    wanted[rows] = True
    found = [code_points(array) for array in _chosen(texts(), wanted)] if len(rows) else []
    if not found:
        return np.empty(0)
    lengths = np.concatenate([np.diff(starts) for _, starts in found])
    points, starts = padded(np.concatenate([points for points, _ in found]), np.concatenate([[0], np.cumsum(lengths)]))
    return similarity(points, starts, set_sizes(points, starts), np.searchsorted(rows, left), np.searchsorted(rows, right), measure)


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


def _chosen(arrays: Iterable[pa.Array], wanted: npt.NDArray[np.bool_]) -> Iterator[pa.Array]:
    read = 0
    for array in arrays:
        own = wanted[read : read + len(array)]
        yield array.slice(0, len(own)).filter(pa.array(own))
        read += len(array)
