"""What makes two texts the same: what `normalise` does away with, and which of equal ones is first (in DuckDB)."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import opencc
import pyarrow as pa

from pipeline.clean.shingles import I64, U32, U64


def first_of_equal(keys: npt.NDArray[Any], rank: I64, work: Path) -> I64:
    """For each row the number of the row with the same key (bytes of one width) whose rank is lowest, which may be itself.

    What does not fit in memory goes to `work`.
    """
    width = keys.dtype.itemsize
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(keys), [None, pa.py_buffer(keys)])
    with duckdb.connect(config={"temp_directory": str(work / "duckdb")}) as connection:
        connection.register("keys", pa.table({"row": np.arange(len(keys)), "rank": rank, "key": column}))
        found = connection.execute(
            "SELECT row, first FROM (SELECT row, arg_min(row, rank) OVER (PARTITION BY key) AS first FROM keys) WHERE row != first"
        ).fetchnumpy()
    first = np.arange(len(keys))
    first[found["row"]] = found["first"]
    return first


def normalise(text: str, language: str) -> str:
    """NFKC, case folded, every stretch of white space one space, Chinese in simplified characters, each by itself."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = " ".join(text.casefold().split())
    return text.translate(simplified()) if language == "zh" and not text.isascii() else text


@functools.cache
def simplified() -> dict[int, str]:
    """Traditional characters to simplified ones, without OpenCC's phrases: it matters only that two scripts come out alike."""
    han = [chr(point) for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF)) for point in range(first, last + 1)]
    converted = opencc.OpenCC("t2s").convert("\n".join(han)).split("\n")
    return {ord(old): new for old, new in zip(han, converted, strict=True) if old != new}


def letter_sums(points: U32, starts: I64) -> U64:
    """A number for each text, as `code_points` gives them: the same for all that `normalise` makes the same, and seldom for others.

    Every character adds a random number, that of its decomposed, folded, simplified form; white space adds nothing.
    """
    from pipeline.clean import kernels

    sums = np.empty(len(starts) - 1, dtype=np.uint64)
    kernels.sums(points, starts, _letter_values(), sums)
    return sums


@functools.cache
def _letter_values() -> U64:
    values = np.random.default_rng(0).integers(1 << 64, size=0x110000, dtype=np.uint64, endpoint=False)
    plain = values.copy()
    for point in (*range(0xD800), *range(0xE000, 0x30000)):  # what lies behind is its own normal form
        letter = chr(point)
        form = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", letter).casefold().translate(simplified()))
        if form != letter or letter.isspace():
            values[point] = sum((int(plain[ord(part)]) for part in form if not part.isspace()), 0) % 2**64
    return values
