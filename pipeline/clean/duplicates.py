"""Exact duplicates, in DuckDB, after normalisation; the row that was read first stays."""

from __future__ import annotations

import functools
import re
import unicodedata

import duckdb
import opencc
import pyarrow as pa

from pipeline.sample import SAMPLE_SCHEMA, Sample, content_hash, drop, sample_from_row
from pipeline.stage import Stage, StageRun, row_count, rows_of


def exact_duplicate_stage(inputs: Stage) -> Stage:
    """Drop every row whose normalised conversation was seen before, whatever its length or script."""
    return Stage(name="exact-duplicates", version=1, run=_run, config={}, inputs=(inputs,), schema=SAMPLE_SCHEMA)


def _run(run: StageRun) -> None:
    folder = run.inputs[0]
    total = row_count(folder)
    rows = [(row["id"], normalised_hash(sample_from_row(row))) for row in rows_of(folder)]
    keys = pa.table({"row": range(len(rows)), "id": [r[0] for r in rows], "key": [r[1] for r in rows]})
    partners = _earlier(keys)
    for number, row in enumerate(rows_of(folder)):
        run.progress(run.stage.name, number + 1, total)
        sample = sample_from_row(row)
        if number in partners:
            run.drop(drop(sample, "exact_duplicate", partner_id=partners[number]))
        else:
            run.keep(sample)


def _earlier(keys: pa.Table) -> dict[int, str]:
    """Row number to the id of the first row with the same key, for every row that is not the first."""
    with duckdb.connect() as connection:
        connection.register("keys", keys)
        found = connection.execute(
            "SELECT row, first FROM (SELECT row, arg_min(id, row) OVER same AS first, min(row) OVER same AS first_row "
            "FROM keys WINDOW same AS (PARTITION BY key)) WHERE row > first_row ORDER BY row"
        ).fetchall()
    return dict(found)


def normalised_hash(sample: Sample) -> str:
    """Equal for rows of one language and task that differ only in Unicode form, case, white space or Chinese script."""
    texts = [normalise(message.content, sample.language) for message in sample.messages]
    return content_hash(sample.language, sample.task, texts)


def normalise(text: str, language: str) -> str:
    """NFKC, case folded, every stretch of white space one space, Chinese in simplified characters."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return _to_simplified().convert(text) if language == "zh" else text


@functools.cache
def _to_simplified() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")
