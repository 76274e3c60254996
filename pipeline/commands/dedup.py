"""`glotloom dedup`: exact and near-duplicates in any Parquet file or folder, also against an earlier release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clean.duplicates import find_duplicates
from pipeline.clean.shingles import I64
from pipeline.engine.executors import cores
from pipeline.engine.step import Progress, silent
from pipeline.errors import InputError
from pipeline.rows.tables import TextTable, open_table
from pipeline.rows.write import DROPPED_SCHEMA, check_out, working_folder, write_table

KEEP = ("longest", "first", "highest:COLUMN", "lowest:COLUMN")


@dataclass(frozen=True, kw_only=True)
class DedupReport:
    """`rows_in == kept + exact + near`."""

    rows_in: int
    kept: int
    exact: int
    near: int
    candidates: int
    """Pairs whose similarity was computed."""
    not_compared: int
    """Pairs that were not, of buckets too large (thousands of rows from one template)."""


def dedup(
    path: Path,
    column: str,
    out: Path,
    *,
    threshold: float = 0.8,
    against: Path | None = None,
    keep: str = "longest",
    containment: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> DedupReport:
    """Write to `out` the rows at `path` that duplicate no other that stays, and the rest to `out.dropped.parquet`.

    Reasons: `exact_duplicate` (the same after NFKC, case, white space and Chinese script) and `near_duplicate` (the Jaccard
    similarity of the lower-cased shingles of 5 characters is at least `threshold`; it is the score). `partner_id` is the row that
    it lost to, which stays. `keep` says which of several stays: the longest (in characters), the first by id, or the one of the
    highest or lowest value in a column (`highest:quality`, `lowest:released_on`; rows without a value lose). Among equal ones the
    longest stays, then the one whose id sorts first. Rows of `against` always win, and are not written. `workers` threads compare
    (None: one a core).

    With `containment` the share of the shorter text's shingles that stand in the other has to reach the threshold, and is the
    score. Candidates are pairs of like texts: at a threshold of .8 they are found where the longer is no more than a half longer.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold = {threshold}: expected more than 0 and at most 1")
    policy, _, by = keep.partition(":")
    if policy not in ("highest", "lowest") and keep not in KEEP:
        raise InputError(f"keep = {keep!r}: expected one of {', '.join(KEEP)}")
    check_out(out)
    table = open_table(path, column, out)
    if policy in ("highest", "lowest") and not by:
        raise InputError(f"keep = {keep!r}: expected a column, as in {policy}:quality")
    values = _values(table, by) if policy in ("highest", "lowest") else None
    released = open_table(against, column, out) if against else None
    with working_folder(out) as work:
        ids = table.ids()
        names = pa.concat_arrays([released.names(), ids]) if released else ids
        known = len(names) - len(ids)

        def texts() -> Iterator[pa.Array]:
            if released:
                yield from released.texts()
            yield from table.texts()

        found = find_duplicates(
            texts,
            len(names),
            threshold,
            lambda lengths: _rank(names, lengths, known, policy, values),
            work,
            known=known,
            measure="containment" if containment else "jaccard",
            threads=workers or cores(),
            progress=progress,
        )
        progress("writing", 0, 1)
        dropped = {"id": names.take(found.row), "reason": found.reason, "partner_id": names.take(found.partner)}
        write_table(table, ids, out, work, dropped=pa.table(dropped | {"score": found.score}).cast(DROPPED_SCHEMA))
        progress("writing", 1, 1)
    return DedupReport(
        rows_in=len(ids),
        kept=len(ids) - len(found.row),
        exact=int(found.exact.sum()),
        near=int((~found.exact).sum()),
        candidates=found.pairs.compared,
        not_compared=found.pairs.not_compared,
    )


def _values(table: TextTable, column: str) -> pa.ChunkedArray:
    if column not in table.schema.names:
        raise InputError(f"{table.path}: no column {column!r} to keep rows by; it has {', '.join(table.schema.names)}")
    kind = table.schema.field(column).type
    values = pa.chunked_array([batch.column(0) for batch in table.batches([column])], kind)
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
    try:
        pc.sort_indices(values.slice(0, 1))
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise InputError(f"{table.path}: column {column!r} is {kind}, which has no order to keep rows by") from None
    return values


def _rank(names: pa.Array, lengths: I64, known: int, policy: str, values: pa.ChunkedArray | None) -> I64:
    """The row's place in the order in which rows win: those of an earlier release, then by the policy, then by id."""
    columns: dict[str, Any] = {"new": np.arange(len(names)) >= known, "id": names}
    order = [("new", "ascending"), ("id", "ascending")]
    if policy != "first":
        columns["length"] = -lengths
        order.insert(1, ("length", "ascending"))
    if values is not None:
        columns["value"] = pa.chunked_array([pa.nulls(known, values.type), *values.chunks], values.type)
        order.insert(1, ("value", "descending" if policy == "highest" else "ascending"))
    rank = np.empty(len(names), dtype=np.int64)
    rank[pc.sort_indices(pa.table(columns), sort_keys=order).to_numpy()] = np.arange(len(names))
    return rank
