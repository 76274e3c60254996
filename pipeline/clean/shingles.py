"""Shingles of many texts at once: MinHash band keys, and the similarity of their sets.

A text's shingles are the windows of 5 consecutive code points of its lower-cased form; a text shorter than that is one
shingle, padded. Nothing is split into words, so no script is left out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SHINGLE = 5
SLOTS = 128
_PAD = 0x110000  # no code point

Whole = TypeVar("Whole", np.uint32, np.uint64)
Measure = Literal["jaccard", "containment"]
U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


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


def code_points(texts: pa.Array) -> tuple[U32, I64]:
    """Of the lower-cased texts, one after the other, and where each begins and the last one ends.

    Nulls are empty texts, and bytes that are no UTF-8 stand as U+FFFD.
    """
    from pipeline.clean import kernels

    texts = texts.cast(pa.large_binary())
    try:
        texts = texts.cast(pa.large_string()).fill_null("")
    except pa.ArrowInvalid:
        texts = pa.array([(value or b"").decode("utf-8", "replace") for value in texts.to_pylist()], pa.large_string())
    data, offsets = texts.buffers()[2], np.frombuffer(texts.buffers()[1], dtype=np.int64)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1] if len(texts) else np.zeros(1, dtype=np.int64)
    points = np.empty(int(offsets[-1] - offsets[0]), dtype=np.uint32)
    starts = np.empty(len(texts) + 1, dtype=np.int64)
    count = kernels.lowered(np.frombuffer(data or b"", dtype=np.uint8), offsets, _lower_case(), points, starts)
    return points[:count], starts


@functools.cache
def _lower_case() -> U32:
    """Of every code point; there are no capitals above 0x20000."""
    points = np.arange(0x110000, dtype=np.uint32)
    points[:0x20000] = [ord(chr(point).lower()[0]) for point in range(0x20000)]
    return points


def padded(points: U32, starts: I64) -> tuple[U32, I64]:
    """With texts shorter than a shingle made as long."""
    sizes = np.diff(starts)
    if not len(sizes) or sizes.min() >= SHINGLE:
        return points, starts
    longer = np.maximum(sizes, SHINGLE)
    ends = np.cumsum(longer)
    longer_points = np.full(int(ends[-1]), _PAD, dtype=np.uint32)
    longer_points[np.repeat(ends - longer - starts[:-1], sizes) + np.arange(len(points))] = points
    return longer_points, np.concatenate([np.zeros(1, dtype=np.int64), ends])


def band_keys(points: U32, starts: I64, bands: Bands) -> U32:
    """(bands, texts), of texts as `code_points` gives them: equal where two agree in a whole band, and by chance once in 2^32."""
    from pipeline.clean import kernels

    keys = np.empty((bands.count, len(starts) - 1), dtype=np.uint32)
    kernels.band_keys(*padded(points, starts), bands.rows, keys)
    return keys


def set_sizes(points: U32, starts: I64) -> I32:
    """How many distinct shingles each text has; no text is shorter than one."""
    from pipeline.clean import kernels

    sizes = np.empty(len(starts) - 1, dtype=np.int32)
    kernels.set_sizes(points, starts, sizes)
    return sizes


def similarity(
    points: U32, starts: I64, sizes: I32, left: I64, right: I64, measure: Measure = "jaccard"
) -> npt.NDArray[np.float64]:
    """|a ∩ b| / |a ∪ b|, or / min(|a|, |b|) for containment, of the shingles of each pair of texts (left[i], right[i]).

    No text is shorter than a shingle; `sizes` are their `set_sizes`. Fastest with pairs of the same left text in a row. Shingles
    are compared by 63 bits: two texts of a thousand share one by collision once in 10^13 pairs.
    """
    from pipeline.clean import kernels

    common = np.empty(len(left), dtype=np.int32)
    kernels.intersections(points, starts, left, right, common)
    a, b = sizes[left], sizes[right]
    scores: npt.NDArray[np.float64] = common / (a + b - common if measure == "jaccard" else np.minimum(a, b))
    return scores


def distinct(values: npt.NDArray[Whole]) -> npt.NDArray[Whole]:
    """As np.unique, which is slower; sorts the values in place."""
    values.sort()
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]
