"""The loops over every character: shingles' hashes, MinHash slots, sets and their intersections; compiled with numba.

Imported where rows are compared and not before: loading takes half a second, and the first import on a machine, which
compiles, three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from pipeline.clean.shingles import SHINGLE, SLOTS  # compiled in; numba's cache is renewed when this file changes, not theirs

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_BYTES = numba.types.Array(numba.uint8, 1, "C", readonly=True)
_POINTS = numba.types.Array(numba.uint32, 1, "C", readonly=True)  # of texts, one after the other; none is shorter than a shingle
_STARTS = numba.types.Array(numba.int64, 1, "C", readonly=True)  # where each of them begins and the last one ends
_TABLE = numba.uint64[::1]  # a hash table of a power of two places, open addressing; 0 is an empty one

_U = np.uint64
_K = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9], dtype=np.uint64)
_K0, _K1, _K2, _K3 = _K
_BORROWED = np.uint32(0x9E3779B1)
_EMPTY = np.uint32(0xFFFFFFFF)
_LAST = SHINGLE - 1
_I_WITH_DOT, _DOT_ABOVE = 0x130, 0x307
_SPARSE = 1 << 16  # characters up to which a text's table has four places for each; above it two


def _compiled(signature: Any) -> Callable[[Kernel], Kernel]:
    """Kept beside the module or in the user's cache; where neither can be written, compiled by every process anew."""

    def compiled(function: Kernel) -> Kernel:
        try:
            return numba.njit(signature, cache=True, nogil=True)(function)  # type: ignore[no-any-return]
        except (RuntimeError, OSError):  # numba's "no locator available"; a full disk
            return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]

    return compiled


@numba.njit(inline="always")
def _hash(points: Any, at: Any) -> Any:
    """Of the shingle that begins there; every bit depends on all of its characters."""
    value = (_U(points[at]) | _U(points[at + _U(1)]) << _U(21) | _U(points[at + _U(2)]) << _U(42)) * _K0  # a code point has 21 bits
    value += (_U(points[at + _U(3)]) | _U(points[at + _U(4)]) << _U(21)) * _K1
    value ^= value >> _U(32)
    value *= _K2
    value ^= value >> _U(29)
    value *= _K3
    return value ^ value >> _U(32)


@_compiled(numba.int64(_BYTES, _STARTS, _POINTS, numba.uint32[::1], numba.int64[::1]))
def lowered(data: Any, offsets: Any, lower: Any, points: Any, starts: Any) -> int:
    """Decodes valid UTF-8 into `points`, lower-cased by the table; there are never more points than bytes. Gives their number."""
    written, at = _U(0), _U(offsets[0])
    for text in range(len(offsets) - 1):
        starts[text] = written
        while at < _U(offsets[text + 1]):
            first = data[at]
            if first < 0x80:
                point, size = numba.uint32(first), 1
            elif first < 0xE0:
                point, size = numba.uint32(first & 0x1F) << 6 | data[at + _U(1)] & 0x3F, 2
            elif first < 0xF0:
                point, size = numba.uint32(first & 0x0F) << 12 | (data[at + _U(1)] & 0x3F) << 6 | data[at + _U(2)] & 0x3F, 3
            else:
                point = numba.uint32(first & 0x07) << 18 | (data[at + _U(1)] & 0x3F) << 12
                point, size = point | (data[at + _U(2)] & 0x3F) << 6 | data[at + _U(3)] & 0x3F, 4
            at += _U(size)
            points[written] = lower[point]
            written += _U(1)
            if point == _I_WITH_DOT:  # the one letter that becomes two
                points[written] = _DOT_ABOVE
                written += _U(1)
    starts[len(offsets) - 1] = written
    return int(written)


@_compiled(numba.void(_POINTS, _STARTS, numba.int64, numba.uint32[:, ::1]))
def band_keys(points: Any, starts: Any, rows: int, keys: Any) -> None:
    """`keys` (bands, texts): one permutation into 128 slots, the lowest value of each; a band is the next `rows` slots.

    A shingle's slot is the top 7 bits of its hash, its value the 32 bits below. Empty slots borrow from the next one that is not
    empty, with a mark of how far that is.
    """
    slots, whole = np.empty(SLOTS, np.uint32), np.empty(SLOTS, np.uint32)
    for text in range(len(starts) - 1):
        slots[:] = _EMPTY
        for at in range(_U(starts[text]), _U(starts[text + 1] - _LAST)):
            value = _hash(points, at)
            slot = value >> _U(57)
            slots[slot] = min(slots[slot], np.uint32(value >> _U(25)))
        distance = 0
        while distance < SLOTS - 1 and slots[distance] == _EMPTY:
            distance += 1
        lender, far = slots[distance], np.uint32(distance)
        for slot in range(SLOTS - 1, -1, -1):
            far += np.uint32(1)
            if slots[slot] != _EMPTY:
                lender, far = slots[slot], np.uint32(0)
            whole[slot] = lender + far * _BORROWED
        for band in range(len(keys)):
            key = _U(0)
            for row in range(rows):
                key = (key ^ _U(whole[band * rows + row])) * _K[row & 3]
                key ^= key >> _U(31)
            keys[band, text] = np.uint32(key >> _U(32))


@_compiled(numba.int64(numba.int64))
def _places(characters: int) -> int:
    """Of a table for a text of so many."""
    wanted = characters * 4 if characters <= _SPARSE else characters * 2
    places = 16
    while places < wanted:
        places *= 2
    return places


@_compiled(numba.int64(_POINTS, numba.uint64, numba.uint64, _TABLE))
def _fill(points: Any, begin: Any, end: Any, table: Any) -> int:
    """Puts a text's shingles into the table, and counts the distinct ones."""
    table[:] = _U(0)
    mask = _U(len(table) - 1)
    found = 0
    for at in range(begin, end - _U(_LAST)):
        value = _hash(points, at) | _U(1)
        place = value >> _U(8) & mask
        while table[place] != _U(0) and table[place] != value:
            place = place + _U(1) & mask
        found += table[place] == _U(0)
        table[place] = value
    return found


@_compiled(numba.void(_POINTS, _STARTS, numba.int32[::1]))
def set_sizes(points: Any, starts: Any, sizes: Any) -> None:
    """How many distinct shingles each text has."""
    longest = 0
    for text in range(len(starts) - 1):
        longest = max(longest, starts[text + 1] - starts[text])
    table = np.empty(_places(longest), np.uint64)
    for text in range(len(starts) - 1):
        begin, end = starts[text], starts[text + 1]
        sizes[text] = _fill(points, _U(begin), _U(end), table[: _places(end - begin)])


@_compiled(numba.void(_POINTS, _STARTS, _STARTS, _STARTS, numba.int32[::1]))
def intersections(points: Any, starts: Any, left: Any, right: Any, common: Any) -> None:
    """How many distinct shingles are in both texts of each pair; pairs of the same left text in a row cost one table."""
    longest = 0
    for text in left:
        longest = max(longest, starts[text + 1] - starts[text])
    table = np.empty(_places(longest), np.uint64)
    met = np.zeros(len(table), np.uint32)  # the pair in which a place was counted last
    places = 0
    for pair in range(len(left)):
        begin, end = starts[left[pair]], starts[left[pair] + 1]
        if pair == 0 or left[pair] != left[pair - 1]:
            places = _places(end - begin)
            _fill(points, _U(begin), _U(end), table[:places])
        mask, mark, found = _U(places - 1), np.uint32(pair + 1), 0
        for at in range(_U(starts[right[pair]]), _U(starts[right[pair] + 1] - _LAST)):
            value = _hash(points, at) | _U(1)
            place = value >> _U(8) & mask
            while table[place] != value and table[place] != _U(0):
                place = place + _U(1) & mask
            if table[place] == value:
                found += met[place] != mark
                met[place] = mark
        common[pair] = found


@_compiled(numba.void(_POINTS, _STARTS, numba.types.Array(numba.uint64, 1, "C", readonly=True), numba.uint64[::1]))
def sums(points: Any, starts: Any, values: Any, totals: Any) -> None:
    """Of the values of each text's characters; a text may be empty here."""
    for text in range(len(starts) - 1):
        total = _U(0)
        for at in range(_U(starts[text]), _U(starts[text + 1])):
            total += values[points[at]]
        totals[text] = total
