"""Anybody's Parquet files as tables of texts with ids, and what a command makes of them: files whose rows are sorted by id.

Rows are moved by pyarrow alone, so that values and types stay what they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.files import content_hash
from pipeline.rows.read import parquet_files

I64 = npt.NDArray[np.int64]
ID = "id"
_BYTES_PER_BATCH = 1 << 24
_ROWS_PER_BATCH = 4_096


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
        for batch in self.batches([self.column]):
            array = plain_texts(batch.column(0))
            yield joined_messages(array) if pa.types.is_nested(array.type) else array

    def values(self) -> Iterator[list[str]]:
        """The same as plain texts, which they are whatever bytes stand in the files."""
        for texts in self.texts():
            yield [text_of(value) for value in texts.cast(pa.large_binary()).to_pylist()]

    def languages(self, column: str) -> list[str]:
        """The language codes of all rows: `zh-CN` and `ZH` are zh, nothing is the empty code, and what is no code is cut short."""
        kind = self.schema.field(column).type
        codes: list[str] = []
        known: dict[Any, str] = {}
        for batch in self.batches([column]):
            try:
                values = batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise InputError(f"{self.path}: column {column!r} is {kind}; expected language codes") from None
            codes += (known.get(value) or known.setdefault(value, _language_code(text_of(value))) for value in values)
        return codes

    def language_column(self, wanted: str | None) -> str | None:
        """The wanted column, or the one that is usually there; None without. InputError where the wanted one is missing."""
        if wanted is not None and wanted not in self.schema.names:
            raise InputError(f"{self.path}: no column {wanted!r} that tells the language; it has {', '.join(self.schema.names)}")
        usual = (name for name in ("language", "identified_language") if name in self.schema.names)
        return wanted or next(usual, None)

    def names(self) -> pa.Array:
        """What to call the rows: their ids as text, of which several may be equal, or else the file and number of each."""
        if ID not in self.schema.names:
            return pa.array([f"{self.path.name}:{number}" for number in range(self.rows)], pa.large_string())
        try:
            arrays = [batch.column(0).cast(pa.large_string()) for batch in self.batches([ID])]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(f"{self.path}: column 'id' is {self.schema.field(ID).type}; expected texts or numbers") from None
        return pa.chunked_array(arrays, pa.large_string()).combine_chunks()

    def ids(self) -> pa.Array:
        """As text, all different; without such a column the hash of all that stands in a row, and a number for each of equal rows.

        Raises InputError where some rows have an id and others none, or two have the same.
        """
        if ID not in self.schema.names:
            return pa.array(self._made_ids(), pa.large_string())
        ids = self.names()
        if ids.null_count:
            raise InputError(
                f"{self.path}: {ids.null_count} rows have no id; give them one, or leave the column out to have them made"
            )
        in_order = pc.all(pc.less(ids[:-1], ids[1:])).as_py()
        if not in_order and pc.count_distinct(ids).as_py() < len(ids):
            counts = pc.value_counts(ids)
            twice = pc.min(counts.filter(pc.greater(counts.field(1), 1)).field(0)).as_py()
            raise InputError(f"{self.path}: id {twice!r} stands in more than one row; leave the column out to have ids made")
        return ids

    def _made_ids(self) -> Iterator[str]:
        seen: Counter[str] = Counter()
        for batch in self.batches():
            for row in batch.to_pylist():
                content = content_hash({key: value if isinstance(value, str) else repr(value) for key, value in row.items()})
                seen[content] += 1
                yield f"{content}-{seen[content]}"

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Of at most 4,096 rows, and fewer where rows are large; the same columns in the same order from every file."""
        names = columns or self.schema.names
        for file in self.files:
            try:
                with pq.ParquetFile(file, pre_buffer=False) as parquet:
                    size = sum(parquet.metadata.row_group(n).total_byte_size for n in range(parquet.num_row_groups))
                    row = max(1, size // max(1, parquet.metadata.num_rows))
                    rows = max(1, min(_ROWS_PER_BATCH, _BYTES_PER_BATCH // row))
                    for batch in parquet.iter_batches(rows, columns=names):
                        yield _with_types(batch.select(names), self.schema)
            except (pa.ArrowInvalid, OSError) as error:
                raise _unreadable(file, error) from error


def joined_messages(messages: pa.Array) -> pa.Array:
    """The turns of each row as one text (its bytes), a line each; roles, and so the template of a chat, are left out."""
    contents = pc.fill_null(pc.struct_field(messages.flatten(), "content").cast(pa.binary()), b"")
    turns = pc.list_value_length(messages).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(messages) + 1, dtype=np.int64)
    np.cumsum(turns, out=offsets[1:])
    by_row = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), contents)
    return pc.binary_join(by_row, b"\n")


def append_to_lists(lists: pa.ListArray, items: pa.Array) -> pa.ListArray:
    """Each list with one item more at its end; a null item adds nothing, a null list counts as empty."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    there = pc.is_valid(items).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths + there)
    places = np.repeat(ends - there - lengths, lengths) + _counted(lengths)
    order = np.empty(len(places) + int(there.sum()), dtype=np.int64)
    order[places] = np.arange(len(places))
    order[ends[there] - 1] = len(places) + np.arange(int(there.sum()))
    flat = pa.concat_arrays([lists.flatten(), items.filter(pa.array(there))]).take(pa.array(order))
    offsets = np.concatenate([np.zeros(1, dtype=np.int32), ends.astype(np.int32)])
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=lists.type)


def _counted(lengths: I64) -> I64:
    """0, 1, …, n-1 for each of the lengths, one after another."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def plain_texts(texts: pa.Array) -> pa.Array:
    """Without dictionaries and views, which other libraries write texts with."""
    if pa.types.is_dictionary(texts.type):
        return texts.cast(texts.type.value_type)
    return texts.cast(pa.string()) if pa.types.is_string_view(texts.type) else texts


def _with_types(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A column that is empty in one file has no type there."""
    for number, field in enumerate(batch.schema):
        if pa.types.is_null(field.type) and not pa.types.is_null(kind := schema.field(field.name).type):
            batch = batch.set_column(number, pa.field(field.name, kind), pa.nulls(batch.num_rows, kind))
    return batch


def turns_of(texts: pa.Array) -> Iterator[list[str]]:
    """Of each text itself, of each list of messages the contents."""
    texts = plain_texts(texts)
    if not pa.types.is_nested(texts.type):
        yield from ([text_of(value)] for value in texts.cast(pa.large_binary()).to_pylist())
        return
    contents = [text_of(value) for value in pc.struct_field(texts.flatten(), "content").cast(pa.large_binary()).to_pylist()]
    done = 0
    for count in pc.list_value_length(texts).fill_null(0).to_pylist():
        yield contents[done : done + count]
        done += count


def _language_code(text: str) -> str:
    code = text.strip().lower()
    return code.split("-")[0].split("_")[0] if re.fullmatch(r"[a-z]{2,3}([-_][a-z0-9]{2,8})*", code) else code[:20]


def text_of(value: str | bytes | None) -> str:
    """Nulls are empty texts, and bytes that are no UTF-8 stand as U+FFFD."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def open_table(path: Path, column: str, out: Path) -> TextTable:
    """The table at `path`, a Parquet file or a folder of them, to make `out` of.

    Raises InputError where it is none, has no such column, or would be written over.
    """
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a Parquet file, or a folder of them")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise InputError(f"--out {out}: lies in {path}, which is read; choose a place outside of it")
    files = tuple(parquet_files(path))
    if out.resolve() in (own := {path.resolve() for path in files}) or dropped_path(out).resolve() in own:
        raise InputError(f"--out {out}: would write over the input {path}; choose another name")
    schemas = [_schema(file) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        if column not in schema.names:
            raise InputError(f"{file}: no column {column!r}; it has {', '.join(schema.names)}")
        if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
            raise InputError(f"{file}: has two columns {twice[0]!r}; rename one of them")
        if odd := set(schema.names) ^ set(schemas[0].names):
            raise InputError(f"{file}: other columns than {files[0]}: {min(odd)} is in only one of them")
    common = pa.schema([_common_field(name, files, schemas) for name in schemas[0].names])
    _check_kind(files[0], column, common.field(column).type)
    return TextTable(path=path, files=files, column=column, schema=common)


def _common_field(name: str, files: Sequence[Path], schemas: Sequence[pa.Schema]) -> pa.Field:
    kinds = [schema.field(name).type for schema in schemas]
    typed = ((kind, file) for kind, file in zip(kinds, files, strict=True) if not pa.types.is_null(kind))
    kind, first = next(typed, (pa.null(), files[0]))
    for file, other in zip(files, kinds, strict=True):
        if other != kind and not pa.types.is_null(other):
            raise InputError(f"{file}: column {name!r} is {other}, and {kind} in {first}; write both with the same type")
    return pa.field(name, kind)


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})")


def _check_kind(file: Path, column: str, kind: pa.DataType) -> None:
    turns = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else pa.null()
    chat = pa.types.is_struct(turns) and turns.get_field_index("content") >= 0
    if not _is_text(turns.field("content").type if chat else kind):
        raise InputError(f"{file}: column {column!r} is {kind}; expected a text, or messages (list<struct<role, content>>)")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in texts)


def dropped_path(out: Path) -> Path:
    """`rows.parquet` -> `rows.dropped.parquet`"""
    return out.with_name(f"{out.stem}.dropped{out.suffix}")
