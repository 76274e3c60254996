"""The tasks of a step, each a function of a module and of what can be sent to another process or machine.

A task writes its files and then its account, `task-{number}.json`: where that is, it need not run again.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine.parts import Files, OutcomeWriter, Part, PartWriter, TaskReport, are_there
from pipeline.engine.step import Context, Decisions, Make, OnProgress, Source, Spread, Step, here
from pipeline.errors import WorkError
from pipeline.files import AtomicFile, write_json
from pipeline.rows.sample import DROPPED_SCHEMA
from pipeline.rows.shards import tables_of
from pipeline.rows.tables import TextTable, append_to_lists

WHOLE = -1
"""The number of the one task of a step that is done over everything at once."""
_DECISIONS, _VALUES = "decisions", "values"


@dataclass(frozen=True)
class Task:
    """One part of a step to be done, or all of it."""

    step: Step
    folder: Path
    work: Path
    number: int
    sources: tuple[Source, ...] = ()
    """Of what makes rows."""
    parts: tuple[Path, ...] = ()
    """Of what decides about rows."""
    begin: int = 0
    """The number of the first row of these parts among all of the step's input."""
    rows_per_part: int | None = None


def account(folder: Path, number: int) -> Path:
    """Where a task says what it did."""
    return folder / ("task-whole.json" if number == WHOLE else f"task-{number:05d}.json")


def read_account(task: Task) -> TaskReport | None:
    """Of a task that is done, of parts cut as they are now, and whose files are there."""
    try:
        report = TaskReport(**json.loads(account(task.folder, task.number).read_text("utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    whole = report.rows_per_part == task.rows_per_part and are_there(task.folder, report.files)
    return report if whole else None


def do_part(task: Task) -> TaskReport:
    """One part, with what this process has; done before, it only reads the account."""
    return read_account(task) or _do(task, here, 1, lambda done, total: None)


def do_all(task: Task, spread: Spread, workers: int, progress: OnProgress, stop: threading.Event | None = None) -> TaskReport:
    """All of a step at once, with all cores of this machine. What decides leaves its decisions for `apply_part`."""
    if isinstance(task.step.does, Make):
        return _do(task, spread, workers, progress, stop)
    with _context(task, spread, workers, progress) as context:
        decisions = task.step.does.run(table_of(task.step, task.parts), context)
        files = _keep_decisions(decisions, task)
    report = TaskReport(
        rows_used=0,
        rows_out=0,
        dropped={},
        counters=dict(context.counters),
        facts=context.facts,
        files=files,
        run_again=context.run_again,
    )
    return _finish(task, report)


def forget_decisions(folder: Path) -> None:
    """Once they are applied to every part."""
    for name in (_DECISIONS, _VALUES):
        (folder / f"{name}.arrow").unlink(missing_ok=True)


def table_of(step: Step, files: Sequence[Path]) -> TextTable:
    """Parts of a step's input as a table of conversations."""
    return TextTable(path=Path(step.name), files=tuple(files), column="messages", schema=step.schema)


def _do(task: Task, spread: Spread, workers: int, progress: OnProgress, stop: threading.Event | None = None) -> TaskReport:
    with _context(task, spread, workers, progress) as context:
        context.stop = stop or context.stop
        if isinstance(task.step.does, Make):
            report = _make(task, task.step.does, context)
        else:
            decisions = task.step.does.run(table_of(task.step, task.parts), context)
            report = _apply(task, decisions, context)
    return _finish(task, report)


@contextmanager
def _context(task: Task, spread: Spread, workers: int, progress: OnProgress) -> Iterator[Context]:
    """With a scratch folder, gone afterwards. A full disk is told as WorkError."""
    # Of this try alone: another worker, held for dead, may still be at the same task.
    scratch = account(task.folder, task.number).with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.scratch")
    try:
        scratch.mkdir()
        yield Context(
            name=task.step.name,
            folder=scratch,
            work=task.work,
            rows=_rows_in(task),
            spread=spread,
            workers=workers,
            progress=progress,
        )
    except OSError as error:
        raise WorkError(f"stage {task.step.name}: {error.filename or task.folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rows_in(task: Task) -> int | None:
    files = [*task.parts, *(source.path for source in task.sources if isinstance(source, Part))]
    return sum(pq.read_metadata(path).num_rows for path in files) if files else None


def _finish(task: Task, report: TaskReport) -> TaskReport:
    report = replace(report, rows_per_part=task.rows_per_part)
    write_json(account(task.folder, task.number), asdict(report))
    return report


def _make(task: Task, does: Make, context: Context) -> TaskReport:
    number, rows_per_part = (task.number, None) if does.by_part else (0, task.rows_per_part)
    writer = OutcomeWriter(task.step, task.folder, number, rows_per_part)
    try:
        for outcome in does.run(chain.from_iterable(source.rows() for source in task.sources), context):
            writer.add(outcome)
            if reason := getattr(outcome, "reason", None):
                context.reasons[reason] += 1
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return TaskReport(
        rows_used=writer.rows_used,
        rows_out=writer.kept.rows,
        dropped=dict(context.reasons),
        counters=dict(context.counters),
        facts=context.facts,
        files=writer.kept.files | writer.dropped.files,
        run_again=context.run_again,
        usage=context.usage,
    )


def _apply(task: Task, decisions: Decisions, context: Context) -> TaskReport:
    """Rows and drops of one part, as Arrow has them."""
    kept = PartWriter(task.folder, "part", task.step.schema, task.number)
    dropped = PartWriter(task.folder, "dropped", DROPPED_SCHEMA, task.number)
    reasons: Counter[str] = Counter()
    order = decisions.dropped.sort_by("row").combine_chunks()
    numbers = order.column("row").to_numpy()
    done = 0
    try:
        for table in tables_of(task.parts):
            stays = np.ones(table.num_rows, dtype=bool)
            first, last = np.searchsorted(numbers, (done, done + table.num_rows))
            own = order.slice(first, last - first)
            stays[numbers[first:last] - done] = False
            if own.num_rows:
                dropped.write(_dropped_rows(table.take(own.column("row").to_numpy() - done), own, task.step.name))
                reasons.update(own.column("reason").to_pylist())
            changed = _changed(table, decisions, done, task.step.name)
            kept.write(changed if len(own) == 0 else changed.filter(pa.array(stays)))
            done += table.num_rows
        kept.close()
        dropped.close()
    except BaseException:
        kept.abandon()
        dropped.abandon()
        raise
    return TaskReport(
        rows_used=kept.rows,
        rows_out=kept.rows,
        dropped=dict(reasons),
        counters=dict(context.counters),
        facts=context.facts,
        files=kept.files | dropped.files,
        run_again=context.run_again,
    )


def _dropped_rows(rows: pa.Table, decided: pa.Table, step: str) -> pa.Table:
    columns = {name: rows.column(name) for name in rows.schema.names} | {
        "stage": pa.repeat(pa.scalar(step), rows.num_rows),
        "reason": decided.column("reason"),
        "partner_id": decided.column("partner_id"),
        "detail": decided.column("detail"),
    }
    return pa.table([columns[name] for name in DROPPED_SCHEMA.names], schema=DROPPED_SCHEMA)


def _changed(table: pa.Table, decisions: Decisions, begin: int, step: str) -> pa.Table:
    for name, values in decisions.columns.items():
        number = table.schema.get_field_index(name)
        table = table.set_column(number, table.schema.field(number), values.slice(begin, table.num_rows))
    if decisions.notes is None:
        return table
    notes = decisions.notes.slice(begin, table.num_rows)
    number = table.schema.get_field_index("decisions")
    field = table.schema.field(number)
    added = pa.StructArray.from_arrays(
        [pa.repeat(pa.scalar(step), len(notes)), notes], fields=list(field.type.value_type), mask=pc.is_null(notes)
    )
    return table.set_column(number, field, append_to_lists(table.column(number).combine_chunks(), added))


def _keep_decisions(decisions: Decisions, task: Task) -> Files:
    """In files that the tasks of the parts read their share of."""
    columns = dict(decisions.columns) | ({} if decisions.notes is None else {"notes": decisions.notes})
    files: Files = {}
    for name, table in ((_DECISIONS, decisions.dropped.sort_by("row")), (_VALUES, pa.table(columns))):
        path = task.folder / f"{name}.arrow"
        with AtomicFile(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        files[path.name] = path.stat().st_size, ""
    return files


def apply_part(task: Task) -> TaskReport:
    """What was decided about all rows, done to those of one part."""
    if report := read_account(task):
        return report
    own = sum(pq.read_metadata(path).num_rows for path in task.parts)
    with _mapped(task.folder / f"{_DECISIONS}.arrow") as all_dropped, _mapped(task.folder / f"{_VALUES}.arrow") as all_values:
        numbers = all_dropped.column("row").to_numpy()
        first, last = np.searchsorted(numbers, (task.begin, task.begin + own))
        dropped = all_dropped.slice(first, last - first)
        dropped = dropped.set_column(0, "row", pa.array(numbers[first:last] - task.begin))
        values = {name: all_values.column(name).slice(task.begin, own).combine_chunks() for name in all_values.schema.names}
        decisions = Decisions(dropped, values.pop("notes", None), values)
        with _context(task, here, 1, lambda done, total: None) as context:
            return _finish(task, _apply(task, decisions, context))


@contextmanager
def _mapped(path: Path) -> Iterator[pa.Table]:
    with pa.memory_map(str(path)) as file:
        yield pa.ipc.open_file(file).read_all()
