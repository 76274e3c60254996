"""A whole build: how its rows are cut, and who does the parts, changes no published byte."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build
from pipeline.engine import run as engine
from pipeline.engine.executors import ExecutorOptions
from pipeline.pools import steps as pools
from pipeline.recipe import Recipe, parse_recipe


def published(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for name in ("data", "dropped") for path in (out / name).rglob("*.parquet")
    }


@pytest.fixture(scope="module")
def two_processes() -> Iterator[ExecutorOptions]:
    """That are given any work, however little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "WORTH_SPREADING", 0)
        yield ExecutorOptions(workers=2)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: Any, small_recipe: str) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("usual") / "out"
    build(parse_recipe(tomllib.loads(small_recipe)), out, executor=ExecutorOptions(kind="inline"))
    return published(out)


@pytest.mark.parametrize("part_rows", [1, 7, 100])
def test_parts_of_any_size_give_the_same_published_bytes(tmp_path, small_recipe, usual, part_rows):
    recipe = parse_recipe(tomllib.loads(small_recipe) | {"engine": {"part_rows": part_rows}})

    build(recipe, tmp_path / "out", executor=ExecutorOptions(kind="inline"))

    assert len(usual) > 2 and published(tmp_path / "out") == usual


def test_two_processes_give_the_same_published_bytes(tmp_path, small_recipe, usual, two_processes):
    recipe = parse_recipe(tomllib.loads(small_recipe) | {"engine": {"part_rows": 10}})

    build(recipe, tmp_path / "out", executor=two_processes)

    assert published(tmp_path / "out") == usual


def test_interrupted_and_cut_in_another_way_a_build_loses_no_row(tmp_path, monkeypatch):
    pool = tmp_path / "pool.jsonl"
    texts = ((n, f"What is {n} plus {7 * n}, dear friend number {n}?", f"The sum of the two is {8 * n}.") for n in range(40))
    pool.write_text(
        "".join(json.dumps({"id": f"{n}", "question": question, "answer": answer}) + "\n" for n, question, answer in texts)
    )

    def recipe(part_rows: int) -> Recipe:
        agnostic = {"math": {"path": str(pool), "budget": {"en": "all"}}}
        return parse_recipe(
            {
                "name": "p",
                "languages": ["en"],
                "agnostic": agnostic,
                "engine": {"part_rows": part_rows},
                "clean": {"near_duplicate_threshold": 1.0},
            }
        )

    def break_off(raw: dict[str, Any]) -> Any:
        if raw["id"] == "25":
            raise KeyboardInterrupt
        return messages_of(raw)

    messages_of = pools.messages_of
    monkeypatch.setattr(pools, "messages_of", break_off)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(10), tmp_path / "out", executor=ExecutorOptions(kind="inline"))
    monkeypatch.setattr(pools, "messages_of", messages_of)

    dataset = build(recipe(15), tmp_path / "out", executor=ExecutorOptions(kind="inline"))

    assert dataset.query("SELECT count(*), count(DISTINCT id) FROM data") == [(40, 40)]
