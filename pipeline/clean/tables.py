"""Anybody's Parquet files as tables of texts with ids, and what a command makes of them: one file of the rows that stay, one of
the rest with their reasons, both sorted by id, each there whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clean.near_duplicates import joined_messages
from pipeline.errors import InputError, WorkError
from pipeline.files import LOCK_FILE, AtomicFile, WorkLock

ID = "id"
_ROWS_PER_BATCH = 4_096
_ROWS_PER_GROUP = 50_000
DROPPED_SCHEMA = pa.schema([(ID, pa.string()), ("reason", pa.string()), ("partner_id", pa.string()), ("score", pa.float64())])


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """The rows of some Parquet files, whose `column` is a text, bytes, or `messages` as chat data has them."""

    path: Path
    files: tuple[Path, ...]
    column: str
    schema: pa.Schema

    @property
    def rows(self) -> int:
        return sum(pq.read_metadata(file).num_rows for file in self.files)

    def texts(self) -> Iterator[pa.Array]:
        """The texts of all rows; of messages the turns, a line each, without their roles."""
        for array in self._arrays(self.column):
            yield joined_messages(array) if pa.types.is_nested(array.type) else array

    def ids(self) -> pa.ChunkedArray:
        """As text. Raises InputError where a row has none, or two have the same."""
        ids = pa.chunked_array([array.cast(pa.large_string()) for array in self._arrays(ID)], pa.large_string())
        if ids.null_count:
            raise InputError(
                f"{self.path}: {ids.null_count} rows have no id; give them one, or leave the column out to have them made"
            )
        if len(ids.unique()) < len(ids):
            with duckdb.connect() as connection:
                connection.register("ids", pa.table({"id": ids}))
                twice = connection.execute("SELECT min(id) FROM (SELECT id FROM ids GROUP BY id HAVING count(*) > 1)").fetchall()
            raise InputError(f"{self.path}: id {twice[0][0]!r} stands in more than one row; leave the column out to have ids made")
        return ids

    def _arrays(self, column: str) -> Iterator[pa.Array]:
        for file in self.files:
            try:
                with pq.ParquetFile(file) as parquet:
                    for batch in parquet.iter_batches(_ROWS_PER_BATCH, columns=[column]):
                        yield batch.column(0)
            except (pa.ArrowInvalid, OSError) as error:
                raise _unreadable(file, error) from error


def text_of(value: str | bytes | None) -> str:
    """Nulls are empty texts, and bytes that are no UTF-8 stand as U+FFFD."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def open_table(path: Path, column: str) -> TextTable:
    """The table at `path`, a Parquet file or a folder of them. Raises InputError where it is none or has no such column."""
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a Parquet file, or a folder of them")
    files = (path,) if path.is_file() else tuple(sorted(p for p in path.rglob("*.parquet") if not p.name.startswith(".")))
    if not files:
        raise InputError(f"{path}: holds no .parquet file")
    schemas = [_schema(file) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        if column not in schema.names:
            raise InputError(f"{file}: no column {column!r}; it has {', '.join(schema.names)}")
        if not schema.equals(schemas[0]):
            raise InputError(f"{file}: other columns than {files[0]}: {_difference(schemas[0], schema)}")
    _check_kind(files[0], column, schemas[0].field(column).type)
    return TextTable(path=path, files=files, column=column, schema=schemas[0].remove_metadata())


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})")


def _difference(one: pa.Schema, other: pa.Schema) -> str:
    odd = [field for field in other if field not in one] or [field for field in one if field not in other]
    return ", ".join(f"{field.name} ({field.type})" for field in odd) or "another order"


def _check_kind(file: Path, column: str, kind: pa.DataType) -> None:
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    turns = kind.value_type if pa.types.is_list(kind) else None
    chat = turns is not None and pa.types.is_struct(turns) and turns.get_field_index("content") >= 0
    if not chat and not any(check(kind) for check in text):
        raise InputError(f"{file}: column {column!r} is {kind}; expected a text, or messages (list<struct<role, content>>)")


@contextmanager
def with_ids(table: TextTable, work: Path) -> Iterator[TextTable]:
    """The table itself, or a copy in `work` whose rows have ids: the hash of all that stands in them, and a number for each of
    several equal ones."""
    if ID in table.schema.names:
        yield table
        return
    target = work / "with-ids.parquet"
    content = "md5(to_json(source)::VARCHAR)"
    query = (
        f"SELECT {content} || '-' || row_number() OVER (PARTITION BY {content}) AS id, * FROM read_parquet(?) AS source ORDER BY id"
    )
    schema = pa.schema([pa.field(ID, pa.string()), *table.schema])
    with _database(work) as database:
        _write(database.sql(query, params=[[str(file) for file in table.files]]), target, schema)
    yield TextTable(path=table.path, files=(target,), column=table.column, schema=schema)


def write_parted(table: TextTable, dropped: pa.Table, out: Path, work: Path) -> None:
    """`out` with the rows of the table whose ids are not in `dropped`, and `out.dropped.parquet` with `dropped`.

    Every row is in one of the two. The sort runs in DuckDB, out of core.
    """
    with _database(work) as database:
        database.register("dropped", dropped)
        with AtomicFile(dropped_path(out)) as file:
            _write(database.sql("SELECT * FROM dropped ORDER BY id"), file, DROPPED_SCHEMA)
        query = "SELECT * FROM read_parquet(?) AS source ANTI JOIN dropped ON source.id::VARCHAR = dropped.id ORDER BY id::VARCHAR"
        with AtomicFile(out) as file:
            _write(database.sql(query, params=[[str(file) for file in table.files]]), file, table.schema)


def write_with(table: TextTable, columns: pa.Table, out: Path, work: Path) -> None:
    """`out` with all rows of the table and further `columns`, which bring an `id`; sorted by id, out of core."""
    names = [name for name in columns.schema.names if name != ID]
    schema = pa.schema([*table.schema, *(columns.schema.field(name) for name in names)])
    with _database(work) as database:
        database.register("columns", columns)
        added = ", ".join(f"columns.{name}" for name in names)
        joined = "read_parquet(?) AS source JOIN columns ON source.id::VARCHAR = columns.id"
        query = f"SELECT source.*, {added} FROM {joined} ORDER BY columns.id"
        with AtomicFile(out) as file:
            _write(database.sql(query, params=[[str(file) for file in table.files]]), file, schema)


def dropped_path(out: Path) -> Path:
    """`rows.parquet` -> `rows.dropped.parquet`"""
    return out.with_name(f"{out.stem}.dropped{out.suffix}")


def check_out(out: Path, *tables: TextTable) -> None:
    """Refuses to write over what is read."""
    if out.suffix != ".parquet":
        raise InputError(f"--out {out}: expected a name that ends in .parquet")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; expected a file")
    for table in tables:
        for file in table.files:
            if file.resolve() in (out.resolve(), dropped_path(out).resolve()):
                raise InputError(f"--out {out}: would write over the input {file}; choose another name")


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what does not fit in memory, gone afterwards; what a kill left of it is removed by the next run.

    A full disk is told as WorkError, another run with the same `out` as InputError.
    """
    folder = out.with_name(f".{out.name}.work")
    try:
        with WorkLock(folder):
            for left in folder.iterdir():
                if left.name != LOCK_FILE:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except duckdb.OutOfMemoryException as error:
        raise WorkError(f"{out.parent}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        free = shutil.disk_usage(out.parent).free // 2**20
        raise WorkError(f"{error.filename or out}: {error.strerror or error} ({free:,} MiB are free)") from error


@contextmanager
def _database(work: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as database:
        database.execute("SET temp_directory = ?", [str(work / "duckdb")])
        database.execute("SET memory_limit = '1GB'")
        yield database


def _write(rows_of: Any, file: Path, schema: pa.Schema) -> None:
    """zstd, row groups of a fixed size: the same rows give the same bytes."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in rows_of.to_arrow_reader(_ROWS_PER_BATCH):
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= _ROWS_PER_GROUP:
                table = pa.Table.from_batches(waiting)
                while table.num_rows >= _ROWS_PER_GROUP:
                    writer.write_table(table.slice(0, _ROWS_PER_GROUP).cast(schema), row_group_size=_ROWS_PER_GROUP)
                    table = table.slice(_ROWS_PER_GROUP)
                waiting, rows = table.to_batches(), table.num_rows
        if rows:
            writer.write_table(pa.Table.from_batches(waiting).cast(schema), row_group_size=_ROWS_PER_GROUP)
