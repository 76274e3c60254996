"""A finished dataset in other layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from click.testing import Result

from pipeline import WorkError
from pipeline.release import export, open_dataset

Glotloom = Callable[..., Result]


def test_hf_is_a_dataset_dict_that_load_from_disk_reads(small_dataset: Path, tmp_path: Path, glotloom: Glotloom) -> None:
    result = glotloom("export", small_dataset, "--format", "hf", "--out", tmp_path / "hf")
    assert result.exit_code == 0, result.output
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    dataset = open_dataset(small_dataset)
    assert isinstance(loaded, datasets.DatasetDict) and set(loaded) == {"train", "validation"}
    assert {split: len(rows) for split, rows in loaded.items()} == {
        "train": len([row for config in dataset.configs for row in dataset.rows(config, "train")]),
        "validation": len([row for config in dataset.configs for row in dataset.rows(config, "validation")]),
    }
    first = next(dataset.rows(dataset.configs[0], "train"))
    assert loaded["train"][0]["messages"] == first["messages"] and loaded["train"][0]["source"] == first["source"]
    assert result.stdout.splitlines() == [f"{split}: {len(rows)} rows" for split, rows in loaded.items()]
    assert result.stderr == ""  # no bars in a log
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {"train", "validation", "dataset_dict.json"}


def test_ultralink_is_a_file_for_each_language_and_task_with_questions_and_answers_in_turn(
    small_dataset: Path, tmp_path: Path, glotloom: Glotloom
) -> None:
    result = glotloom("export", small_dataset, "--format", "ultralink", "--out", tmp_path / "records")
    assert result.exit_code == 0, result.output
    dataset = open_dataset(small_dataset)
    assert {path.name for path in (tmp_path / "records").iterdir()} == {f"{config}.jsonl" for config in dataset.configs}
    for config in dataset.configs:
        lines = (tmp_path / "records" / f"{config}.jsonl").read_text("utf-8").splitlines()
        rows = [row for split in ("train", "validation") for row in dataset.rows(config, split)]
        assert [json.loads(line) for line in lines] == [
            {"id": f"{config}_{number}", "data": [message["content"] for message in row["messages"]]}
            for number, row in enumerate(rows)
        ]
        assert f"{config}: {len(lines)} rows" in result.stdout.splitlines()


def test_an_empty_folder_will_do_for_the_export(small_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    assert export(open_dataset(small_dataset), "ultralink", tmp_path / "records")
    assert any((tmp_path / "records").iterdir())


@pytest.mark.parametrize("layout", ["hf", "ultralink"])
def test_an_export_that_fails_leaves_nothing(
    small_dataset: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if layout == "hf":
        monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", full)
    else:
        monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(WorkError, match="No space left on device"):
        export(open_dataset(small_dataset), layout, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
