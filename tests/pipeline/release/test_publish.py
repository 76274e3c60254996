"""The dataset folder: what `datasets` reads, the splits, the card and the manifest."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result

from pipeline.release import open_dataset
from pipeline.release.card import card
from pipeline.text.tokens import estimate_tokens

Glotloom = Callable[..., Result]


@pytest.fixture
def load(small_dataset: Path, tmp_path: Path) -> Callable[..., Any]:
    """`datasets.load_dataset` of the folder, offline, with a cache of its own."""
    assert datasets.config.HF_DATASETS_OFFLINE or datasets.config.HF_HUB_OFFLINE
    return lambda *names: datasets.load_dataset(str(small_dataset), *names, cache_dir=str(tmp_path / "cache"))


def shards(dataset: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        str(path.relative_to(dataset / "data")): pq.read_table(path).to_pylist() for path in (dataset / "data").rglob("*.parquet")
    }


def test_load_dataset_reads_the_whole_folder_with_its_two_splits(load: Callable[..., Any], small_dataset: Path) -> None:
    loaded = load()
    assert set(loaded) == {"train", "validation"}
    on_disk = Counter(name.split("/")[1].split("-")[0] for name, rows in shards(small_dataset).items() for _ in rows)
    assert {split: len(rows) for split, rows in loaded.items()} == on_disk
    assert set(loaded["train"]["language"]) == {"en", "fr"}


def test_load_dataset_reads_one_language_and_task(load: Callable[..., Any]) -> None:
    loaded = load("fr_chat_specific")
    assert set(loaded) == {"train", "validation"}
    for rows in loaded.values():
        assert set(rows["language"]) == {"fr"} and set(rows["task"]) == {"chat_specific"}


def test_messages_are_what_chat_templates_read(load: Callable[..., Any]) -> None:
    for row in load("fr_math")["train"]:
        assert [set(message) for message in row["messages"]] == [{"role", "content"}] * len(row["messages"])
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)


def test_no_group_straddles_the_splits(small_dataset: Path) -> None:
    groups: dict[str, set[str]] = {"train": set(), "validation": set()}
    for name, rows in shards(small_dataset).items():
        groups[name.split("/")[1].split("-")[0]] |= {row["group_id"] for row in rows}
    assert groups["train"] and groups["validation"]
    assert not groups["train"] & groups["validation"]


def test_rows_are_sorted_by_id_and_stand_in_their_own_config(small_dataset: Path) -> None:
    for name, rows in shards(small_dataset).items():
        assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
        assert {f"{row['language']}_{row['task']}" for row in rows} == {name.split("/")[0]}


def test_every_row_says_where_it_comes_from(small_dataset: Path) -> None:
    for rows in shards(small_dataset).values():
        for row in rows:
            assert row["source"]["name"] and row["source"]["title"] and row["source"]["licence"] == "CC0 1.0"
            assert row["parent_ids"] and row["group_id"] and row["mode"] in {"reverse", "pool"}
            assert "rules" in [decision["stage"] for decision in row["decisions"]]
            if row["mode"] == "reverse":
                assert row["source"]["url"].startswith("https://") and row["source"]["revision"].isdigit()


def test_what_came_in_is_what_was_used_and_what_left_with_its_reason(small_dataset: Path) -> None:
    reports = open_dataset(small_dataset).reports
    assert [report.stage for report in reports][:4] == ["passages-fr", "read-math", "pool-math", "reverse-fr"]
    for report in reports:
        assert report.rows_in == report.rows_used + sum(report.dropped.values()), report.stage
    assert reports[-1].rows_out == sum(len(rows) for rows in shards(small_dataset).values())


def test_everything_that_is_counted_as_dropped_can_be_looked_up(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    listed = Counter(dataset.query("SELECT stage, reason FROM dropped"))
    counted = Counter({(r.stage, reason): n for r in dataset.reports for reason, n in r.dropped.items() if reason != "redirect"})
    assert listed == counted
    partners = dataset.query("SELECT reason, partner_id FROM dropped WHERE reason IN ('exact_duplicate', 'near_duplicate')")
    ids = {row["id"] for rows in shards(small_dataset).values() for row in rows}
    assert partners and {partner for _, partner in partners} <= ids


def test_a_page_that_gave_no_row_stands_among_the_dropped_without_messages(small_dataset: Path) -> None:
    rows = open_dataset(small_dataset).query("SELECT messages, source.title FROM dropped WHERE stage = 'passages-fr'")
    assert rows and all(messages == [] and title for messages, title in rows)


def test_the_manifest_counts_what_the_files_hold(small_dataset: Path) -> None:
    manifest = json.loads((small_dataset / "manifest.json").read_text("utf-8"))
    held = shards(small_dataset)
    for name, config in manifest["configs"].items():
        for split in ("train", "validation"):
            rows = [row for file in config[split]["files"] for row in held.pop(file.removeprefix("data/"))]
            assert config[split]["rows"] == len(rows), name
            assert config[split]["tokens"] == sum(estimate_tokens(m["content"]) for row in rows for m in row["messages"])
    assert not held
    assert manifest["recipe"]["clean"]["near_duplicate_threshold"] == 0.8  # defaults stand there too
    assert str(Path.home()) not in json.dumps(manifest["recipe"])


def test_the_card_follows_from_the_manifest_and_tells_the_hub_every_config(small_dataset: Path) -> None:
    text = (small_dataset / "README.md").read_text("utf-8")
    dataset = open_dataset(small_dataset)
    assert text == card(dataset.manifest)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["language"] == ["en", "fr"] and header["license"] == "cc0-1.0" and header["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in header["configs"]] == ["default", *dataset.configs]
    assert all(list(small_dataset.glob(file["path"])) for config in header["configs"] for file in config["data_files"])


def test_a_build_with_fewer_configs_leaves_nothing_of_the_one_before(
    small_dataset: Path, tmp_path: Path, small_recipe: str, glotloom: Glotloom
) -> None:
    shutil.copytree(small_dataset, tmp_path / "dataset")
    (tmp_path / "small.toml").write_text(small_recipe)
    options = ("--set", 'languages=["fr"]', "--set", "agnostic.math.budget={fr=5}")
    result = glotloom("build", tmp_path / "small.toml", "--out", tmp_path / "dataset", *options)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "dataset" / "data").iterdir()} == {"fr_chat_specific", "fr_math"}
    assert "en_math" not in (tmp_path / "dataset" / "README.md").read_text("utf-8")
