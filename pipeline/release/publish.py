"""Publishing: the cleaned rows into the dataset folder, sorted by id, byte-identical from run to run, the manifest last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.step import MANIFEST, Stage, StepReport, parts, read_report, stage_folder
from pipeline.errors import InputError, WorkError
from pipeline.files import AtomicFile, write_json, write_text
from pipeline.recipe import Recipe, recipe_to_json
from pipeline.release.card import card
from pipeline.release.folder import FORMAT, SPLITS, open_dataset
from pipeline.release.splits import validation_groups
from pipeline.rows.sample import DROPPED_SCHEMA, SAMPLE_SCHEMA, content_hash
from pipeline.text.tokens import estimate_tokens

ROWS_PER_SHARD = 100_000
WORK_FOLDER = ".stages"
_FRESH_FOLDER = ".publishing"
_OURS = {"README.md", "data", "dropped", "manifest.json", "report.html", "timings.json", "usage.json", WORK_FOLDER}


def check_output(out: Path) -> None:
    """Refuse, before any work, a folder that holds something else: names alone prove nothing, a build leaves a mark."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; expected a folder for the dataset")
    names = sorted(p.name for p in out.iterdir()) if out.exists() else []
    strangers = [name for name in names if name not in _OURS and not name.startswith(".")]
    ours = [name for name in names if name in _OURS]
    if not strangers and ours and not _is_marked(out):
        strangers = ours
    if strangers:
        raise InputError(f"{out}: holds something else ({strangers[0]}); choose an empty folder or one that glotloom built")


def _is_marked(out: Path) -> bool:
    """Whether a build stands in the folder, finished, unfinished or half published."""
    if any((out / name).is_dir() for name in (WORK_FOLDER, _FRESH_FOLDER)):
        return True
    try:
        return bool(json.loads((out / MANIFEST).read_text("utf-8"))["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def publish(recipe: Recipe, stages: Sequence[Stage], work: Path, out: Path) -> None:
    """Write the dataset of the last stage's rows and everyone's drops into `out`, unless it stands there already.

    Everything is written beside what stands there and then takes its place, so a full disk leaves the dataset before whole.
    """
    folders = [stage_folder(stage, work) for stage in stages]
    fingerprint = content_hash(FORMAT, [folder.name for folder in folders], recipe_to_json(recipe), digits=16)
    fresh = out / _FRESH_FOLDER
    _empty(fresh)
    if (manifest := _published(out, fingerprint)) is not None:
        write_text(out / "README.md", card(manifest))  # the card's words may have changed since
        return
    try:
        fresh.mkdir(parents=True, exist_ok=True)
        reports = [read_report(folder) for folder in folders]
        if not reports[-1].rows_out:
            raise InputError(f"{recipe.name}: no row is left to publish; {_main_reasons(reports)}")
        configs = _write_data(parts(folders[-1]), fresh, recipe.seed)
        files = _write_dropped(folders, fresh / "dropped")
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "recipe": recipe_to_json(recipe),
            "stages": [asdict(report) for report in reports],
            "configs": configs,
            "files": sorted(["README.md", *files, *(name for c in configs.values() for s in SPLITS for name in c[s]["files"])]),
        }
        write_text(fresh / "README.md", card(manifest))
        write_json(fresh / MANIFEST, manifest)
        _move(fresh, out)
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _move(fresh: Path, out: Path) -> None:
    """The manifest goes first and comes last: without one a folder is not a dataset."""
    (out / MANIFEST).unlink(missing_ok=True)
    for name in ("data", "dropped"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("data", "dropped", "README.md", MANIFEST):
        (fresh / name).replace(out / name)


def _empty(folder: Path) -> None:
    """Remove what is in the folder but not the folder, which marks `out` as a build's until the manifest does."""
    for path in folder.iterdir() if folder.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _main_reasons(reports: Sequence[StepReport]) -> str:
    """The three commonest reasons for which rows left, with their stages."""
    left = [(-n, report.stage, reason) for report in reports if report.unit_out == "rows" for reason, n in report.dropped.items()]
    return "most left at " + ", ".join(f"{stage} ({reason} {-n})" for n, stage, reason in sorted(left)[:3])


def _published(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The manifest of the dataset in `out` when it is this one, whole."""
    try:
        manifest = open_dataset(out).manifest
    except InputError:
        return None
    return manifest if manifest["fingerprint"] == fingerprint else None


def _write_data(shards: list[Path], out: Path, seed: int) -> dict[str, Any]:
    """All rows to `data/{language}_{task}/{split}-*.parquet`; returns what the manifest says of every config."""
    with duckdb.connect() as connection:
        connection.from_parquet([str(path) for path in shards]).create_view("rows")
        keys = connection.execute("SELECT group_id, language, task FROM rows").fetchall()
        held_out = pa.table({"group_id": pa.array(sorted(validation_groups(keys, seed)), pa.string())})
        connection.register("held_out", held_out)
        configs: dict[str, Any] = {}
        for language, task in sorted({(language, task) for _, language, task in keys}):
            name = f"{language}_{task}"
            configs[name] = {"language": language, "task": task}
            for split, condition in zip(SPLITS, ("NOT IN", "IN"), strict=True):
                # DuckDB promises an order only where it is asked for one; the files are written with pyarrow.
                query = (
                    f"SELECT * FROM rows WHERE language = $language AND task = $task "
                    f"AND group_id {condition} (SELECT group_id FROM held_out) ORDER BY id"
                )
                found = connection.sql(query, params={"language": language, "task": task})
                configs[name][split] = _write_split(found.to_arrow_reader(10_000), out, f"data/{name}/{split}")
    return configs


def _write_split(batches: Iterator[pa.RecordBatch], out: Path, prefix: str) -> dict[str, Any]:
    rows = tokens = 0
    names: list[str] = []
    for table in _shards(batches, SAMPLE_SCHEMA):
        names.append(f"{prefix}-{len(names):05d}.parquet")
        _write_parquet(table, out / names[-1])
        rows += table.num_rows
        for messages in table.column("messages").to_pylist():
            tokens += sum(estimate_tokens(message["content"]) for message in messages)
    return {"rows": rows, "tokens": tokens, "files": names}


def _write_dropped(folders: Sequence[Path], out: Path) -> list[str]:
    """Everything that left, sorted by stage order, reason and id; at least one file, empty when nothing left."""
    out.mkdir(parents=True)
    names: list[str] = []
    tables = (pq.read_table(path, schema=DROPPED_SCHEMA) for folder in folders for path in parts(folder, "dropped"))
    for table in tables:
        names.append(f"dropped/part-{len(names):05d}.parquet")
        _write_parquet(table.sort_by([("reason", "ascending"), ("id", "ascending")]), out / Path(names[-1]).name)
    if not names:
        names.append("dropped/part-00000.parquet")
        _write_parquet(DROPPED_SCHEMA.empty_table(), out / "part-00000.parquet")
    return names


def _shards(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= ROWS_PER_SHARD:
            yield pa.Table.from_batches(held).cast(schema)
            held, rows = [], 0
    if rows:
        yield pa.Table.from_batches(held).cast(schema)


def _write_parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
