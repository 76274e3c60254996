"""`glotloom identify`: the language of every row of any Parquet file or folder."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.engine.executors.processes import Processes
from pipeline.engine.step import Progress, silent
from pipeline.errors import InputError
from pipeline.rows.tables import open_table
from pipeline.rows.write import check_out, working_folder, write_table
from pipeline.text.identify import Identified, identify, known_languages, second_backend, second_opinion

COLUMNS = ("identified_language", "identified_score", "identified_agreed")


@dataclass(frozen=True, kw_only=True)
class IdentifyReport:
    """Rows by language, most frequent first; `disagreed` is how many a second opinion says something else of, None without one."""

    languages: dict[str, int]
    disagreed: int | None


def identify_table(
    path: Path,
    column: str,
    languages: Sequence[str],
    out: Path,
    *,
    second: bool = False,
    workers: int = 1,
    progress: Progress = silent,
) -> IdentifyReport:
    """Write to `out` all rows at `path`, sorted by id, with their language. No row leaves.

    `identified_language` is ISO 639-1 or `undetermined`, `identified_score` in [0, 1]. `languages` are those to be expected: others
    need far more evidence. With `second`, `identified_agreed` says whether py3langid thinks so too.
    """
    if not languages or not all(len(code) == 2 and code.isascii() and code.islower() for code in languages):
        raise InputError(f"languages = {', '.join(languages)!r}: expected ISO 639-1 codes, such as en,zh,ru")
    if unknown := sorted(set(languages) - set(known_languages())):
        raise InputError(f"languages: {', '.join(unknown)} cannot be identified; there are {', '.join(known_languages())}")
    if second:
        second_backend()
    check_out(out)
    table = open_table(path, column, out)
    if taken := [name for name in table.schema.names if name in COLUMNS]:
        raise InputError(f"{path}: has a column {taken[0]!r} already; leave it out, or rename it")
    with working_folder(out) as work, Processes(workers) as processes:
        ids = table.ids()
        codes: list[str] = []
        scores, agreed = array("f"), array("b")
        for part in processes.map(partial(_identified, languages=tuple(languages), second=second), table.values()):
            for found, same in part:
                codes.append(found.language)
                scores.append(found.score)
                agreed.append(same)
            progress("identify", len(codes), len(ids))
        columns: dict[str, pa.Array] = {COLUMNS[0]: pa.array(codes, pa.string()), COLUMNS[1]: pa.array(np.asarray(scores))}
        if second:
            columns[COLUMNS[2]] = pa.array(np.asarray(agreed).astype(bool))
        write_table(table, ids, out, work, columns=columns)
    counts = sorted(Counter(codes).items(), key=lambda item: (-item[1], item[0]))
    return IdentifyReport(languages=dict(counts), disagreed=len(codes) - sum(agreed) if second else None)


def _identified(texts: Sequence[str], *, languages: tuple[str, ...], second: bool) -> list[tuple[Identified, bool]]:
    found = [identify(text, languages) for text in texts]
    return [(own, not second or own.language == second_opinion(text)) for own, text in zip(found, texts, strict=True)]
