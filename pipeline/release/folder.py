"""Reading a published dataset folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.parts import MANIFEST
from pipeline.engine.step import StepReport
from pipeline.errors import InputError
from pipeline.rows.sample import DROPPED_SCHEMA, SAMPLE_SCHEMA

FORMAT = "glotloom-dataset-1"
SPLITS = ("train", "validation")


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
        return sorted((self.path / "data" / config).glob(f"{split}-*.parquet"))

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
    """A finished dataset folder; InputError where there is none, or where a shard or a column of one is gone."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        state = (
            "has no manifest.json: its build was not finished; run the same `glotloom build` again"
            if path.is_dir()
            else "does not exist"
        )
        raise InputError(f"{path}: {state}") from error
    except ValueError as error:
        raise InputError(f"{path / MANIFEST}: is not JSON: {error}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: is not a glotloom dataset (manifest.json has format {found!r})")
    for name in manifest["files"]:
        if not (path / name).is_file():
            raise InputError(f"{path}: lacks {name}, which its manifest names; run the same `glotloom build` again")
        if name.endswith(".parquet"):
            _check_columns(path / name, DROPPED_SCHEMA if name.startswith("dropped/") else SAMPLE_SCHEMA)
    return DatasetFolder(path, manifest)


def _check_columns(file: Path, schema: pa.Schema) -> None:
    try:
        names = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: is not Parquet, or cut off; run the same `glotloom build` again") from error
    if missing := [name for name in schema.names if name not in names]:
        raise InputError(f"{file}: lacks the column {missing[0]!r}; run the same `glotloom build` again")
