"""Rows sorted over the disk, held against a sort in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.step import here
from pipeline.rows import shards as module
from pipeline.rows.shards import Shard, numbered, write_shards
from pipeline.text.tokens import estimate_tokens

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema([("id", pa.string()), ("messages", MESSAGES), ("group", pa.int32())])
GIVEN = pa.schema([*SCHEMA, ("left out", pa.string())])

Row = tuple[str, list[str], int]


def write_parts(rows: Sequence[Row], folder: Path, sizes: Sequence[int]) -> list[Path]:
    """The rows in files of these sizes, the last one with the rest."""
    files, done = [], 0
    for number, size in enumerate([*sizes, len(rows)]):
        own = rows[done : done + size]
        raw = [
            {"id": id_, "messages": [{"role": "user", "content": turn} for turn in turns], "group": group, "left out": "x"}
            for id_, turns, group in own
        ]
        files.append(folder / f"part-{number}.parquet")
        pq.write_table(pa.Table.from_pylist(raw, schema=GIVEN), files[-1])
        done += size
    return files


ROWS = st.lists(st.tuples(st.text("abé字", max_size=3), st.lists(st.text(max_size=12), max_size=3), st.integers(0, 2)), max_size=25)


@settings(max_examples=60)
@given(ROWS, st.lists(st.integers(0, 9), max_size=4), st.integers(1, 5), st.integers(1, 7), st.randoms(use_true_random=False))
def test_shards_hold_what_a_sort_in_memory_gives(tmp_path_factory, rows, sizes, count, at_once, draw):
    folder = tmp_path_factory.mktemp("shards")
    rows = [(f"{id_}{number}", turns, group) for number, (id_, turns, group) in enumerate(rows)]
    shard_of = [draw.randrange(count) for _ in rows]
    for number in range(count):  # a shard without rows is never asked for
        if number not in shard_of:
            rows.append((f"more {number}", ["words"], 0))
            shard_of.append(number)
    work = folder / "work"
    work.mkdir()
    shards = [Shard(folder / "out" / f"{n}" / "rows.parquet", ("group", "id"), SCHEMA) for n in range(count)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS_AT_ONCE", at_once)
        tokens = write_shards(write_parts(rows, folder, sizes), np.array(shard_of, np.int64), shards, work, here)

    for number, shard in enumerate(shards):
        own = sorted(
            (row for row, place in zip(rows, shard_of, strict=True) if place == number), key=lambda row: (row[2], row[0].encode())
        )
        table = pq.read_table(shard.path)
        assert table.schema.equals(SCHEMA)
        found = [(row["id"], [m["content"] for m in row["messages"]], row["group"]) for row in table.to_pylist()]
        assert found == own
        assert tokens[number] == sum(estimate_tokens(turn) for _, turns, _ in own for turn in turns)
    assert list(work.iterdir()) == []


def test_the_bytes_of_a_shard_do_not_depend_on_the_parts_its_rows_came_in(tmp_path):
    draw = random.Random(1)
    rows = [(f"{number:03d}", [f"text {draw.random()}"], draw.randrange(3)) for number in range(200)]
    found = []
    for name, sizes in (("one", []), ("many", [1, 50, 3, 60])):
        folder = tmp_path / name
        (folder / "work").mkdir(parents=True)
        shards = [Shard(folder / f"{n}.parquet", ("id",), SCHEMA) for n in range(3)]
        write_shards(write_parts(rows, folder, sizes), np.array([r[2] for r in rows]), shards, folder / "work", here)
        found.append([shard.path.read_bytes() for shard in shards])

    assert found[0] == found[1]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.text("ab字", max_size=2)), max_size=30), st.integers(1, 6))
def test_shards_are_numbered_group_by_group_and_full_but_for_the_last_of_each(rows, size):
    group = np.array([own for own, _ in rows], np.int64)
    by = [pa.chunked_array([[text for _, text in rows], []], pa.string())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_PER_SHARD", size)
        shard, groups = numbered(group, by)

    expected, names = {}, []
    for own in sorted(set(group.tolist())):
        members = sorted((n for n, (g, _) in enumerate(rows) if g == own), key=lambda n: (rows[n][1].encode(), n))
        for begin in range(0, len(members), size):
            expected |= dict.fromkeys(members[begin : begin + size], len(names))
            names.append(own)
    assert groups == names
    assert shard.tolist() == [expected[n] for n in range(len(rows))]
