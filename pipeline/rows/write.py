"""What a command makes of a table: a Parquet file whose rows are sorted by id, and one of what was dropped, both or neither."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError, WorkError
from pipeline.files import LOCK_FILE, AtomicFile, WorkLock
from pipeline.rows.tables import I64, ID, TextTable, dropped_path

DROPPED_SCHEMA = pa.schema([(ID, pa.string()), ("reason", pa.string()), ("partner_id", pa.string()), ("score", pa.float64())])
_ROWS_PER_GROUP = 50_000
_MOST_FILES = 256  # open at once while rows are sorted


def check_out(out: Path) -> None:
    """Raises InputError where it cannot be a Parquet file."""
    if out.suffix != ".parquet":
        raise InputError(f"--out {out}: expected a name that ends in .parquet")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; expected a file")


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what does not fit in memory, gone afterwards; what a kill left of it is removed by the next run.

    A full disk is told as WorkError, another run with the same `out` as InputError.
    """
    folder = out.with_name(f".{out.name}.work")
    try:
        with WorkLock(folder, f"--out {out}: another run is writing it; wait for it, or choose another name"):
            for left in folder.iterdir():
                if left.name != LOCK_FILE:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise WorkError(f"{out.parent}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error


def write_table(
    table: TextTable,
    ids: pa.Array,
    out: Path,
    work: Path,
    *,
    dropped: pa.Table | None = None,
    columns: Mapping[str, pa.Array] | None = None,
) -> None:
    """`out` with the rows of the table, sorted by `ids` (all of them, in the table's order), and further `columns` of all rows.

    With `dropped` its rows stay out, and `out.dropped.parquet` gets it. Both files appear together, once both are written.
    """
    kept = np.ones(len(ids), dtype=bool)
    if dropped is not None:
        kept[pc.is_in(ids, pc.cast(dropped.column(ID), pa.large_string())).to_numpy(zero_copy_only=False)] = False
        assert kept.sum() + dropped.num_rows == len(ids)
    added = {} if ID in table.schema.names else {ID: ids}
    added |= columns or {}
    with ExitStack() as files:
        target = files.enter_context(AtomicFile(out))
        if dropped is not None:
            rest = files.enter_context(AtomicFile(dropped_path(out)))
            pq.write_table(dropped.cast(DROPPED_SCHEMA).sort_by(ID), rest, compression="zstd", row_group_size=_ROWS_PER_GROUP)
        _write_sorted(table, ids, kept, added, target, work)


def _write_sorted(
    table: TextTable,
    ids: pa.Array,
    kept: np.ndarray[Any, np.dtype[np.bool_]],
    added: Mapping[str, pa.Array],
    target: Path,
    work: Path,
) -> None:
    """Rows go to a file for each stretch of the result first, then each stretch is put into its order."""
    made = [(ID, pa.string())] if ID in added else []
    extra = [(name, array.type) for name, array in added.items() if name != ID]
    schema = pa.schema([*made, *table.schema, *extra])
    rows = int(kept.sum())
    groups = max(1, -(-rows // _ROWS_PER_GROUP))
    stretch = _ROWS_PER_GROUP * -(-groups // _MOST_FILES)
    order = pc.sort_indices(ids).to_numpy()
    place = np.full(len(ids), -1)
    place[order[kept[order]]] = np.arange(rows)
    with ExitStack() as streams:
        scattered = _Scattered(work, streams)
        done = 0
        for batch in table.batches():
            part = slice(done, done + batch.num_rows)
            whole = pa.Table.from_batches([batch])
            for name, array in added.items():
                whole = whole.append_column(name, array.slice(done, batch.num_rows))
            scattered.add(_plain(whole), place[part], stretch)
            done += batch.num_rows
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for number in range(-(-rows // stretch)):
                found, places = scattered.take(number)
                found = found.take(np.argsort(places)).combine_chunks()
                columns = [_as(found.column(field.name), field.type) for field in schema]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=_ROWS_PER_GROUP)


class _Scattered:
    """Rows on the disk by the stretch of the result that they are of."""

    def __init__(self, work: Path, streams: ExitStack) -> None:
        self._work, self._streams = work, streams
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._places: dict[int, list[I64]] = {}

    def add(self, rows: pa.Table, places: I64, stretch: int) -> None:
        numbers = np.where(places < 0, -1, places // stretch)
        for number in np.unique(numbers[numbers >= 0]).tolist():
            own = np.flatnonzero(numbers == number)
            if number not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                writer = pa.ipc.new_stream(self._path(number), rows.schema, options=options)
                self._writers[number] = self._streams.enter_context(writer)
                self._places[number] = []
            self._writers[number].write_table(rows if len(own) == rows.num_rows else rows.take(own))
            self._places[number].append(places[own])

    def take(self, number: int) -> tuple[pa.Table, I64]:
        """Everything of one stretch, once, with its places."""
        self._writers.pop(number).close()
        with pa.ipc.open_stream(self._path(number)) as stream:
            rows = stream.read_all()
        self._path(number).unlink()
        return rows, np.concatenate(self._places.pop(number))

    def _path(self, number: int) -> Path:
        return self._work / f"{number}.arrow"


def _plain(rows: pa.Table) -> pa.Table:
    """Dictionaries differ from batch to batch: their values are what is moved."""
    kinds = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in rows.schema]
    return pa.Table.from_arrays(
        [column.cast(kind) if column.type != kind else column for column, kind in zip(rows.columns, kinds, strict=True)],
        names=rows.schema.names,
    )


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(kind):
        column = column.dictionary_encode()
    return column if column.type == kind else column.cast(kind)
