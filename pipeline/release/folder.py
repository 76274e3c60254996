"""Reading a published dataset folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.parts import MANIFEST
from pipeline.engine.step import StepReport
from pipeline.errors import InputError
from pipeline.rows.sample import DROPPED_SCHEMA, SAMPLE_SCHEMA, TASKS

FORMAT = "glotloom-dataset-1"
SPLITS = ("train", "validation")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class DatasetFolder:
    """A finished dataset: its folder and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def configs(self) -> list[str]:
        """`{language}_{task}`, sorted."""
        return sorted(self.manifest["configs"])

    def count(self, split: str) -> int:
        """Rows in one split."""
        return sum(config[split]["rows"] for config in self.manifest["configs"].values())

    @property
    def languages_without_rows(self) -> list[str]:
        """Languages that the recipe names and no row is in: without a source, or all of theirs left."""
        found = {config["language"] for config in self.manifest["configs"].values()}
        return [code for code in self.manifest["recipe"]["languages"] if code not in found]

    @property
    def left(self) -> int:
        """How many rows, passages and pages left, over all stages."""
        return sum(sum(report.dropped.values()) for report in self.reports)

    @property
    def reports(self) -> list[StepReport]:
        """Every stage's account, in the order of the build."""
        return [StepReport(**report) for report in self.manifest["stages"]]

    def shards(self, config: str, split: str) -> list[Path]:
        """The Parquet files of one split of one config; none where the split is empty."""
        return [self.path / name for name in sorted(self.manifest["configs"][config][split]["files"])]

    def rows(self, config: str, split: str) -> Iterator[dict[str, Any]]:
        """Rows in the order of their ids, in bounded memory."""
        for shard in self.shards(config, split):
            with pq.ParquetFile(shard, pre_buffer=False) as file:
                for batch in file.iter_batches(1_000):
                    yield from batch.to_pylist()

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a DuckDB query over the views `data` (with `split`) and `dropped`."""
        with duckdb.connect() as connection:
            data = sorted(str(path) for path in (self.path / "data").rglob("*.parquet"))
            dropped = sorted(str(path) for path in (self.path / "dropped").glob("*.parquet"))
            connection.from_parquet(data, filename=True).create_view("shards")
            split = "regexp_extract(filename, '(train|validation)-[^/]*$', 1) AS split"
            connection.execute(f"CREATE VIEW data AS SELECT * EXCLUDE filename, {split} FROM shards")
            connection.from_parquet(dropped).create_view("dropped")
            return connection.execute(sql, list(parameters)).fetchall()


def open_dataset(path: Path) -> DatasetFolder:
    """A finished dataset folder; InputError where there is none, where a shard or a column of one is gone, or where the
    manifest is not what a build writes: names of configs become names of files, and no file may lie outside the folder."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        state = (
            "has no manifest.json: its build was not finished; run the same `glotloom build` again"
            if path.is_dir()
            else "does not exist"
        )
        raise InputError(f"{path}: {state}") from error
    except OSError as error:
        raise InputError(f"{path / MANIFEST}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path / MANIFEST}: is not JSON: {error}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: is not a glotloom dataset (manifest.json has format {found!r})")
    _check_shape(manifest, path / MANIFEST)
    for name in manifest["files"]:
        _check_place(path, name)
        if name.endswith(".parquet"):
            _check_columns(path / name, DROPPED_SCHEMA if name.startswith("dropped/") else SAMPLE_SCHEMA)
    return DatasetFolder(path, manifest)


def _check_shape(manifest: dict[str, Any], file: Path) -> None:
    """InputError naming the key whose value is not what a build writes."""

    def expect(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise InputError(f"{file}: {key}: expected {expected}; run the same `glotloom build` again")

    recipe: Any = manifest.get("recipe")
    stages: Any = manifest.get("stages")
    configs: Any = manifest.get("configs")
    files: Any = manifest.get("files")
    expect(isinstance(manifest.get("fingerprint"), str), "fingerprint", "a text")
    expect(_has(recipe, name=str, seed=int) and _are_texts(recipe.get("languages")), "recipe", "a table with name, seed, languages")
    expect(isinstance(stages, list) and all(map(_is_report, stages)), "stages", "a list with every stage's counts")
    expect(_are_texts(files) and all(map(_is_inside, files)), "files", "relative names of files in the folder, without ..")
    expect(isinstance(configs, dict), "configs", "a table of configs")
    for name, config in configs.items():
        key = f"configs.{name!r}"
        expect(_WORD.fullmatch(name) is not None, key, "a name {language}_{task} of letters, digits, _ and -")
        expect(_has(config, language=str, task=str), key, "a table with language, task and the splits")
        expect(name == f"{config['language']}_{config['task']}", key, "its language and task to be those in its name")
        expect(config["language"] in recipe["languages"], f"{key}.language", "one of the recipe's languages")
        expect(config["task"] in TASKS, f"{key}.task", f"one of {', '.join(TASKS)}")
        for split in SPLITS:
            found: Any = config.get(split)
            expect(_has(found, rows=int, tokens=int), f"{key}.{split}", "a table with rows, tokens and files")
            named: Any = found.get("files")
            expect(_are_texts(named) and set(named) <= set(files), f"{key}.{split}.files", "names that stand in files")


def _has(table: Any, **kinds: type) -> bool:
    """Whether it is a table with these keys."""
    return isinstance(table, dict) and all(isinstance(table.get(key), kind) for key, kind in kinds.items())


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_report(report: Any) -> bool:
    """Whether it is the table of a `StepReport`."""
    if not _has(report, stage=str, unit_in=str, unit_out=str, rows_in=int, rows_used=int, rows_out=int, dropped=dict):
        return False
    known, needed = {f.name for f in fields(StepReport)}, {f.name for f in fields(StepReport) if f.default_factory is MISSING}
    counts = (report["dropped"], report.get("counters", {}))
    return needed <= set(report) <= known and all(
        isinstance(table, dict) and all(isinstance(n, int) for n in table.values()) for table in counts
    )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return name != "" and "\0" not in name and "\\" not in name and not path.is_absolute() and ".." not in path.parts


def _check_place(folder: Path, name: str) -> None:
    try:
        is_there = (folder / name).is_file()
    except OSError as error:
        raise InputError(f"{folder / MANIFEST}: files: {name[:60]!r}: {error.strerror}") from error
    if not is_there:
        raise InputError(f"{folder}: lacks {name}, which its manifest names; run the same `glotloom build` again")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{folder / MANIFEST}: files: {name} leads out of the folder; expected files within it, no links to others"
        )


def _check_columns(file: Path, schema: pa.Schema) -> None:
    try:
        names = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: is not Parquet, or cut off; run the same `glotloom build` again") from error
    if missing := [name for name in schema.names if name not in names]:
        raise InputError(f"{file}: lacks the column {missing[0]!r}; run the same `glotloom build` again")
