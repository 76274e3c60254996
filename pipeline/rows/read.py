"""Rows of anybody's files, as a stream or cut into slices that can be read one by one: JSONL and Parquet."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError

NumberedRow = tuple[int, dict[str, Any]]
_BLOCK = 1 << 24  # bytes


@dataclass(frozen=True)
class Lines:
    """Some lines of a JSONL file: the bytes from `begin` to `end`, of which the first line has the number `first`, from 1."""

    path: Path
    begin: int
    end: int
    first: int

    def size(self) -> int:
        """Bytes on the disk."""
        return self.end - self.begin

    def rows(self) -> Iterator[NumberedRow]:
        """Line numbers and objects; InputError names file and line."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.begin)
                number, left = self.first, self.end - self.begin
                while left > 0 and (line := file.readline()):
                    left -= len(line)
                    if line.strip():
                        yield number, _object(self.path, number, line)
                    number += 1
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class Rows:
    """Some rows of a Parquet file: `count` from `begin` on, of which the first has the number `first` among all files."""

    path: Path
    begin: int
    count: int
    first: int
    required: tuple[str, ...] = ()

    def size(self) -> int:
        """Bytes on the disk, were all rows of the file alike."""
        return self.path.stat().st_size * self.count // max(1, int(pq.read_metadata(self.path).num_rows))

    def rows(self) -> Iterator[NumberedRow]:
        """Numbers, from 0, and rows; InputError names the file and the column that it lacks."""
        with _open_parquet(self.path, self.required) as parquet:
            before = 0
            groups, skipped = [], None
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if before < self.begin + self.count and before + rows > self.begin:
                    skipped = self.begin - before if skipped is None else skipped
                    groups.append(group)
                before += rows
            passed, number = -(skipped or 0), self.first
            for batch in parquet.iter_batches(1_000, row_groups=groups):
                own = batch.slice(max(0, -passed), self.count - max(0, passed)) if passed < self.count else batch.slice(0, 0)
                passed += batch.num_rows
                for row in _decoded(own, self.path):
                    yield number, row
                    number += 1


def slices(path: Path, rows: int) -> list[Lines | Rows]:
    """A file, or a folder of Parquet files, cut into slices of so many rows (of a JSONL file lines), in their order."""
    if path.suffix == ".parquet" or path.is_dir():
        return list(_slices_of_parquet(path, rows))
    return list(_slices_of_lines(path, rows))


def _slices_of_lines(path: Path, rows: int) -> Iterator[Lines]:
    begin, lines, place = 0, 0, 0
    first = 1
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10)
                for end in ends[rows - lines - 1 :: rows].tolist():
                    yield Lines(path, begin, place + end + 1, first)
                    begin, first = place + end + 1, first + rows
                lines = (lines + len(ends)) % rows
                place += len(block)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if place > begin:
        yield Lines(path, begin, place, first)


def _slices_of_parquet(path: Path, rows: int) -> Iterator[Rows]:
    first = 0
    for file in parquet_files(path):
        with _open_parquet(file, ()) as parquet:
            total = parquet.metadata.num_rows
        for begin in range(0, total, rows):
            yield Rows(file, begin, min(rows, total - begin), first + begin)
        first += total


def parquet_files(path: Path) -> list[Path]:
    """The file, or all below a folder in the order of their names but for hidden ones; InputError where there is none."""
    files = [path] if not path.is_dir() else sorted(filter(functools.partial(_is_shown, path), path.rglob("*.parquet")))
    if not files:
        raise InputError(f"{path}: holds no Parquet file")
    return files


def _is_shown(folder: Path, file: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def parquet_rows(path: Path, required: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file or folder, streamed; InputError names the file and the column that it lacks."""
    for file in parquet_files(path):
        with _open_parquet(file, required) as parquet:
            for batch in parquet.iter_batches(1_000):
                yield from _decoded(batch, file)


@contextmanager
def _open_parquet(file: Path, required: tuple[str, ...]) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            if missing := [c for c in required if c not in parquet.schema_arrow.names]:
                raise InputError(f"{file}: lacks the column {missing[0]!r}; it has {', '.join(parquet.schema_arrow.names)}")
            yield parquet
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: is not Parquet: {error}") from error


def jsonl_rows(path: Path) -> Iterator[NumberedRow]:
    """Line numbers (from 1) and objects; InputError names file and line."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return Lines(path, 0, size, 1).rows()


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        if b"\\ud" in line.lower():  # half of a surrogate pair passes as JSON
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: line {number}: is not UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: line {number}: is not Unicode: {error.reason}") from error
    except ValueError as error:
        raise InputError(f"{path}: line {number}: is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}: line {number}: is not a JSON object")
    return row


def _decoded(batch: pa.RecordBatch, file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values.to_pylist()
            except UnicodeDecodeError as error:
                raise InputError(f"{file}: column {name!r}: {error.object[:60]!r} is not UTF-8: {error.reason}") from error
        raise
    return rows
