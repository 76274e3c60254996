"""Files of rows, whole and in slices."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.rows import read as module
from pipeline.rows.read import Lines, jsonl_rows, parquet_rows, slices

OBJECTS = st.dictionaries(st.sampled_from(["a", "é", "字"]), st.text(max_size=8) | st.integers() | st.none(), max_size=3)
LINE = st.builds(lambda row, plain: json.dumps(row, ensure_ascii=plain), OBJECTS, st.booleans()) | st.sampled_from(["", " ", "\t"])


@st.composite
def line_files(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, Any]]]:
    """A file and its rows: lines that end in one of two ways, some blank, with or without a mark at the start and a last end."""
    lines = draw(st.lists(LINE, max_size=12))
    ends = [draw(st.sampled_from(["\n", "\r\n"])) for _ in lines]
    if lines and draw(st.booleans()):
        ends[-1] = ""
    text = "".join(line + end for line, end in zip(lines, ends, strict=True))
    rows = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    mark = draw(st.booleans()) and bool(lines) and bool(lines[0].strip())
    return text.encode("utf-8-sig" if mark else "utf-8"), rows


@settings(max_examples=150)
@given(line_files(), st.integers(1, 15), st.sampled_from([1, 2, 7, 1 << 24]))
def test_slices_of_lines_give_the_rows_of_the_file_with_their_numbers(tmp_path_factory, file, rows, block):
    content, expected = file
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        cut = slices(path, rows)

    assert list(jsonl_rows(path)) == expected
    assert [row for own in cut for row in own.rows()] == expected
    assert all(isinstance(own, Lines) and own.first == 1 + n * rows for n, own in enumerate(cut))
    assert [own.begin for own in cut] + [len(content)] == [0] + [own.end for own in cut]
    assert sum(own.size() for own in cut) == len(content)
    assert all(content[own.begin : own.end].count(b"\n") in {rows, rows - (own is cut[-1])} for own in cut[:-1])


def test_a_slice_can_be_sent_and_read_twice(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')

    _, second = pickle.loads(pickle.dumps(slices(tmp_path / "rows.jsonl", 2)))  # its own

    assert list(second.rows()) == list(second.rows()) == [(3, {"a": 3})]


@pytest.mark.parametrize(
    ("line", "problem"), [(b'{"a": ', "is not JSON"), (b"[1]", "is not a JSON object"), (b'{"a": "\xff"}', "is not UTF-8")]
)
def test_a_line_that_is_no_row_is_named_by_its_number_in_the_file(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 5 + line + b"\n")
    cut = slices(path, 2)

    assert [len(list(own.rows())) for own in cut[:2]] == [2, 2]
    with pytest.raises(InputError, match=rf"rows\.jsonl: line 6: {problem}"):
        list(cut[2].rows())


def test_only_the_first_line_of_a_file_may_begin_with_a_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n' * 2)
    first, second = slices(path, 1)

    assert list(first.rows()) == [(1, {"a": 1})]
    with pytest.raises(InputError, match="line 2: is not JSON"):
        list(second.rows())


@st.composite
def parquet_files(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Of each file its rows and the rows of its groups."""
    return draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), min_size=1, max_size=3))


@settings(max_examples=100)
@given(parquet_files(), st.integers(1, 15))
def test_slices_of_parquet_give_the_rows_of_all_files_with_their_numbers(tmp_path_factory, files, rows):
    folder = tmp_path_factory.mktemp("parquet")
    done = 0
    for number, (count, group) in enumerate(files):
        table = pa.table({"n": pa.array(range(done, done + count), pa.int64()), "text": [f"字{n}" for n in range(count)]})
        pq.write_table(
            table.cast(pa.schema([("n", pa.int64()), ("text", pa.string())])), folder / f"{number}.parquet", row_group_size=group
        )
        done += count

    cut = slices(folder, rows)

    found = [row for own in cut for row in own.rows()]
    assert found == list(enumerate(parquet_rows(folder, ("n", "text"))))
    assert [(number, row["n"]) for number, row in found] == [(n, n) for n in range(done)]
    assert all(len(list(own.rows())) == own.count <= rows for own in cut)
    assert len(cut) == sum(-(-count // rows) for count, _ in files)


def test_large_parts_of_several_groups_and_batches_are_read_to_their_borders(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"n": list(range(5_000))}), path, row_group_size=700)

    for rows in (1, 699, 1_000, 1_001, 2_500, 9_999):
        cut = slices(path, rows) if rows > 1 else [slices(path, 1)[n] for n in (0, 699, 700, 4_999)]
        found = [(number, row["n"]) for own in cut for number, row in own.rows()]
        assert found == [(n, n) for n in (range(5_000) if rows > 1 else (0, 699, 700, 4_999))]


def test_files_and_folders_that_hold_no_rows_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.parquet").write_bytes(b"no Parquet")

    with pytest.raises(InputError, match=r"empty: holds no Parquet file"):
        slices(tmp_path / "empty", 3)
    with pytest.raises(InputError, match=r"no\.parquet: is not Parquet"):
        slices(tmp_path / "no.parquet", 3)
    with pytest.raises(InputError, match=r"gone\.jsonl: No such file"):
        slices(tmp_path / "gone.jsonl", 3)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert slices(Path(tmp_path / "empty.jsonl"), 3) == []
