"""Reads a dataset folder (or any Parquet with ``messages``) row by row. Never tokenises, never samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from malora.errors import InputError

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dialogue of the dataset."""

    id: str
    language: str
    task: str
    messages: list[dict[str, str]]

    @property
    def stratum(self) -> str:
        """Language and task, as the dataset's own configurations are called: ``fr_chat_specific``."""
        return f"{self.language}_{self.task}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The Parquet files of each split, in their order of reading."""

    root: Path
    train: tuple[Path, ...]
    validation: tuple[Path, ...]

    def files(self, split: str) -> tuple[Path, ...]:
        return self.train if split == "train" else self.validation

    def rows(self, split: str) -> Iterator[Row]:
        for file in self.files(split):
            yield from read_rows(file)

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
    """The splits of a finished glotloom dataset, of a folder of Parquet files, or of one file (then all is ``train``)."""
    if not data.exists():
        raise InputError(f"{data}: no such file or folder; expected a dataset folder made by `glotloom build`")
    if data.is_file():
        _open(data).close()
        return Source(root=data.parent, train=(data,), validation=())
    finished = (data / "manifest.json").is_file()
    flat = sorted(data.glob("*.parquet"))
    if not finished and (not flat or (data / "data").exists()):
        raise InputError(f"{data} is not a finished dataset: it has no manifest.json; run `glotloom build` again")
    files = sorted((data / "data").glob("*/*.parquet")) if (data / "data").is_dir() else flat
    validation = tuple(file for file in files if file.name.startswith("validation"))
    train = tuple(file for file in files if file not in set(validation))
    if not train:
        raise InputError(f"{data}: no training rows; expected data/{{language}}_{{task}}/train-*.parquet")
    for file in files:  # before a base model is loaded and a folder made
        _open(file).close()
    return Source(root=data, train=train, validation=validation)


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of one Parquet file; ``id`` may be missing (then it is the file's name and the row's number)."""
    with _open(file) as parquet:
        columns = [name for name in ("id", "language", "task", "messages") if name in parquet.schema_arrow.names]
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=columns):
            for values in batch.to_pylist():
                yield _row(file, number, values)
                number += 1


def _open(file: Path) -> pq.ParquetFile:
    """The Parquet file, once it has the columns that training reads."""
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
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


def _row(file: Path, number: int, values: dict[str, Any]) -> Row:
    name = values.get("id") or f"{file.name}:{number}"
    for column in ("language", "task"):
        if not isinstance(values[column], str) or not values[column]:
            raise InputError(f"{file}: row {name}: {column} = {values[column]!r}; expected a word")
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in values["messages"] or []]
    for turn in messages:
        if turn["role"] not in ROLES or not isinstance(turn["content"], str):
            raise InputError(f"{file}: row {name}: a turn with role {turn['role']!r}; expected {', '.join(ROLES)}")
    return Row(id=str(name), language=values["language"], task=values["task"], messages=messages)
