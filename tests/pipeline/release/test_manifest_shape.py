"""A manifest that no build wrote is refused, naming the key, before any of its names becomes a path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.release import open_dataset

Glotloom = Callable[..., Result]


@pytest.fixture
def edited(small_dataset: Path, tmp_path: Path) -> Callable[[Callable[[Any], object]], Path]:
    """A copy of the small dataset whose manifest was edited."""

    def edited(edit: Callable[[Any], object]) -> Path:
        folder = tmp_path / "dataset"
        shutil.copytree(small_dataset, folder, ignore=shutil.ignore_patterns(".stages"), dirs_exist_ok=True)
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        edit(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        return folder

    return edited


def renamed(name: str) -> Callable[[Any], object]:
    def edit(manifest: Any) -> None:
        manifest["configs"][name] = manifest["configs"].pop("en_math")

    return edit


@pytest.mark.parametrize(
    "name", ["../victim", "/tmp/victim", ".en_math", "a/b", "", "en math", "en\\math", "..", "en_math\n", "fr_code"]
)
def test_a_config_by_another_name_than_language_and_task_is_refused(
    edited: Callable[..., Path], tmp_path: Path, name: str, glotloom: Glotloom
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    result = glotloom("export", edited(renamed(name)), "--format", "ultralink", "--out", tmp_path / "out" / "records")

    assert result.exit_code == 2 and "manifest.json: configs." in result.stderr and repr(name) in result.stderr
    assert {path.name for path in tmp_path.iterdir()} - before == {"dataset"}


@pytest.mark.parametrize(
    "name", ["../secret.parquet", "/etc/passwd", "data/../../secret.parquet", "", "a\0b", "data\\x", "x" * 5000]
)
def test_a_file_outside_the_folder_is_refused(edited: Callable[..., Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.parquet").write_bytes(b"")

    with pytest.raises(InputError, match=r"manifest\.json: files"):
        open_dataset(edited(lambda manifest: manifest["files"].append(name)))


@pytest.mark.parametrize("name", ["README.md", "data/en_math"])
def test_a_link_that_leads_out_is_refused_and_one_within_is_not(edited: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = edited(lambda manifest: None)
    (folder / name).rename(folder / "moved")
    (folder / name).symlink_to(folder / "moved")
    assert open_dataset(folder).configs

    (folder / "moved").rename(tmp_path / "moved")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match=r"manifest\.json: files: .* leads out of the folder"):
        open_dataset(folder)


SHAPES = (None, [], {}, "x", 3, [1], ["x"], {"x": 1}, {"en_math": []}, {"en_math": {"language": "en"}})
RIGHT = {("fingerprint", "x"), ("stages", "[]"), ("files", "[]"), ("configs", "{}")}


@pytest.mark.parametrize(
    ("key", "value"),
    [(k, v) for k in ("fingerprint", "recipe", "stages", "configs", "files") for v in SHAPES if (k, str(v)) not in RIGHT],
)
def test_a_value_of_another_shape_is_refused_with_its_key(edited: Callable[..., Path], key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"manifest\.json: {key}.*: expected" if value != ["x"] else "expected|lacks x"):
        open_dataset(edited(lambda manifest: manifest.__setitem__(key, value)))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(place for key, child in inside for place in places(child, (*at, key)))]


JSON = st.sampled_from([None, [], {}, "x", "../x", 3, -1, 1.5, True, [None], [[]], {"x": []}, {"": ""}])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_whatever_stands_in_the_manifest_nothing_but_an_input_error_comes_of_it(
    edited: Callable[..., Path], data: st.DataObject
) -> None:
    def edit(manifest: Any) -> None:
        *way, last = data.draw(st.sampled_from([place for place in places(manifest) if place[0] != "format"]))
        for key in way:
            manifest = manifest[key]
        if data.draw(st.booleans()):
            manifest[last] = data.draw(JSON)
        else:
            del manifest[last]

    try:
        dataset = open_dataset(edited(edit))
    except InputError:
        return
    assert isinstance(dataset.count("train") + dataset.left + len(dataset.languages_without_rows), int)
    assert all(shard.is_file() for config in dataset.configs for shard in dataset.shards(config, "train"))


def test_a_manifest_that_no_json_reader_can_follow_is_refused(edited: Callable[..., Path]) -> None:
    folder = edited(lambda manifest: None)
    (folder / "manifest.json").write_text("[" * 100_000)

    with pytest.raises(InputError, match=r"manifest\.json: is not JSON"):
        open_dataset(folder)
