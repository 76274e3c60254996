"""A build over damaged state, odd places and odd pools: it goes on with the same bytes, or says in one line what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import InputError, Recipe, build
from pipeline.files import FolderLock
from pipeline.recipe import parse_recipe

WORDS = "river stone bread candle window garden letter bridge harbour lantern meadow orchard pebble saddle timber violin".split()


def pool_row(number: int, **rest: object) -> dict[str, object]:
    a, b, c = (WORDS[(number * k) % len(WORDS)] for k in (1, 3, 7))
    question = f"How many {a}s are there when {number} {b}s and {number + 2} {c}s lie in one {a}?"
    return {
        "id": number,
        "question": question,
        "answer": f"There are {2 * number + 2} of them, as {b}s count double. #### {number}",
    } | rest


def recipe_of(folder: Path, path: str = "pool.jsonl", **rest: object) -> Recipe:
    table = {"name": "small", "languages": ["en", "fr"], "agnostic": {"math": {"path": path, "budget": {"en": "all", "fr": "all"}}}}
    return parse_recipe(table | {"engine": {"part_rows": 7}} | rest, folder=folder)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = [json.dumps(pool_row(number)) for number in range(40)]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return recipe_of(tmp_path)


def published(out: Path) -> dict[str, str]:
    files = [*(out / "data").rglob("*.parquet"), *(out / "dropped").rglob("*.parquet")]
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def table_in(file: Path) -> None:
    file.write_text("{}")


CASES = [("duplicates", which, damage) for which in ("manifest.json", "part-*.parquet") for damage in (empty, cut, Path.unlink)]
CASES += [("duplicates", "task-*.json", empty), ("duplicates", "timings.json", empty), ("duplicates", "timings.json", Path.unlink)]
CASES += [("duplicates", "manifest.json", table_in), ("read-math", "task-*.json", table_in), ("read-math", "part-*.parquet", cut)]


@pytest.mark.parametrize(("step", "which", "damage"), CASES)
def test_a_damaged_file_of_a_finished_step_costs_that_step_alone(tmp_path, recipe, step, which, damage: Callable[[Path], None]):
    build(recipe, tmp_path / "out")
    before = published(tmp_path / "out")
    (folder,) = (tmp_path / "out" / ".stages").glob(f"{step}-*")
    damage(sorted(folder.glob(which))[-1])
    (tmp_path / "out" / "manifest.json").unlink()

    build(recipe, tmp_path / "out")

    assert published(tmp_path / "out") == before


@pytest.mark.parametrize("gone", ["task-00001.json", "part-00001.parquet"])
def test_decisions_over_all_rows_are_made_again_where_a_part_of_them_is_lost(tmp_path, recipe, gone):
    build(recipe, tmp_path / "out")
    before = published(tmp_path / "out")
    (folder,) = (tmp_path / "out" / ".stages").glob("duplicates-*")
    for name in ("manifest.json", gone):
        (folder / name).unlink()
    (tmp_path / "out" / "manifest.json").unlink()

    build(recipe, tmp_path / "out")

    assert published(tmp_path / "out") == before


def test_a_file_that_no_manifest_names_is_no_part(tmp_path, recipe):
    build(recipe, tmp_path / "out")
    before = published(tmp_path / "out")
    (folder,) = (tmp_path / "out" / ".stages").glob("prune-*")
    shutil.copy(folder / "part-00000.parquet", folder / "part-00099.parquet")
    (tmp_path / "out" / "manifest.json").unlink()

    build(recipe, tmp_path / "out")

    assert published(tmp_path / "out") == before


def test_a_pool_that_changes_while_it_is_read_is_told_and_spoils_nothing(tmp_path, recipe, monkeypatch):
    from pipeline.pools import steps

    pool, layout = tmp_path / "pool.jsonl", steps.messages_of
    once = threading.Event()

    def change(raw: dict[str, object]) -> object:
        if raw["id"] == 20 and not once.is_set():
            once.set()
            pool.write_text(json.dumps(pool_row(99)) + "\n", "utf-8")
        return layout(raw)

    text = pool.read_text("utf-8")
    monkeypatch.setattr(steps, "messages_of", change)
    with pytest.raises(InputError, match=r"pool\.jsonl: changed while it was read; run again"):
        build(recipe, tmp_path / "out")
    pool.write_text(text, "utf-8")

    assert build(recipe, tmp_path / "out").reports[0].rows_out == 40


def test_two_builds_do_not_write_one_folder_at_once_whatever_their_work_folders(tmp_path, recipe):
    with (
        FolderLock(tmp_path / "out", "busy"),
        pytest.raises(InputError, match=r"--out .*out: another build is writing it; wait for it or choose another --out"),
    ):
        build(recipe, tmp_path / "out", work=tmp_path / "work")
    assert build(recipe, tmp_path / "out", work=tmp_path / "work").count("train")


@pytest.mark.parametrize("place", [".", "data", ".publishing", "deep/er"])
def test_a_work_folder_in_the_output_folder_is_refused(tmp_path, recipe, place):
    with pytest.raises(InputError, match=r"--work .*: is the output folder itself, or in it"):
        build(recipe, tmp_path / "out", work=tmp_path / "out" / place)


def test_what_is_written_does_not_lie_in_what_is_read_and_hidden_files_are_no_rows(tmp_path):
    folder = tmp_path / "pool"
    (folder / ".checkpoints").mkdir(parents=True)
    table = pa.Table.from_pylist([pool_row(number) for number in range(8)])
    for name in ("a.parquet", ".checkpoints/a-checkpoint.parquet"):
        pq.write_table(table, folder / name)
    (folder / "._a.parquet").write_bytes(b"\x00\x05")

    with pytest.raises(InputError, match=r"--out .*: lies in .*pool, which is read"):
        build(recipe_of(tmp_path, "pool"), folder / "out")
    with pytest.raises(InputError, match=r"--work .*: lies in .*pool, which is read"):
        build(recipe_of(tmp_path, "pool"), tmp_path / "out", work=folder / "work")

    assert build(recipe_of(tmp_path, "pool"), tmp_path / "out").reports[0].rows_in == 8


def test_an_id_and_a_group_of_0_are_an_id_and_a_group(tmp_path):
    french = {"question": "Combien de pierres sont dans la rivière avec 3 pains ?", "answer": "Il y en a 9 dans la rivière. #### 9"}
    rows = [pool_row(0, group=0), pool_row(1), {"id": "fr0", "language": "fr", "group": 0, **french}, pool_row(5, id=None)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")

    dataset = build(recipe_of(tmp_path), tmp_path / "out")

    ids = [row[0] for row in dataset.query("SELECT parent_ids[1] FROM data ORDER BY 1")]
    assert ids == ["pool:#4", "pool:0", "pool:1"]
    assert dataset.query("SELECT group_id, reason FROM dropped") == [("pool:0", "translation_numbers_differ")]


def test_a_rule_of_ones_own_may_hold_a_dataclass_and_one_that_ends_python_is_told(tmp_path, recipe):
    (tmp_path / "rules.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Limit:\n    most: int\n\n"
        "def short(sample):\n    return None if len(sample.answer) < Limit(500).most else ('long', '')\n\n"
        "def ends(sample):\n    raise SystemExit(3)\n"
    )
    with_rule = recipe_of(tmp_path, clean={"rules": ["rules.py:short"]})
    assert build(with_rule, tmp_path / "out").count("train")
    with pytest.raises(InputError, match=r"rules\.py:ends: fails on row \w+: SystemExit: 3"):
        build(recipe_of(tmp_path, clean={"rules": ["rules.py:ends"]}), tmp_path / "other")
