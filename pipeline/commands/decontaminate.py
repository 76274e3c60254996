"""`glotloom decontaminate`: rows of any Parquet file or folder that hold something of an evaluation set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.clean.contamination import Checked, Row, contaminations
from pipeline.engine.executors.processes import Processes
from pipeline.engine.step import Progress, silent
from pipeline.errors import InputError
from pipeline.rows.tables import ID, TextTable, dropped_path, open_table, turns_of
from pipeline.rows.write import DROPPED_SCHEMA, check_out, working_folder, write_table
from pipeline.text.identify import identify
from pipeline.vectors.embeddings import LANGUAGES, check_installed


@dataclass(frozen=True, kw_only=True)
class DecontaminateReport:
    """`rows_in == kept + Σ dropped`."""

    rows_in: int
    kept: int
    dropped: dict[str, int]
    """By reason."""
    by_set: dict[str, int] = field(default_factory=dict)
    """By file of the items."""
    checked: Checked = field(default_factory=Checked)


def decontaminate(
    path: Path,
    column: str,
    out: Path,
    against: Sequence[Path],
    *,
    translations: bool = False,
    language_column: str | None = None,
    workers: int = 1,
    cache: Path | None = None,
    progress: Progress = silent,
) -> DecontaminateReport:
    """Write to `out` the rows at `path` that hold nothing of the evaluation sets `against`, and the rest to `out.dropped.parquet`.

    Reasons: `contaminated` (10 words in a row of an item, or 20 characters of a script without spaces, or the whole of a shorter
    one; the score is the share of the item's such stretches) and, with `translations`, `contaminated_translation` (an item in
    another language; the score is the cosine of the two). `partner_id` is the item: its file and number. The language of a row
    stands in `language_column`, by default `language` or `identified_language`; where there is neither it is identified.
    """
    check_out(out)
    if not against:
        raise InputError("against: expected an evaluation set")
    for place in against:
        if not place.exists():
            raise InputError(f"--against {place}: does not exist; expected a .tsv, .jsonl or .parquet file")
        if not (place.is_file() or place.is_dir()):
            raise InputError(f"--against {place}: can be read only once; expected a .tsv, .jsonl or .parquet file")
        if any(made.resolve().is_relative_to(place.resolve()) for made in (out, dropped_path(out))):
            raise InputError(f"--out {out}: would write over --against {place}, or into it; choose another place")
    if translations:
        check_installed()
    table = open_table(path, column, out)
    spoken = table.language_column(language_column) if translations else None
    with working_folder(out) as work, Processes(workers) as processes:
        ids = table.ids()
        checked = Checked()
        dropped: dict[str, list[Any]] = {name: [] for name in DROPPED_SCHEMA.names}
        rows = _rows(table, spoken, translations)
        found = contaminations(rows, against, checked, translations=translations, spread=processes.map, cache=cache)
        for number, own in enumerate(found):
            if number % 100 == 0:
                progress("comparing", number, len(ids))
            if own is not None:
                for name, value in zip(dropped, (ids[number].as_py(), own.reason, own.item.name, own.score), strict=True):
                    dropped[name].append(value)
        progress("comparing", len(ids), len(ids))
        write_table(table, ids, out, work, dropped=pa.table(dropped, schema=DROPPED_SCHEMA))
    return DecontaminateReport(
        rows_in=len(ids),
        kept=len(ids) - len(dropped[ID]),
        dropped=dict(sorted(Counter(dropped["reason"]).items())),
        by_set=dict(sorted(Counter(name.rpartition(":")[0] for name in dropped["partner_id"]).items())),
        checked=checked,
    )


def _rows(table: TextTable, column: str | None, translations: bool) -> Iterator[Row]:
    """Turn by turn; the language stands in `column` or is identified, where it is needed."""
    spoken = iter(table.languages(column)) if column else None
    for batch in table.batches([table.column]):
        for turns in turns_of(batch.column(0)):
            if spoken is not None:
                yield next(spoken), turns
            else:
                yield identify("\n".join(turns), LANGUAGES).language if translations else "", turns
