"""Parallel groups: rows that say the same in different languages.

For each pair of languages every row's nearest neighbours in the other one are scored by the ratio margin (Artetxe and Schwenk 2019,
arXiv 1811.01136): the cosine of the two divided by the mean cosine to their nearest neighbours, so that a row that is near to
everything is near to nothing. Two rows that are each other's best, and do not contradict each other in numbers, URLs or code, are
a pair where their margin reaches a threshold of their languages, which is fitted to the rows at hand (`fit_threshold`).

Pairs make groups, the surest first: two groups become one where no language stands in both and their rows are alike on the whole
(mean margin above threshold over all pairs across). So what each language says to English speaks for a pair of others too, and one
chance match does not chain two groups together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.clean.shingles import I64
from pipeline.engine.step import OnProgress
from pipeline.text.facts import Facts, contradict
from pipeline.vectors.nearest import F16, cosines_of, nearest

F64 = npt.NDArray[np.float64]

NEIGHBOURS = 4
"""The k of the margin."""
_SPARE = 2  # neighbours more that are candidates
_TRIED = 2  # candidates of a row that may bring groups together, should the best be taken
_LEAST_COSINE = 0.4
_LEAST_MARGIN = 1.0
# Of fewer mutual best pairs nothing can be estimated: at this margin XQuAD's questions reach .96 in every pair of languages.
_FEWEST = 20
_DEFAULT_MARGIN = 1.2
_POOR = 0.1  # share estimated wrong at that margin, beyond which none is good enough
ABSENT = 0.54
"""What a neighbour counts that a language has too few rows for: two single rows have to be as near as .7 to pass for the same."""
_ROUNDS = 3


@dataclass(frozen=True)
class Threshold:
    """Of one pair of languages: the least margin (infinite where none is good enough), how many mutual best pairs reach it, and
    what share of them is estimated to be wrong, None where there are too few to say."""

    margin: float
    pairs: int
    wrong: float | None


@dataclass(frozen=True)
class Groups:
    """`group` (rows): a number, -1 for a row without counterpart; `score`: its mean margin to the others, but for those that it was
    known to belong to before, NaN where that is all; `thresholds` by pair of languages."""

    group: I64
    score: F64
    thresholds: dict[tuple[str, str], Threshold]


@dataclass(frozen=True)
class _Pairs:
    """Candidates of two languages: rows of the first, rows of the second, margins."""

    left: I64
    right: I64
    margin: F64

    def __len__(self) -> int:
        return len(self.left)

    def chosen(self, which: npt.NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.left[which], self.right[which], self.margin[which])

    def mutual(self) -> npt.NDArray[np.bool_]:
        """Which are the best of both of their rows."""
        return self._first(self.left, 1) & self._first(self.right, 1)

    def among_best(self, count: int) -> npt.NDArray[np.bool_]:
        return self._first(self.left, count) & self._first(self.right, count)

    def _first(self, side: I64, count: int) -> npt.NDArray[np.bool_]:
        order = np.lexsort([self.right, self.left, -self.margin, side])
        place = np.empty(len(side), dtype=np.int64)
        ranked = side[order]
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])) if len(side) else np.empty(0, dtype=np.int64)
        place[order] = np.arange(len(side)) - np.repeat(starts, np.diff(np.append(starts, len(side))))
        return place < count


def parallel_groups(
    vectors: F16,
    languages: Sequence[str],
    facts: Callable[[int], Facts],
    *,
    known: I64 | None = None,
    precision: float = 0.97,
    progress: OnProgress = lambda done, total: None,
) -> Groups:
    """`vectors` (rows, 512) are of unit length, `languages` (rows) their languages, `facts(row)` what the row's text states.

    `known` (rows): equal numbers for rows that are known to belong together, -1 for the others. `precision` is the share of pairs
    that is to be right, by estimate, in each pair of languages.
    """
    codes = np.array(languages)
    rows = {language: np.flatnonzero(codes == language) for language in sorted(set(languages))}
    space = _Space(vectors, codes, rows)
    pairs: dict[tuple[str, str], _Pairs] = {}
    thresholds: dict[tuple[str, str], Threshold] = {}
    both = list(itertools.combinations(rows, 2))
    for done, (a, b) in enumerate(both):
        progress(done, len(both))
        found = space.candidates(a, b)
        fitting = np.ones(len(found), dtype=bool)
        for number in np.flatnonzero(found.margin >= _LEAST_MARGIN):
            fitting[number] = contradict(facts(int(found.left[number])), facts(int(found.right[number]))) is None
        pairs[a, b] = found.chosen(fitting)
        thresholds[a, b] = fit_threshold(pairs[a, b], (len(rows[a]), len(rows[b])), 1 - precision)
    progress(len(both), len(both))
    assembly = _Assembly(space, thresholds, facts)
    if known is not None:
        assembly.unite(known)
    assembly.unite_by(pairs)
    return Groups(*assembly.result(), thresholds)


def fit_threshold(pairs: _Pairs, sizes: tuple[int, int], wrong: float) -> Threshold:
    """The least margin at which at most the share `wrong` of the mutual best pairs is estimated to be wrong.

    The estimate hides the right answers: of rows that have their pair, that pair is taken away, and what is each other's best then
    is wrong for certain. As many of the rows without a pair as either language has are expected to find such a wrong one.
    Where no margin does, it is 1.2 if no more than a tenth is estimated to be wrong there, and infinite if more. With fewer than 20
    mutual best pairs it is 1.2, and nothing is estimated.
    """
    mutual = pairs.chosen(pairs.mutual())
    margins = np.sort(mutual.margin[mutual.margin >= _LEAST_MARGIN])[::-1]
    if len(margins) < _FEWEST:
        return Threshold(_DEFAULT_MARGIN, int((margins >= _DEFAULT_MARGIN).sum()), None)
    chosen = Threshold(_LEAST_MARGIN, len(margins), 0.0)
    for _ in range(_ROUNDS):
        taken = mutual.chosen(mutual.margin >= chosen.margin)
        if not len(taken):
            break
        wrong_ones = _without(pairs, taken)
        decoys = np.sort(wrong_ones.margin)
        above = len(decoys) - np.searchsorted(decoys, margins, side="left")
        count = np.arange(1, len(margins) + 1)
        unpaired = (min(sizes) - count + 1) / (min(sizes) + 1)
        expected = (above + 1) * (min(sizes) / len(taken)) * unpaired / count
        fine = np.flatnonzero(expected <= wrong)
        if not len(fine):
            reach = int((margins >= _DEFAULT_MARGIN).sum())
            if reach and expected[reach - 1] <= _POOR:
                return Threshold(_DEFAULT_MARGIN, reach, float(expected[reach - 1]))
            return Threshold(math.inf, 0, 0.0)
        chosen = Threshold(float(margins[fine[-1]]), int(fine[-1]) + 1, float(expected[fine[-1]]))
    return chosen


def _without(pairs: _Pairs, taken: _Pairs) -> _Pairs:
    """The mutual best pairs of rows in `taken` when those are taken away."""
    width = np.int64(1) << 32
    gone = np.isin(pairs.left * width + pairs.right, taken.left * width + taken.right)
    left = pairs.chosen(~gone)
    best = left.chosen(left.mutual())
    return best.chosen(np.isin(best.left, taken.left))


class _Space:
    """The rows as vectors, and how near to each the neighbours of each language are."""

    def __init__(self, vectors: F16, codes: npt.NDArray[np.str_], rows: dict[str, I64]) -> None:
        self.vectors, self.codes, self.rows = vectors, codes, rows
        self._number = {language: number for number, language in enumerate(rows)}
        self._spoken = np.array([self._number[code] for code in codes.tolist()], dtype=np.int64)
        self._nearness = np.full((len(rows), len(codes)), np.nan, dtype=np.float32)  # of each row's neighbours, by their language

    def candidates(self, a: str, b: str) -> _Pairs:
        ahead, back = self._neighbours(a, b), self._neighbours(b, a)
        width = np.int64(1) << 32
        keyed = np.unique(np.concatenate([ahead[0] * width + ahead[1], back[1] * width + back[0]]))
        left, right = keyed // width, keyed % width
        cosines = cosines_of(self.vectors, left, right)
        near = cosines >= _LEAST_COSINE
        left, right = left[near], right[near]
        return _Pairs(left, right, cosines[near] / self._mean_nearness(left, right))

    def _neighbours(self, a: str, b: str) -> tuple[I64, I64]:
        own, others = self.rows[a], self.rows[b]
        found, _ = nearest(self.vectors[own], self.vectors[others], NEIGHBOURS + _SPARE)
        left, right = np.repeat(own, found.shape[1]), others[found.ravel()]
        cosines = np.sort(cosines_of(self.vectors, left, right).reshape(found.shape), axis=1)
        best = cosines[:, -NEIGHBOURS:]
        self._nearness[self._number[b], own] = (best.sum(axis=1) + (NEIGHBOURS - best.shape[1]) * ABSENT) / NEIGHBOURS
        return left, right

    def margins(self, left: I64, right: I64) -> F64:
        return cosines_of(self.vectors, left, right) / self._mean_nearness(left, right)

    def _mean_nearness(self, left: I64, right: I64) -> F64:
        ahead = self._nearness[self._spoken[right], left].astype(np.float64)
        return np.maximum((ahead + self._nearness[self._spoken[left], right]) / 2, 1e-3)


class _Assembly:
    """Groups as they grow."""

    def __init__(self, space: _Space, thresholds: dict[tuple[str, str], Threshold], facts: Callable[[int], Facts]) -> None:
        self._space, self._facts = space, facts
        self._thresholds = thresholds
        self._usual: dict[tuple[str, str], float] = {}  # what a pair that comes along with another has to reach
        for (one, other), threshold in thresholds.items():
            usual = threshold.margin if math.isfinite(threshold.margin) else _DEFAULT_MARGIN
            self._usual[one, other] = self._usual[other, one] = usual
        self._group = np.full(len(space.codes), -1)
        self._members: dict[int, list[int]] = {}
        self._origin = -1 - np.arange(len(space.codes))  # equal for rows that are known to belong together

    def unite(self, known: I64) -> None:
        self._origin = np.where(known >= 0, known, self._origin)
        order = np.argsort(known, kind="stable")
        order = order[known[order] >= 0]
        for _, rows in itertools.groupby(order.tolist(), key=lambda row: known[row]):
            members = list(rows)
            if len({self._space.codes[row] for row in members}) > 1:
                self._set(members)

    def unite_by(self, pairs: dict[tuple[str, str], _Pairs]) -> None:
        over, lefts, rights = [], [], []
        for both, found in pairs.items():
            least = self._thresholds[both].margin
            tried = found.chosen(found.among_best(_TRIED) & (found.margin >= least))
            over.append(tried.margin - least)
            lefts.append(tried.left)
            rights.append(tried.right)
        if not over:
            return
        left, right = np.concatenate(lefts), np.concatenate(rights)
        order = np.lexsort([right, left, -np.concatenate(over)])
        for a, b in zip(left[order].tolist(), right[order].tolist(), strict=True):
            self._try(a, b)

    def _try(self, a: int, b: int) -> None:
        ours, theirs = self._of(a), self._of(b)
        if b in ours or {self._space.codes[row] for row in ours} & {self._space.codes[row] for row in theirs}:
            return
        across = list(itertools.product(ours, theirs))
        if len(across) > 1:
            if any(contradict(self._facts(x), self._facts(y)) for x, y in across):
                return
            left, right = np.array(across).T
            least = [self._usual[self._space.codes[x], self._space.codes[y]] for x, y in across]
            if (self._space.margins(left, right) - least).mean() < 0:
                return
        self._set(ours + theirs)

    def _of(self, row: int) -> list[int]:
        return self._members[self._group[row]] if self._group[row] >= 0 else [row]

    def _set(self, members: list[int]) -> None:
        for row in members:
            self._members.pop(int(self._group[row]), None)
        self._members[min(members)] = members
        self._group[members] = min(members)

    def result(self) -> tuple[I64, F64]:
        lefts, rights = [], []
        for members in self._members.values():
            ordered = sorted(members, key=self._origin.__getitem__)
            parts = [list(part) for _, part in itertools.groupby(ordered, key=self._origin.__getitem__)]
            for ours, theirs in itertools.combinations(parts, 2):
                for a, b in itertools.product(ours, theirs):
                    lefts.append(a)
                    rights.append(b)
        left, right = np.array(lefts, dtype=np.int64), np.array(rights, dtype=np.int64)
        margins = self._space.margins(left, right)
        size = len(self._group)
        total = np.bincount(left, margins, size) + np.bincount(right, margins, size)
        count = np.bincount(left, minlength=size) + np.bincount(right, minlength=size)
        with np.errstate(invalid="ignore"):
            return self._group, total / count
