"""Shingles and MinHash band keys of many texts at once, in numpy over Arrow's buffers.

A text's shingles are the windows of 5 consecutive code points of its lower-cased form; a text shorter than that is one
shingle, padded. Nothing is split into words, so no script is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SHINGLE = 5
SLOTS = 128
_PAD = 0x110000  # no code point
_POINTS_AT_ONCE = 50_000  # what is worked on stays in the cache
_ROWS_AT_ONCE = 4_096
_HASH_BITS = 48  # two texts of a thousand shingles share one by collision once in 3 x 10^8 pairs
_EMPTY = np.uint32(0xFFFFFFFF)
_K = [np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9)]

Whole = TypeVar("Whole", np.uint32, np.uint64)
Measure = Literal["jaccard", "containment"]
U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bands:
    """How 128 slots are cut: a pair of Jaccard s becomes a candidate with probability `1 - (1 - s**rows)**count`."""

    count: int
    rows: int

    @classmethod
    def at(cls, threshold: float) -> Bands:
        """The most selective bands that find 99 % of the pairs .02 above the threshold: 18 of 7 for .8."""
        similar = min(1.0, threshold + 0.02)
        fitting = (rows for rows in range(SLOTS, 0, -1) if 1 - (1 - similar**rows) ** (SLOTS // rows) >= 0.99)
        rows = next(fitting, 1)
        return cls(SLOTS // rows, rows)


def band_keys(points: U32, starts: I64, bands: Bands) -> U32:
    """(bands, texts), of texts as `code_points` gives them: equal where two agree in a whole band, and by chance once in 2^32."""
    keys = np.empty((bands.count, len(starts) - 1), dtype=np.uint32)
    for first, part, at in _pieces(points, starts):
        rows = len(at) - 1
        hashes = _windows(part, at)
        slots = np.full(rows * SLOTS, _EMPTY, dtype=np.uint32)
        place = _owners(at, np.arange(rows, dtype=np.int64) * SLOTS)
        place += (hashes >> np.uint64(57)).view(np.int64)  # the slot is a hash's top 7 bits
        hashes >>= np.uint64(25)
        np.minimum.at(slots, place, hashes.astype(np.uint32))  # its value the 32 bits below
        keys[:, first : first + rows] = _keys(_densify(slots.reshape(rows, SLOTS)), bands)
    return keys


def shingle_sets(points: U32, starts: I64) -> tuple[U64, I64]:
    """The distinct shingles of each text as sorted hashes of 48 bits: `hashes[starts[i]:starts[i + 1]]` are text i's."""
    parts, sizes = [np.empty(0, dtype=np.uint64)], [np.zeros(1, dtype=np.int64)]
    for _, part, at in _pieces(points, starts):
        keyed = _windows(part, at)
        keyed >>= np.uint64(64 - _HASH_BITS)
        keyed |= _owners(at, np.arange(len(at) - 1, dtype=np.uint64) << np.uint64(_HASH_BITS))
        keyed = distinct(keyed)
        parts.append(keyed & np.uint64((1 << _HASH_BITS) - 1))
        sizes.append(np.bincount((keyed >> np.uint64(_HASH_BITS)).astype(np.int64), minlength=len(at) - 1))
    return np.concatenate(parts), np.cumsum(np.concatenate(sizes))


def similarity(hashes: U64, starts: I64, left: I64, right: I64, measure: Measure = "jaccard") -> npt.NDArray[np.float64]:
    """|a ∩ b| / |a ∪ b|, or / min(|a|, |b|) for containment, of each pair of texts (left[i], right[i]).

    `shingle_sets` gave their sets.
    """
    sizes = np.diff(starts)
    scores = np.empty(len(left), dtype=np.float64)
    begin = 0
    weights = np.cumsum(sizes[left] + sizes[right])
    while begin < len(left):  # as many as stay in the cache; the number of a pair has 16 bits
        before = weights[begin - 1] if begin else 0
        end = max(begin + 1, min(begin + (1 << 16), int(np.searchsorted(weights, before + _POINTS_AT_ONCE * 6, side="right"))))
        a, b = left[begin:end], right[begin:end]
        both = np.stack([a, b], axis=1).ravel()
        pairs = np.repeat(np.arange(end - begin, dtype=np.uint64) << np.uint64(_HASH_BITS), 2)
        keyed = _gathered(hashes, starts, both) | np.repeat(pairs, sizes[both])
        keyed.sort(kind="stable")  # a merge of sorted runs, four times as fast here as a sort from nothing
        twice = keyed[1:][keyed[1:] == keyed[:-1]]
        common = np.bincount((twice >> np.uint64(_HASH_BITS)).astype(np.int64), minlength=end - begin)
        scores[begin:end] = common / (sizes[a] + sizes[b] - common if measure == "jaccard" else np.minimum(sizes[a], sizes[b]))
        begin = end
    return scores


def _gathered(hashes: U64, starts: I64, rows: I64) -> U64:
    """The sets of these texts, one after the other."""
    sizes = starts[rows + 1] - starts[rows]
    ends = np.cumsum(sizes)
    place = np.repeat(starts[rows] - (ends - sizes), sizes) + np.arange(int(ends[-1]) if len(ends) else 0)
    found: U64 = hashes[place]
    return found


def _pieces(points: U32, starts: I64) -> Iterator[tuple[int, U32, I64]]:
    """(number of the first text, code points of some texts, where each of them begins and the last one ends); no text is shorter
    than a shingle."""
    first, texts = 0, len(starts) - 1
    while first < texts:
        last = int(np.searchsorted(starts, starts[first] + _POINTS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), first + _ROWS_AT_ONCE, texts)
        yield first, *_padded(points[starts[first] : starts[last]], starts[first : last + 1] - starts[first])
        first = last


def code_points(texts: pa.Array) -> tuple[U32, I64]:
    """Of the lower-cased texts, one after the other, and where each begins and the last one ends.

    Nulls are empty texts, and bytes that are no UTF-8 stand as U+FFFD.
    """
    texts = texts.cast(pa.large_binary())
    try:
        texts = texts.cast(pa.large_string()).fill_null("")
    except pa.ArrowInvalid:
        texts = pa.array([(value or b"").decode("utf-8", "replace") for value in texts.to_pylist()], pa.large_string())
    # Arrow makes a plain i of the one letter that Unicode lower-cases to two.
    lowered = pc.utf8_lower(pc.replace_substring(texts, "\u0130", "i\u0307"))
    starts = np.zeros(len(lowered) + 1, dtype=np.int64)
    np.cumsum(pc.utf8_length(lowered).to_numpy(zero_copy_only=False), out=starts[1:])
    bounds = np.frombuffer(lowered.buffers()[1], dtype=np.int64)[lowered.offset : lowered.offset + len(lowered) + 1]
    data = lowered.buffers()[2]
    text = str(memoryview(data)[bounds[0] : bounds[-1]], "utf-8") if data is not None and len(bounds) else ""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), starts


def _padded(points: U32, starts: I64) -> tuple[U32, I64]:
    sizes = np.diff(starts)
    if sizes.min() >= SHINGLE:
        return points, starts
    longer = np.maximum(sizes, SHINGLE)
    ends = np.cumsum(longer)
    padded = np.full(int(ends[-1]), _PAD, dtype=np.uint32)
    padded[np.repeat(ends - longer - starts[:-1], sizes) + np.arange(len(points))] = points
    return padded, np.concatenate([np.zeros(1, dtype=np.int64), ends])


def _windows(points: U32, starts: I64) -> U64:
    """The hash of every shingle, text by text."""
    wide = points.astype(np.uint64)  # a code point has 21 bits
    two = wide[:-1] | (wide[1:] << np.uint64(21))
    three = two[:-1] | (wide[2:] << np.uint64(42))
    hashes = three[:-2] * _K[0] + two[3:] * _K[1]
    hashes = mixed(hashes)
    if len(starts) > 2:  # windows that cross from one text into the next
        inside = np.ones(len(hashes), dtype=bool)
        ends = starts[1:-1]
        inside[(ends[:, None] - np.arange(1, SHINGLE)).ravel()] = False
        hashes = hashes[inside]
    return hashes


def _owners(starts: I64, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of every shingle the value that its text has."""
    return np.repeat(values, np.diff(starts) - (SHINGLE - 1))


def mixed(values: U64) -> U64:
    """Every bit of the result depends on all bits of the value."""
    values = values ^ (values >> np.uint64(32))
    values *= _K[2]
    values ^= values >> np.uint64(29)
    values *= _K[3]
    values ^= values >> np.uint64(32)
    return values


def _densify(slots: U32) -> U32:
    """Empty slots borrow from the next one that is not, with a mark of how far that is. (texts, 128)"""
    empty = slots == _EMPTY
    if not empty.any():
        return slots
    twice = np.where(np.concatenate([empty, empty], axis=1), np.int16(2 * SLOTS), np.arange(2 * SLOTS, dtype=np.int16))
    lender = np.minimum.accumulate(twice[:, ::-1], axis=1)[:, ::-1][:, :SLOTS]
    distance = (lender - np.arange(SLOTS, dtype=np.int16)).astype(np.uint32)
    rows, places = np.nonzero(empty)
    borrowed = slots[rows, lender[rows, places] % SLOTS]
    slots[rows, places] = borrowed + distance[rows, places] * np.uint32(0x9E3779B1)
    return slots


def _keys(slots: U32, bands: Bands) -> U32:
    """(bands, texts)"""
    cut = slots[:, : bands.count * bands.rows].reshape(len(slots), bands.count, bands.rows)
    keys = np.zeros((len(slots), bands.count), dtype=np.uint64)
    for row in range(bands.rows):
        keys = (keys ^ cut[:, :, row]) * _K[row % len(_K)]
        keys ^= keys >> np.uint64(31)
    return (keys >> np.uint64(32)).astype(np.uint32).T


def distinct(values: npt.NDArray[Whole]) -> npt.NDArray[Whole]:
    """As np.unique, which is slower; sorts the values in place."""
    values.sort()
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]
