"""Near-duplicates: candidates by MinHash bands, every candidate verified by exact Jaccard, no transitive closure.

A row leaves only when it is verified against a row that stays (a star around the kept row, not a chain), so templated rows with
different content stay. Of two near-duplicates the one of the lower rank stays.

A bucket (the rows that agree in a band) is compared leader by leader: the row of lowest rank with all others, those that are its
near-duplicates are done, the next of the rest with the rest. So a bucket of copies costs one comparison a row. What was done
with a leader that itself leaves is compared again among the rows that stay.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.clean.shingles import (
    I64,
    U32,
    U64,
    Measure,
    code_points,
    distinct,
    padded,
    set_sizes,
    similarity,
)
from pipeline.engine.batches import in_threads
from pipeline.engine.step import OnProgress

# A bucket of m rows of which few are near-duplicates (one template, a thousand fillings) gets 5,000 / m leaders, and at least
# one; then its rows are compared with their neighbours in the order of their other bands, where copies stand together.
_COMPARISONS_OF_A_BUCKET = 5_000
_NEIGHBOURS = 2
_IN_MEMORY = 1 << 26  # bytes of text; more go to a file
_PAIRS_AT_ONCE = 1 << 15
_MOST_ROUNDS = 20
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

Texts = Callable[[], Iterable[pa.Array]]
"""Gives the texts of all rows in arrays, in the same order every time it is called."""


Keys = list[U32]
"""One array for each band, of a number for each row."""


@dataclass(frozen=True)
class Pairs:
    """How many pairs were verified, and how many in the same bucket were not, since it was too large."""

    compared: int
    not_compared: int


@dataclass(frozen=True)
class Matches:
    """What leaves: `partner` (rows) is the row that a row loses to, -1 where it stays; `score` their Jaccard similarity."""

    partner: I64
    score: npt.NDArray[np.float64]
    pairs: Pairs


def take(keys: Keys, rows: I64) -> Keys:
    """The keys of these rows, in this order; the rest is let go, band by band: they are most of the memory."""
    for number, band in enumerate(keys):
        keys[number] = band[rows]
    return keys


def near_duplicates(
    texts: Texts,
    keys: Keys,
    rank: I64,
    threshold: float,
    work: Path,
    progress: OnProgress = lambda done, total: None,
    protected: int = 0,
    measure: Measure = "jaccard",
    threads: int = 1,
) -> Matches:
    """What of these texts is dropped. `keys` is a `band_keys` of all rows for each band, and is used up. `rank` (rows): of two
    near-duplicates the lower one stays; all are different. Rows whose rank is among the `protected` lowest stay in any case, and
    others leave for each of them. `measure` is what reaches the threshold.

    Memory grows by some 60 bytes a row beside the keys, which are let go of; the texts of rows with candidates, if many, stand
    in a file in `work`. The result does not depend on the order of the rows or how they are cut into arrays.
    """
    total = len(rank)
    by_rank = np.argsort(rank)
    members = np.flatnonzero(_in_buckets(take(keys, by_rank)))
    take(keys, members)
    rows = by_rank[members]
    del by_rank
    protected = int(np.searchsorted(members, protected))
    wanted = np.zeros(total, dtype=bool)
    wanted[rows] = True
    place = np.empty(len(rows), dtype=np.uint32)
    place[np.argsort(rows)] = np.arange(len(rows), dtype=np.uint32)
    with closing(_Store(work)) as store:
        starts, sizes = np.zeros(len(rows) + 1, dtype=np.int64), np.empty(len(rows), dtype=np.int32)
        read = stored = 0
        for array in texts():
            own = wanted[read : read + len(array)]
            if own.any():
                points, at = padded(*code_points(array.filter(pa.array(own))))
                sizes[stored : stored + len(at) - 1] = set_sizes(points, at)
                starts[stored + 1 : stored + len(at)] = np.diff(at)
                store.add(points)
                stored += len(at) - 1
            read += len(array)
            progress(read, total)
        np.cumsum(starts, out=starts)
        points = store.points()

        def verify(pairs: U64) -> npt.NDArray[np.float64]:
            some = (pairs[begin : begin + _PAIRS_AT_ONCE] for begin in range(0, len(pairs), _PAIRS_AT_ONCE))
            scores = [np.empty(0)]
            for own in in_threads(compared, some, threads):
                scores.append(own)
                store.let_go()
            return np.concatenate(scores)

        def compared(some: U64) -> npt.NDArray[np.float64]:
            left, right = place[some >> _32].astype(np.int64), place[some & _LOW].astype(np.int64)
            return similarity(points, starts, sizes, left, right, measure)

        search = _Search(keys, threshold, verify, protected)
        partner, score = search.run()
    found = Matches(np.full(total, -1), np.zeros(total), Pairs(search.verified, search.not_compared))
    left = np.flatnonzero(partner >= 0)
    found.partner[rows[left]] = rows[partner[left]]
    found.score[rows[left]] = score[left]
    return found


class _Store:
    """Code points that are added piece by piece: in memory, or once they are many in a file in `work`."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._memory = np.empty(_IN_MEMORY // 4, dtype=np.uint32)  # takes memory as it is written to
        self._size = 0
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None

    def add(self, points: U32) -> None:
        if self._file is None and self._size + len(points) > len(self._memory):
            self._file = tempfile.TemporaryFile(dir=self._work)  # noqa: SIM115  # closed by `close`
            self._memory[: self._size].tofile(self._file)
            self._memory = self._memory[:0]
        if self._file is not None:
            points.tofile(self._file)
        else:
            self._memory[self._size : self._size + len(points)] = points
        self._size += len(points)

    def points(self) -> U32:
        if self._file is None:
            return self._memory[: self._size]
        self._file.flush()
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, dtype=np.uint32)

    def let_go(self) -> None:
        """Of a file: what was looked at need not stay in this process's memory; the system keeps it as long as it has room."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _in_buckets(keys: Keys) -> npt.NDArray[np.bool_]:
    """Which rows agree with another one in some band."""
    found = np.zeros(len(keys[0]), dtype=bool)
    for band in keys:
        found[_positions(_buckets(band, None))] = True
    return found


def _buckets(band: U32, rows: I64 | None) -> U64:
    """`key << 32 | row`, sorted, of the rows (None: all) that share their key with another one."""
    numbers = np.arange(len(band), dtype=np.uint64) if rows is None else rows.astype(np.uint64)
    keyed = (band if rows is None else band[rows]).astype(np.uint64) << _32
    keyed |= numbers
    keyed.sort()
    return _shared(keyed)


def _shared(keyed: U64) -> U64:
    """Without the rows that are alone with their key."""
    heads = keyed >> _32
    same = heads[1:] == heads[:-1]
    several = np.zeros(len(keyed), dtype=bool)
    several[1:] = same
    several[:-1] |= same
    return keyed[several]


def _positions(keyed: U64) -> I64:
    return (keyed & _LOW).astype(np.int64)


class _Search:
    """Finds the pairs; rows are numbered by their rank here."""

    def __init__(self, keys: Keys, threshold: float, verify: Callable[[U64], npt.NDArray[np.float64]], protected: int) -> None:
        self.keys = keys
        self.threshold = threshold
        self.verify = verify
        self.protected = protected
        self.pairs = np.empty(0, dtype=np.uint64)  # earlier << 32 | later, sorted: all that were verified
        self.scores = np.empty(0, dtype=np.float64)
        self.absorbed = np.empty(0, dtype=np.uint64)  # pairs (leader, row) after which the row was not compared further
        self.not_compared = 0

    @property
    def verified(self) -> int:
        return len(self.pairs)

    def run(self) -> tuple[I64, npt.NDArray[np.float64]]:
        """For each row the row that it loses to (-1: it stays), and their similarity."""
        rows = None
        for _ in range(_MOST_ROUNDS):
            known = len(self.pairs)
            self.not_compared = 0
            self._compare(rows)
            partner, score = self._star()
            orphans = self._orphans(partner)
            if len(self.pairs) == known or not orphans.any():
                break
            rows = self._beside(orphans, partner < 0)
        return partner, score

    def _compare(self, rows: I64 | None) -> None:
        """Leader by leader through the buckets of all bands at once."""
        left = [_buckets(band, rows) for band in self.keys]
        level, absorbed = 0, [self.absorbed]
        while any(len(keyed) for keyed in left):
            level += 1
            led = [_leaders(keyed) for keyed in left]
            self._learn([pairs[_positions(pairs) >= self.protected] for _, pairs, _ in led])
            close: list[U64] = []
            for band, (keyed, (member, pairs, sizes)) in enumerate(zip(left, led, strict=True)):
                similar = _positions(pairs) >= self.protected  # two of an earlier release are not compared: both stay
                similar[similar] = self._score(pairs[similar]) >= self.threshold
                absorbed.append(pairs[similar])
                rest = keyed[member][~similar]
                over = sizes[~similar] * level > _COMPARISONS_OF_A_BUCKET
                close += self._neighbours(band, rest[over])
                left[band] = _shared(rest[~over])
            self._learn(close)
        self.absorbed = distinct(np.concatenate(absorbed))

    def _neighbours(self, band: int, keyed: U64) -> list[U64]:
        """Of what is left of large buckets: each row with the next few in the order of its other bands."""
        if not len(keyed):
            return []
        rows, heads = _positions(keyed), keyed >> _32
        others = [(self.keys[band + 1 :] + self.keys[: band + 1])[number][rows] for number in range(min(6, len(self.keys)))]
        order = np.lexsort([*others[::-1], heads])
        rows, heads = rows[order], heads[order]
        pairs = []
        for distance in range(1, _NEIGHBOURS + 1):
            same = heads[distance:] == heads[:-distance]
            a, b = rows[:-distance][same].astype(np.uint64), rows[distance:][same].astype(np.uint64)
            found = np.minimum(a, b) << _32 | np.maximum(a, b)
            pairs.append(found[_positions(found) >= self.protected])
        bucket = np.cumsum(np.append(False, heads[1:] != heads[:-1]))
        sizes, fixed = np.bincount(bucket), np.bincount(bucket, weights=rows < self.protected).astype(np.int64)
        self.not_compared += int((sizes * (sizes - 1) // 2 - fixed * (fixed - 1) // 2).sum()) - sum(len(part) for part in pairs)
        return pairs

    def _learn(self, pairs: list[U64]) -> None:
        """Verifies those that were not verified before."""
        asked = distinct(np.concatenate(pairs)) if pairs else self.pairs[:0]
        place = np.searchsorted(self.pairs, asked)
        known = place < len(self.pairs)
        known[known] = self.pairs[place[known]] == asked[known]
        new, place = asked[~known], place[~known]
        if len(new):
            scores = self.verify(new)
            self.pairs = np.insert(self.pairs, place, new)
            self.scores = np.insert(self.scores, place, scores)

    def _score(self, pairs: U64) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = self.scores[np.searchsorted(self.pairs, pairs)]
        return found

    def _star(self) -> tuple[I64, npt.NDArray[np.float64]]:
        """Row by row in the order of rank: one leaves if one that stays is similar, the most similar of these being its partner."""
        good = (self.scores >= self.threshold) & (_positions(self.pairs) >= self.protected)
        earlier, later, scores = self.pairs[good] >> _32, _positions(self.pairs[good]), self.scores[good]
        partner = np.full(len(self.keys[0]), -1)
        score = np.zeros(len(self.keys[0]))
        order = np.lexsort([earlier, -scores, later])
        for a, b, likeness in zip(earlier[order].tolist(), later[order].tolist(), scores[order].tolist(), strict=True):
            if partner[b] < 0 and partner[a] < 0:
                partner[b], score[b] = a, likeness
        return partner, score

    def _orphans(self, partner: I64) -> npt.NDArray[np.bool_]:
        """Rows that stay though the leader after which they were not compared further does not."""
        leaders, members = (self.absorbed >> _32).astype(np.int64), _positions(self.absorbed)
        orphans = np.zeros(len(partner), dtype=bool)
        orphans[members[(partner[leaders] >= 0) & (partner[members] < 0)]] = True
        return orphans

    def _beside(self, orphans: npt.NDArray[np.bool_], alive: npt.NDArray[np.bool_]) -> I64:
        """The rows that stay and share a bucket with an orphan."""
        found = np.zeros(len(alive), dtype=bool)
        for band in self.keys:
            wanted = distinct(band[orphans])
            low = np.zeros(1 << 16, dtype=bool)
            low[wanted.astype(np.uint16)] = True
            rows = np.flatnonzero(low[band.astype(np.uint16)] & alive)
            place = np.minimum(np.searchsorted(wanted, band[rows]), len(wanted) - 1)
            found[rows[wanted[place] == band[rows]]] = True
        return np.flatnonzero(found)


def _leaders(keyed: U64) -> tuple[npt.NDArray[np.bool_], U64, I64]:
    """Of sorted buckets: which are not the first of theirs; each one's pair with that first; the size of its bucket."""
    heads = keyed >> _32
    first = np.ones(len(keyed), dtype=bool)
    np.not_equal(heads[1:], heads[:-1], out=first[1:])
    begins = np.flatnonzero(first)
    sizes = np.diff(np.append(begins, len(keyed)))
    leader = np.repeat(keyed[begins] & _LOW, sizes)
    member = ~first
    return member, leader[member] << _32 | keyed[member] & _LOW, np.repeat(sizes, sizes)[member]
