"""Stages: each runs once for one configuration and one set of inputs, and its manifest is the only cache.

A stage's folder is `{name}-{fingerprint}/` with `part-*.parquet` (what goes on), `dropped-*.parquet` (what left, with the
reason) and `manifest.json`, written last: a folder without a manifest was not finished and is made anew. The fingerprint
covers the stage's code version, its configuration, the bytes of the files it reads and the bytes its inputs gave.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, WorkError
from pipeline.files import file_hash, write_json
from pipeline.rows.sample import DROPPED_SCHEMA, Dropped, Passage, Sample, content_hash

MANIFEST = "manifest.json"
ROWS_PER_PART = 50_000
_ROWS_PER_BATCH = 2_000


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The account of one stage: `rows_in == rows_used + Σ dropped`, and for a filter `rows_used == rows_out`."""

    stage: str
    unit_in: str
    unit_out: str
    rows_in: int
    rows_used: int
    rows_out: int
    dropped: dict[str, int]
    counters: dict[str, int] = field(default_factory=dict)
    """What else is worth knowing: `{"turns": 12}`."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the build that has been described but not run."""

    name: str
    version: int
    """Of the stage's code: raised when the same input should give other bytes."""
    run: Callable[[StageRun], None]
    config: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    inputs: tuple[Stage, ...] = ()
    schema: pa.Schema
    unit_in: str = "rows"
    unit_out: str = "rows"


class StageRun:
    """What a stage's code sees while it runs: its inputs, and where its rows and drops go."""

    def __init__(self, stage: Stage, folder: Path, inputs: Sequence[Path], work: Path, progress: Progress) -> None:
        self.stage, self.folder, self.inputs, self.work, self.progress = stage, folder, tuple(inputs), work, progress
        self._kept = _PartWriter(folder, "part", stage.schema)
        self._dropped = _PartWriter(folder, "dropped", DROPPED_SCHEMA)
        self._rows_used = 0
        self.reasons: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()
        self.usage: dict[str, Any] = {}
        """What a teacher was asked for; it goes with the timings, since another run may find it all in the ledger."""
        self.run_again = False
        """Set where something failed that the next run should try again (a teacher that did not answer)."""

    def keep(self, *rows: Sample | Passage) -> None:
        """One row of the input was used; these are the rows that it became (usually itself)."""
        self._rows_used += 1
        for row in rows:
            self._kept.write(asdict(row))

    def drop(self, dropped: Dropped) -> None:
        """One row of the input leaves here."""
        self.reasons[dropped.reason] += 1
        self._dropped.write(dropped.to_row(self.stage.name))

    def pass_over(self, reason: str, count: int = 1) -> None:
        """`count` things of the input leave that are too many to list one by one (redirects of a dump, pages not sampled)."""
        if count:
            self.reasons[reason] += count

    def close(self) -> StepReport:
        self._kept.close()
        self._dropped.close()
        return StepReport(
            stage=self.stage.name,
            unit_in=self.stage.unit_in,
            unit_out=self.stage.unit_out,
            rows_in=self._rows_used + self.reasons.total(),
            rows_used=self._rows_used,
            rows_out=self._kept.rows,
            dropped=dict(sorted(self.reasons.items())),
            counters=dict(sorted(self.counters.items())),
        )


Progress = Callable[[str, int, int | None], None]
"""Called with a stage's name, the rows done so far and their total where it is known."""


def silent(stage: str, done: int, total: int | None) -> None:
    """A `Progress` that says nothing."""


class _PartWriter:
    """Rows to `{prefix}-00000.parquet`, …: zstd, a fixed number of rows each, so that equal rows give equal bytes."""

    def __init__(self, folder: Path, prefix: str, schema: pa.Schema) -> None:
        self._folder, self._prefix, self._schema = folder, prefix, schema
        self._batch: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._parts = 0
        self.rows = 0

    def write(self, row: dict[str, Any]) -> None:
        self._batch.append(row)
        self.rows += 1
        if len(self._batch) == _ROWS_PER_BATCH:
            self._flush()
        if self.rows % ROWS_PER_PART == 0:
            self._flush()
            self._close_part()

    def _flush(self) -> None:
        if not self._batch:
            return
        if self._writer is None:
            path = self._folder / f"{self._prefix}-{self._parts:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._parts += 1
        self._writer.write_table(pa.Table.from_pylist(self._batch, schema=self._schema))
        self._batch.clear()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        self._flush()
        self._close_part()


def stage_folder(stage: Stage, work: Path) -> Path:
    """Where the stage's parts and manifest are or will be; its inputs must be finished.

    The 16 hex digits of the fingerprint are the same on any machine. Inputs count by the bytes they gave, so a stage that
    gives the same again leaves the ones after it as they are.
    """
    fingerprint = content_hash(
        stage.name,
        stage.version,
        dict(stage.config),
        [file_hash(path, work) for path in stage.files],
        [_manifest(stage_folder(parent, work))["digest"] for parent in stage.inputs],
        digits=16,
    )
    return work / f"{stage.name}-{fingerprint}"


def run_stage(stage: Stage, work: Path, progress: Progress = silent) -> StepReport:
    """Run the stage unless it was finished before; its inputs must be finished.

    Raises WorkError when the disk is full; whatever was written without a manifest is made anew by the next run.
    """
    folder = stage_folder(stage, work)
    if (report := finished(folder)) is not None:
        return report
    started = time.monotonic()
    progress(stage.name, 0, None)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run = StageRun(stage, folder, [stage_folder(parent, work) for parent in stage.inputs], work, progress)
        stage.run(run)
        report = run.close()
        files = [*parts(folder), *parts(folder, "dropped")]
        digest = content_hash([(path.name, file_hash(path, work)) for path in files])
        timings = {"seconds": round(time.monotonic() - started, 3)} | ({"usage": run.usage} if run.usage else {})
        write_json(folder / "timings.json", timings)
        manifest = {"format": 1, "report": asdict(report), "digest": digest, "run_again": run.run_again}
        write_json(folder / MANIFEST, manifest)
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        raise WorkError(f"stage {stage.name}: {error.filename or folder}: {error.strerror or error}") from error
    return report


def finished(folder: Path) -> StepReport | None:
    """The report of a stage that needs no further run, or None."""
    manifest = _manifest(folder) if (folder / MANIFEST).exists() else None
    return None if manifest is None or manifest["run_again"] else StepReport(**manifest["report"])


def read_report(folder: Path) -> StepReport:
    """The report of a stage that has run."""
    return StepReport(**_manifest(folder)["report"])


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
    return manifest


def parts(folder: Path, prefix: str = "part") -> list[Path]:
    """The Parquet files of a stage in order; `prefix="dropped"` for what left there."""
    return sorted(folder.glob(f"{prefix}-*.parquet"))


def rows_of(folder: Path, prefix: str = "part") -> Iterator[dict[str, Any]]:
    """Every row of a stage's parts, in order, in bounded memory."""
    for path in parts(folder, prefix):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH):
                yield from batch.to_pylist()


def row_count(folder: Path, prefix: str = "part") -> int:
    """Rows in a stage's parts, from the Parquet footers."""
    return sum(pq.read_metadata(path).num_rows for path in parts(folder, prefix))
