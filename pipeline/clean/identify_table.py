"""`glotloom identify`: the language of every row of any Parquet file or folder."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clean.identify import identify
from pipeline.clean.tables import check_out, open_table, text_of, working_folder, write_table
from pipeline.errors import InputError

COLUMNS = ("identified_language", "identified_score")


def identify_table(
    path: Path,
    column: str,
    languages: Sequence[str],
    out: Path,
    *,
    progress: Callable[[str, int, int | None], None] = lambda phase, done, total: None,
) -> dict[str, int]:
    """Write to `out` all rows at `path`, sorted by id, with their language; returns how many rows there are of each.

    `identified_language` is ISO 639-1 or `undetermined`, `identified_score` in [0, 1]. `languages` are those to be expected: others
    need far more evidence. No row leaves.
    """
    if not languages or not all(len(code) == 2 and code.isascii() and code.islower() for code in languages):
        raise InputError(f"languages = {', '.join(languages)!r}: expected ISO 639-1 codes, such as en,zh,ru")
    check_out(out)
    table = open_table(path, column, out)
    if taken := [name for name in table.schema.names if name in COLUMNS]:
        raise InputError(f"{path}: has a column {taken[0]!r} already; leave it out, or rename it")
    with working_folder(out) as work:
        ids = table.ids()
        codes: list[str] = []
        scores = array("f")
        for texts in table.texts():
            for value in texts.to_pylist():
                found = identify(text_of(value), languages)
                codes.append(found.language)
                scores.append(found.score)
            progress("identify", len(codes), len(ids))
        write_table(
            table, ids, out, work, columns={COLUMNS[0]: pa.array(codes, pa.string()), COLUMNS[1]: pa.array(np.asarray(scores))}
        )
    return dict(sorted(Counter(codes).items(), key=lambda item: (-item[1], item[0])))
