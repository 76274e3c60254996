"""The parts of a step on the disk, and what names them.

A step's folder is `{name}-{fingerprint}/` with `part-*.parquet` (what goes on), `dropped-*.parquet` (what was dropped, with the
reason), `task-*.json` (the account of each finished task) and `manifest.json`, written last. The manifest is the only cache: the
fingerprint covers the step's code version, its configuration, the bytes of the files it reads and the bytes its inputs gave. In a
folder without a manifest the finished tasks are kept and the others run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.step import Outcome, Raw, Step, StepReport
from pipeline.errors import InputError
from pipeline.files import content_hash, file_hash, write_json
from pipeline.rows.sample import DROPPED_SCHEMA, Dropped, rows_to_table

MANIFEST = "manifest.json"
_FORMAT = 3
_ROWS_PER_GROUP = 10_000
_ROWS_PER_BATCH = 2_000


Files = dict[str, tuple[int, str]]
"""Names in a step's folder, with sizes in bytes and SHA-256."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """The account of one task of a step."""

    rows_used: int
    rows_out: int
    dropped: dict[str, int]
    counters: dict[str, int]
    facts: dict[str, int]
    files: Files
    rows_per_part: int | None = None
    """As the task was told; of other parts than now it says nothing."""
    run_again: bool = False
    usage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part of a finished step."""

    path: Path

    def rows(self) -> Iterator[Raw]:
        """In bounded memory."""
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH):
                yield from batch.to_pylist()

    def size(self) -> int:
        """Bytes on the disk."""
        return self.path.stat().st_size

    def count(self) -> int:
        """From the footer alone."""
        return int(pq.read_metadata(self.path).num_rows)


class PartWriter:
    """Tables to `{prefix}-{number}.parquet`, whole or not at all; where `rows_per_part` is given, cut after so many rows."""

    def __init__(self, folder: Path, prefix: str, schema: pa.Schema, number: int = 0, rows_per_part: int | None = None) -> None:
        self._folder, self._prefix, self._schema = folder, prefix, schema
        self._number, self._rows_per_part = number, rows_per_part
        self._writer: pq.ParquetWriter | None = None
        self._temporary = Path()
        self._in_part = 0
        self.rows = 0
        self.files: Files = {}

    def write(self, table: pa.Table) -> None:
        """Appends the rows; a part without any is no file."""
        while table.num_rows:
            room = table.num_rows if self._rows_per_part is None else self._rows_per_part - self._in_part
            self._append(table.slice(0, room))
            table = table.slice(room)
            if self._in_part == self._rows_per_part:
                self._close_part()

    def _append(self, table: pa.Table) -> None:
        if self._writer is None:
            # Two workers may be given one part, where the first was held for dead: each writes a file of its own.
            self._temporary = self._folder / f".{self._prefix}-{self._number:05d}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
            self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")
        self._writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        self._in_part += table.num_rows
        self.rows += table.num_rows

    def _close_part(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        name = f"{self._prefix}-{self._number:05d}.parquet"
        with self._temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.files[name] = file.tell(), digest
            os.fsync(file.fileno())
        self._temporary.replace(self._folder / name)
        self._number += 1
        self._in_part = 0

    def close(self) -> None:
        self._close_part()

    def abandon(self) -> None:
        """After an error: nothing half-written stays."""
        if self._writer is not None:
            self._writer.close()
            self._temporary.unlink(missing_ok=True)


class OutcomeWriter:
    """The outcomes of one task, in their order, to its parts."""

    def __init__(self, step: Step, folder: Path, number: int, rows_per_part: int | None) -> None:
        self._step = step
        self.kept = PartWriter(folder, "part", step.schema, number, rows_per_part)
        self.dropped = PartWriter(folder, "dropped", DROPPED_SCHEMA, number, rows_per_part)
        self._kept_rows: list[Any] = []
        self._dropped_rows: list[dict[str, Any]] = []
        self.rows_used = 0

    def add(self, outcome: Outcome) -> None:
        """What one row of the input became."""
        if isinstance(outcome, Dropped):
            self._dropped_rows.append(outcome.to_row(self._step.name))
            if len(self._dropped_rows) == _ROWS_PER_GROUP:
                self._flush_dropped()
            return
        self.rows_used += 1
        self._kept_rows.extend(outcome if isinstance(outcome, tuple) else (outcome,))
        if len(self._kept_rows) >= _ROWS_PER_GROUP:
            self._flush_kept()

    def _flush_kept(self) -> None:
        self.kept.write(rows_to_table(self._kept_rows, self._step.schema))
        self._kept_rows.clear()

    def _flush_dropped(self) -> None:
        self.dropped.write(pa.Table.from_pylist(self._dropped_rows, schema=DROPPED_SCHEMA))
        self._dropped_rows.clear()

    def close(self) -> None:
        self._flush_kept()
        self._flush_dropped()
        self.kept.close()
        self.dropped.close()

    def abandon(self) -> None:
        self.kept.abandon()
        self.dropped.abandon()


def step_folder(step: Step, work: Path) -> Path:
    """Where the step's parts and manifest are or will be; its inputs must be finished.

    The 16 hex digits of the fingerprint are the same on any machine. Inputs count by the bytes they gave, so a step that
    gives the same again leaves the ones after it as they are.
    """
    fingerprint = content_hash(
        step.name,
        step.version,
        dict(step.config),
        [file_hash(path, work) for path in step.files],
        [_digest(parent, work) for parent in step.inputs],
        digits=16,
    )
    return work / f"{step.name}-{fingerprint}"


def _digest(step: Step, work: Path) -> str:
    """Of what a finished step gave."""
    state = read_state(step_folder(step, work))
    if state is None:
        raise InputError(f"stage {step.name}: is not finished any more: a file that it reads changed meanwhile; run again")
    return state.digest


@dataclass(frozen=True)
class State:
    """What the manifest of a step says, once all its files are there in the size that it names."""

    report: StepReport
    digest: str
    files: Files
    run_again: bool


def write_manifest(folder: Path, report: StepReport, files: Files, run_again: bool) -> None:
    """The step is finished: these are its files."""
    digest = content_hash(sorted((name, own) for name, (_, own) in files.items()))
    manifest = {"format": _FORMAT, "report": asdict(report), "digest": digest, "files": files, "run_again": run_again}
    write_json(folder / MANIFEST, manifest)


def read_state(folder: Path) -> State | None:
    """None where the step was not finished, by this version, or its folder is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest["format"] != _FORMAT or not are_there(folder, manifest["files"]):
            return None
        return State(StepReport(**manifest["report"]), manifest["digest"], manifest["files"], manifest["run_again"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def are_there(folder: Path, files: Files) -> bool:
    """Whether all are, in their sizes."""
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in files.items())
    except OSError:
        return False


def finished(folder: Path) -> StepReport | None:
    """The report of a step that needs no further run, or None."""
    state = read_state(folder)
    return None if state is None or state.run_again else state.report


def parts(folder: Path, prefix: str = "part") -> list[Path]:
    """The Parquet files of a finished step in order; `prefix="dropped"` for what was dropped there."""
    state = read_state(folder)
    return [folder / name for name in sorted(state.files) if name.startswith(f"{prefix}-")] if state else []


def rows_of(folder: Path, prefix: str = "part") -> Iterator[Raw]:
    """Every row of a step's parts, in order, in bounded memory."""
    for path in parts(folder, prefix):
        yield from Part(path).rows()


def row_count(folder: Path, prefix: str = "part") -> int:
    """Rows in a step's parts, from the Parquet footers."""
    return sum(Part(path).count() for path in parts(folder, prefix))
