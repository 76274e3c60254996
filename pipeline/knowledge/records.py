"""Documents that are plain text already: Parquet and JSONL in the `wikimedia/wikipedia` layout, and text files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.knowledge.document import Document
from pipeline.languages import Language
from pipeline.rows.read import jsonl_rows, parquet_rows
from pipeline.rows.sample import Section, Source

_MARKDOWN_HEADING = re.compile(r"#{1,4}(?=\s)")


def read_parquet(path: Path, language: Language, *, source: str, licence: str) -> Iterator[Document]:
    """Rows with `title` and `text`, and `id` and `url` where there are any; a file or a folder of `*.parquet`."""
    for number, row in enumerate(parquet_rows(path, required=("title", "text"))):
        for key in ("title", "text"):
            if not isinstance(row[key], str | None):
                raise InputError(f"{path}: row {number}: has no text {key!r}")
        yield _record(row, f"{path.name}:{number}", language, source or path.stem, licence)


def read_dataset(path: Path, language: Language, *, source: str, licence: str) -> Iterator[Document]:
    """A folder that `datasets.Dataset.save_to_disk` wrote, or a dataset of the hub, with the columns of `read_parquet`."""
    dataset = _from_hub(str(path)) if str(path).startswith("hub:") else _from_disk(path)
    if missing := [column for column in ("title", "text") if column not in dataset.column_names]:
        raise InputError(f"{path}: lacks the column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
    columns = [column for column in ("id", "url", "title", "text") if column in dataset.column_names]
    for number, row in enumerate(dataset.select_columns(columns).with_format(None)):
        for key in ("title", "text"):
            if not isinstance(row[key], str | None):
                raise InputError(f"{path}: row {number}: has no text {key!r}")
        yield _record(row, f"{path.name}:{number}", language, source or path.name, licence)


def _from_disk(path: Path) -> Any:
    from datasets import DatasetDict, load_from_disk  # takes a second

    try:
        dataset = load_from_disk(str(path))
    except IndexError as error:  # as it has it of a table without rows
        raise InputError(f"{path}: holds no row") from error
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: is not a folder that datasets.save_to_disk wrote: {error}") from error
    if isinstance(dataset, DatasetDict):
        raise InputError(f"{path}: holds several splits; name the folder of one: {', '.join(str(path / name) for name in dataset)}")
    return dataset


def _from_hub(address: str) -> Any:
    from datasets import load_dataset  # takes a second

    parts = re.fullmatch(r"hub:(?P<name>[^@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<config>.+))?", address)
    if parts is None:
        raise InputError(f"{address}: expected hub:ORG/NAME@REVISION:CONFIG, where revision and config may be left out")
    try:
        dataset = load_dataset(parts["name"], parts["config"], revision=parts["revision"], split="train", streaming=True)
        return dataset if dataset.column_names else dataset._resolve_features()
    except Exception as error:  # of the hub, the network, the reader of whatever format
        raise InputError(f"{address}: cannot be read from the hub: {type(error).__name__}: {error}") from error


def read_jsonl(path: Path, language: Language, *, source: str, licence: str) -> Iterator[Document]:
    """One object a line with `title` and `text`, and `id` and `url` where there are any."""
    for number, row in jsonl_rows(path):
        for key in ("title", "text"):
            if not isinstance(row.get(key), str):
                raise InputError(f"{path}: line {number}: has no text {key!r}")
        yield _record(row, f"{path.name}:{number}", language, source or path.stem, licence)


def read_text(path: Path, language: Language, *, source: str, licence: str) -> Iterator[Document]:
    """One `.txt` or `.md` file a document, or a folder of them; the file's name is the title, `# heading` lines make sections."""
    files = sorted(p for p in path.rglob("*") if p.suffix in {".txt", ".md"}) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: holds no .txt or .md file")
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: is not UTF-8: {error.reason} at byte {error.start}") from error
        row = {
            "id": file.relative_to(path).as_posix() if path.is_dir() else file.name,
            "title": file.stem.replace("_", " "),
            "text": text,
        }
        yield _record(row, file.name, language, source or path.stem, licence)


def _record(row: Mapping[str, Any], place: str, language: Language, name: str, licence: str) -> Document:
    title, text = str(row["title"] or ""), str(row["text"] or "")
    return Document(
        id=f"{name}-{row.get('id') or place}",
        title=title,
        source=Source(name=name, title=title, url=str(row.get("url") or ""), licence=licence),
        text=text,
        parse=plain_sections,
        skip=None if text.strip() and title.strip() else "page_without_text" if title.strip() else "page_without_title",
    )


def plain_sections(text: str) -> list[Section]:
    """Sections at `== Heading ==` or `# Heading` lines; text without any is one section."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in text.replace("\r\n", "\n").split("\n"):
        if heading := _heading(line):
            sections.append((heading, []))
        else:
            sections[-1][1].append(line.rstrip())
    joined = [(heading, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()) for heading, lines in sections]
    return [Section(heading, prose) for heading, prose in joined if prose]


def _heading(line: str) -> str:
    """The words of a heading's line; `""` for any other."""
    line = line.rstrip()
    if marks := _MARKDOWN_HEADING.match(line):
        return line[marks.end() :].lstrip()
    if len(line) > 4 and line.startswith("==") and line.endswith("=="):
        return line.strip("=").strip() or "="
    return ""
