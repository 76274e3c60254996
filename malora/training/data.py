"""Reads a dataset folder (or any Parquet with ``messages``) row by row. Never tokenises, never samples."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from malora.errors import InputError

_log = logging.getLogger("malora")

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation")
SPLIT_WORDS = {  # of a file's name; `latest`, `testament` and `devanagari` are none
    "test": ("test",),
    "validation": ("validation", "valid", "val", "evaluation", "eval", "development", "dev"),
}


Message = dict[str, str]  # role, content


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dialogue of the dataset."""

    id: str
    language: str
    task: str
    messages: list[Message]

    @property
    def stratum(self) -> str:
        """Language and task, as the dataset's own configurations are called: ``fr_chat_specific``."""
        return f"{self.language}_{self.task}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The Parquet files of each split, in their order of reading; those of ``test`` are known by name and never opened."""

    root: Path
    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    test: tuple[Path, ...]

    def files(self, split: str) -> tuple[Path, ...]:
        return self.train if split == "train" else self.validation

    def rows(self, split: str, dropped: list[Dropped] | None = None) -> Iterator[Row]:
        """The rows that can be used; ``dropped`` gets the others (without it, they are logged as warnings)."""
        for file in self.files(split):
            for row in read_rows(file):
                if isinstance(row, Row):
                    yield row
                elif dropped is not None:
                    dropped.append(row)
                else:
                    _log.warning("row %s: %s; dropped", row.id, row.reason)

    def fingerprint(self) -> str:
        """Of the files' names and bytes: another byte, another training."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for file in self.files(split):
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(f"{split} {file.relative_to(self.root)} {content}\n".encode())
        return digest.hexdigest()


def find_files(data: Path) -> Source:
    """The splits of a finished glotloom dataset, of a folder of Parquet files, or of one file.

    A file is of the split that its name says (``test-0.parquet``, ``rows_dev.parquet``), else of ``train``.
    """
    if not data.exists():
        raise InputError(f"{data}: no such file or folder; expected a dataset folder made by `glotloom build`")
    if data.is_file():
        return _source(data.parent, data, [data])
    finished = (data / "manifest.json").is_file()
    flat = sorted(data.glob("*.parquet"))
    if not finished and (not flat or (data / "data").exists()):
        raise InputError(f"{data} is not a finished dataset: it has no manifest.json; run `glotloom build` again")
    files = sorted((data / "data").glob("*/*.parquet")) if (data / "data").is_dir() else flat
    return _source(data, data, files)


def _source(root: Path, asked: Path, files: list[Path]) -> Source:
    splits: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for file in files:
        splits[split_of(file.name)].append(file)
    if not splits["train"]:
        found = f" ({files[0].name} is of the {split_of(files[0].name)} split)" if files else ""
        raise InputError(f"{asked}: no training rows{found}; expected data/{{language}}_{{task}}/train-*.parquet")
    for file in splits["train"] + splits["validation"]:  # before a base model is loaded and a folder made
        _open(file).close()
    return Source(root=root, **{split: tuple(members) for split, members in splits.items()})


def split_of(name: str) -> str:
    """``train``, ``validation`` or ``test``, by the words of a file's name; without such a word ``train``."""
    words = {re.sub("(set|split|data|s)$", "", word) for word in re.split(r"[\W\d_]+", name.lower())}
    return next((split for split, known in SPLIT_WORDS.items() if words & set(known)), "train")


def read_rows(file: Path) -> Iterator[Row | Dropped]:
    """The rows of one Parquet file; ``id`` may be missing (then it is the file's name and the row's number).

    A row without messages, or whose text is not UTF-8, is dropped. Raises InputError once a file has no other rows.
    """
    with _open(file) as parquet:
        columns = [name for name in ("id", "language", "task", "messages") if name in parquet.schema_arrow.names]
        number = used = 0
        first: Dropped | None = None
        batches = parquet.iter_batches(batch_size=1024, columns=columns)
        while (batch := _next(file, batches)) is not None:
            for values in _values(batch):
                row = _row(file, number, values)
                yield row
                number += 1
                used += isinstance(row, Row)
                first = first or (row if isinstance(row, Dropped) else None)
    if first is not None and not used:
        raise InputError(f"{file}: none of its {number:,} rows can be used; the first, {first.id}: {first.reason}")


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Row by row; a value that is not UTF-8 is a UnicodeDecodeError in its place."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for number in range(len(batch)):
        yield {name: _value(column[number]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _next(file: Path, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})")


def _open(file: Path) -> pq.ParquetFile:
    """The Parquet file, once it has the columns that training reads."""
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from None
    schema = parquet.schema_arrow
    for column in ("language", "task", "messages"):
        if column not in schema.names:
            raise InputError(f"{file}: no column {column!r}; it has {', '.join(schema.names)}")
    _check_messages_type(file, schema.field("messages").type)
    return parquet


def _check_messages_type(file: Path, kind: Any) -> None:
    nested = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    names = [field.name for field in nested] if nested is not None and pa.types.is_struct(nested) else []
    if not {"role", "content"} <= set(names):
        raise InputError(f"{file}: column 'messages' is {kind}; expected list<struct<role, content>>")


def _row(file: Path, number: int, values: dict[str, Any]) -> Row | Dropped:
    undecoded = [column for column, value in values.items() if isinstance(value, UnicodeDecodeError)]
    name = str(("id" not in undecoded and values.get("id")) or f"{file.name}:{number}")
    if undecoded:
        return Dropped(name, f"{undecoded[0]} is not UTF-8 ({values[undecoded[0]]})")
    for column in ("language", "task"):
        if not isinstance(values[column], str) or not values[column]:
            raise InputError(f"{file}: row {name}: {column} = {values[column]!r}; expected a word")
    if not values["messages"]:
        return Dropped(name, "messages is null" if values["messages"] is None else "messages is empty")
    messages = [{"role": turn["role"], "content": turn["content"]} if turn else {} for turn in values["messages"]]
    for turn in messages:
        if turn.get("role") not in ROLES or not isinstance(turn["content"], str):
            raise InputError(f"{file}: row {name}: a turn with role {turn.get('role')!r}; expected {', '.join(ROLES)} and a text")
    return Row(id=name, language=values["language"], task=values["task"], messages=messages)
