"""Publishing: the cleaned rows into the dataset folder, sorted by id, byte-identical from run to run, the manifest last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.executors import Executor
from pipeline.engine.parts import MANIFEST, parts, read_state
from pipeline.engine.step import Spread, StepReport
from pipeline.errors import InputError, WorkError
from pipeline.files import content_hash, write_json, write_text
from pipeline.recipe import Recipe, recipe_to_json
from pipeline.release.card import card
from pipeline.release.folder import FORMAT, SPLITS, open_dataset
from pipeline.release.splits import validation_groups
from pipeline.rows.sample import DROPPED_SCHEMA, SAMPLE_SCHEMA
from pipeline.rows.shards import Shard, numbered, write_shards

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


def publish(recipe: Recipe, folders: Sequence[Path], out: Path, executor: Executor) -> None:
    """Write the dataset of the last step's rows and everyone's drops into `out`, unless it stands there already.

    `folders` are those of the finished steps. Everything is written beside what stands there and then takes its place, so a full
    disk leaves the dataset before whole. The bytes do not depend on how the steps' rows are cut into parts.
    """
    fingerprint = content_hash(FORMAT, [folder.name for folder in folders], recipe_to_json(recipe), digits=16)
    fresh = out / _FRESH_FOLDER
    _empty(fresh)
    if (manifest := _published(out, fingerprint)) is not None:
        write_text(out / "README.md", card(manifest))  # the card's words may have changed since
        shutil.rmtree(fresh, ignore_errors=True)  # of a build that was killed once all was in its place
        return
    try:
        scratch = fresh / "scratch"
        scratch.mkdir(parents=True)
        reports = [state.report for state in map(read_state, folders) if state]
        if not reports[-1].rows_out:
            raise InputError(f"{recipe.name}: no row is left to publish; {_main_reasons(reports)}")
        configs = _write_data(parts(folders[-1]), fresh, scratch, recipe.seed, executor.map)
        files = _write_dropped(folders, fresh, scratch, executor.map)
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


def _write_data(files: Sequence[Path], out: Path, scratch: Path, seed: int, spread: Spread) -> dict[str, Any]:
    """All rows to `data/{language}_{task}/{split}-*.parquet`; returns what the manifest says of every config."""
    columns = pa.concat_tables(pq.read_table(file, columns=["id", "group_id", "language", "task"]) for file in files)
    languages, tasks = (columns.column(name).to_pylist() for name in ("language", "task"))
    groups = columns.column("group_id").to_pylist()
    held_out = validation_groups(zip(groups, languages, tasks, strict=True), seed)
    kinds = sorted(set(zip(languages, tasks, strict=True)))
    number = {kind: 2 * place for place, kind in enumerate(kinds)}
    side = np.fromiter(
        (number[kind] + (group in held_out) for kind, group in zip(zip(languages, tasks, strict=True), groups, strict=True)),
        dtype=np.int64,
        count=len(groups),
    )
    del languages, tasks, groups
    shard_of, sides = numbered(side, [columns.column("id")])
    names = [f"data/{'_'.join(kinds[own // 2])}/{SPLITS[own % 2]}" for own in sides]
    paths = [f"{name}-{names[:place].count(name):05d}.parquet" for place, name in enumerate(names)]
    shards = [Shard(out / path, ("id",), SAMPLE_SCHEMA) for path in paths]
    tokens = write_shards(files, shard_of, shards, scratch, spread)
    rows = np.bincount(side, minlength=2 * len(kinds)).tolist()
    configs: dict[str, Any] = {}
    for place, (language, task) in enumerate(kinds):
        configs[f"{language}_{task}"] = {"language": language, "task": task} | {
            split: {
                "rows": rows[2 * place + which],
                "tokens": sum(count for count, own in zip(tokens, sides, strict=True) if own == 2 * place + which),
                "files": [path for path, own in zip(paths, sides, strict=True) if own == 2 * place + which],
            }
            for which, split in enumerate(SPLITS)
        }
    return configs


def _write_dropped(folders: Sequence[Path], out: Path, scratch: Path, spread: Spread) -> list[str]:
    """Everything that was dropped, sorted by step, reason and id; at least one file, empty when nothing was."""
    files = [(place, file) for place, folder in enumerate(folders) for file in parts(folder, "dropped")]
    (out / "dropped").mkdir(parents=True)
    if not files:
        pq.write_table(DROPPED_SCHEMA.empty_table(), out / "dropped/part-00000.parquet", compression="zstd")
        return ["dropped/part-00000.parquet"]
    tables = [pq.read_table(file, columns=["reason", "id"]) for _, file in files]
    step = np.repeat([place for place, _ in files], [table.num_rows for table in tables])
    keys = pa.concat_tables(tables)
    shard_of, steps = numbered(step, [keys.column("reason"), keys.column("id")])
    names = [f"dropped/part-{number:05d}.parquet" for number in range(len(steps))]
    shards = [Shard(out / name, ("reason", "id"), DROPPED_SCHEMA) for name in names]
    write_shards([file for _, file in files], shard_of, shards, scratch, spread)
    return names
