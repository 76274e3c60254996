"""The types that every stage speaks, and their Arrow schemas.

Rows are frozen: a change makes a new row (`dataclasses.replace`). Ids are content-addressed, so the same row made twice,
on any machine, has the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from pipeline.files import content_hash

Task = Literal["chat_specific", "chat_agnostic", "math", "code"]
TASKS: tuple[str, ...] = get_args(Task)
"""UltraLink's four tasks; the last three are language-agnostic."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a text comes from, as its licence wants it attributed."""

    name: str
    title: str = ""
    revision: str = ""
    url: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Section:
    """One stretch of a passage under one heading; the lead of an article has the heading `""`."""

    heading: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of a knowledge source: one or several consecutive sections of one document."""

    id: str
    document_id: str
    language: str
    title: str
    sections: tuple[Section, ...]
    source: Source
    position: int = 0
    """Its place among the passages of the document, from 0."""

    @property
    def text(self) -> str:
        """The prose with its headings, paragraphs separated by an empty line."""
        blocks = (f"{s.heading}\n\n{s.text}" if s.heading else s.text for s in self.sections)
        return "\n\n".join(blocks)


@dataclass(frozen=True)
class Message:
    """One turn; `role` is `user` or `assistant` (`system` in what a teacher is asked)."""

    role: str
    content: str


@dataclass(frozen=True)
class Decision:
    """What one stage decided about a row, in words that `glotloom explain` prints."""

    stage: str
    decision: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training row with its lineage."""

    id: str
    language: str
    task: str
    messages: tuple[Message, ...]
    mode: str
    """`reverse`, `grounded`, `closed_book`, or `pool` for rows that were read and not made."""
    group_id: str
    """Rows with one group (a document, or a set of translations) never straddle the splits."""
    source: Source
    parent_ids: tuple[str, ...] = ()
    """The passage or pool row that it was made of."""
    teacher: str = ""
    prompt_version: str = ""
    request_keys: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def answer(self) -> str:
        """The last assistant turn, or the empty string."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")


def sample_id(language: str, task: str, messages: Sequence[Message], parent_ids: Iterable[str]) -> str:
    """Content-addressed: equal rows from different parents keep different ids, so that each can be accounted for."""
    return content_hash(language, task, [(m.role, m.content) for m in messages], list(parent_ids))


_SOURCE = pa.struct([(name, pa.string()) for name in ("name", "title", "revision", "url", "licence")])
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PASSAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("document_id", pa.string()),
        ("language", pa.string()),
        ("title", pa.string()),
        ("sections", pa.list_(pa.struct([("heading", pa.string()), ("text", pa.string())]))),
        ("source", _SOURCE),
        ("position", pa.int32()),
    ]
)

SAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("language", pa.string()),
        ("task", pa.string()),
        ("messages", _MESSAGES),
        ("mode", pa.string()),
        ("group_id", pa.string()),
        ("source", _SOURCE),
        ("parent_ids", pa.list_(pa.string())),
        ("teacher", pa.string()),
        ("prompt_version", pa.string()),
        ("request_keys", pa.list_(pa.string())),
        ("decisions", pa.list_(pa.struct([("stage", pa.string()), ("decision", pa.string())]))),
    ]
)

DROPPED_SCHEMA = pa.schema(
    [*SAMPLE_SCHEMA, ("stage", pa.string()), ("reason", pa.string()), ("partner_id", pa.string()), ("detail", pa.string())]
)
"""A dropped row keeps its columns; `partner_id` is the row it lost to (duplicates), `detail` what the reason rests on."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A row, passage or page that left the build, and why."""

    id: str
    reason: str
    language: str = ""
    task: str = ""
    partner_id: str = ""
    detail: str = ""
    sample: Sample | None = None
    source: Source | None = None

    def to_row(self, stage: str) -> dict[str, Any]:
        row: dict[str, Any] = (
            asdict(self.sample)
            if self.sample
            else {
                "id": self.id,
                "language": self.language,
                "task": self.task,
                "messages": [],
                "source": asdict(self.source) if self.source else None,
            }
        )
        return row | {"stage": stage, "reason": self.reason, "partner_id": self.partner_id, "detail": self.detail}


def drop(sample: Sample, reason: str, *, partner_id: str = "", detail: str = "") -> Dropped:
    """The drop of a whole row."""
    return Dropped(
        id=sample.id,
        reason=reason,
        language=sample.language,
        task=sample.task,
        partner_id=partner_id,
        detail=detail,
        sample=sample,
    )


def rows_to_table(rows: Sequence[Sample | Passage], schema: pa.Schema) -> pa.Table:
    """Of rows of one type, as `asdict` and `pa.Table.from_pylist` give it, at a fifth of the cost."""
    columns = []
    for field in schema:
        values = [getattr(row, field.name) for row in rows]
        kind = field.type
        if pa.types.is_struct(kind):
            columns.append(_structs(values, kind))
        elif pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
            flat = _structs([item for value in values for item in value], kind.value_type)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind))
        else:
            columns.append(pa.array(values, kind))
    return pa.table(columns, schema=schema)


def _structs(values: Sequence[Any], kind: pa.StructType) -> pa.StructArray:
    arrays = [pa.array([getattr(value, field.name) for value in values], field.type) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """The inverse of `dataclasses.asdict` for a row of `SAMPLE_SCHEMA`."""
    return Sample(
        id=row["id"],
        language=row["language"],
        task=row["task"],
        messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
        mode=row["mode"],
        group_id=row["group_id"],
        source=Source(**row["source"]),
        parent_ids=tuple(row["parent_ids"]),
        teacher=row["teacher"],
        prompt_version=row["prompt_version"],
        request_keys=tuple(row["request_keys"]),
        decisions=tuple(Decision(d["stage"], d["decision"]) for d in row["decisions"]),
    )


def passage_from_row(row: Mapping[str, Any]) -> Passage:
    """The inverse of `dataclasses.asdict` for a row of `PASSAGE_SCHEMA`."""
    return Passage(
        id=row["id"],
        document_id=row["document_id"],
        language=row["language"],
        title=row["title"],
        sections=tuple(Section(s["heading"], s["text"]) for s in row["sections"]),
        source=Source(**row["source"]),
        position=row["position"],
    )
