"""Duplicates in Parquet files of anybody's: every row is in one of two files, and how the rows came does not matter."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commands import dedup as module
from pipeline.commands.dedup import dedup
from pipeline.errors import InputError, WorkError
from pipeline.rows import write as tables
from pipeline.rows.tables import dropped_path, open_table


def write(path: Path, texts: list, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, **columns}), path)
    return path


def read(out: Path) -> tuple[list[dict], list[dict]]:
    return pq.read_table(out).to_pylist(), pq.read_table(dropped_path(out)).to_pylist()


def long_text(seed: int, length: int = 300) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnop 字жя", k=length))


def test_every_row_is_in_one_of_the_two_files_with_its_reason_and_partner(tmp_path):
    long = long_text(1)
    texts = [long, long + "!", "Straße  Ⅷ", "STRASSE VIII", "頭髮", "头发", "", " ", "other"]
    rows = write(tmp_path / "in.parquet", texts, id=[f"r{n}" for n in range(9)], more=list(range(9)))

    report = dedup(rows, "text", tmp_path / "out.parquet")

    kept, dropped = read(tmp_path / "out.parquet")
    assert [row["id"] for row in kept] == ["r1", "r3", "r4", "r7", "r8"]
    assert all(texts[row["more"]] == row["text"] for row in kept)
    assert [(row["id"], row["reason"], row["partner_id"]) for row in dropped] == [
        ("r0", "near_duplicate", "r1"),
        ("r2", "exact_duplicate", "r3"),
        ("r5", "exact_duplicate", "r4"),
        ("r6", "exact_duplicate", "r7"),
    ]
    assert dropped[0]["score"] == pytest.approx(296 / 297) and dropped[1]["score"] == 1
    assert (report.rows_in, report.kept, report.exact, report.near) == (9, 5, 3, 1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.booleans())
def test_order_and_files_of_the_rows_do_not_matter(tmp_path_factory, seed, files, with_ids):
    draw = random.Random(seed)
    folder = tmp_path_factory.mktemp("rows")
    texts = [draw.choice(["a", "A ", "字", "", long_text(draw.randrange(3)) + "xyz"[: draw.randrange(3)]]) for _ in range(20)]
    rows = [{"text": text, "n": draw.randrange(3), **({"id": f"{i:02d}"} if with_ids else {})} for i, text in enumerate(texts)]
    straight, mixed = folder / "straight", folder / "mixed"
    for target, order in ((straight, rows), (mixed, draw.sample(rows, len(rows)))):
        target.mkdir()
        size = 20 if target is straight else -(-20 // files)
        for start in range(0, 20, size):
            pq.write_table(pa.Table.from_pylist(order[start : start + size]), target / f"{start}.parquet")

    for target in (straight, mixed):
        dedup(target, "text", folder / f"{target.name}.parquet")

    for one, other in (
        (folder / "straight.parquet", folder / "mixed.parquet"),
        (folder / "straight.dropped.parquet", folder / "mixed.dropped.parquet"),
    ):
        assert one.read_bytes() == other.read_bytes()
    kept, dropped = read(folder / "straight.parquet")
    assert len(kept) + len(dropped) == 20
    assert len({row["id"] for row in kept} | {row["id"] for row in dropped}) == 20


def test_an_earlier_release_wins_whatever_it_holds_itself(tmp_path):
    long = long_text(1)
    released = write(tmp_path / "old.parquet", [long, long + "!", "short"], id=["old0", "old1", "old2"])
    rows = write(tmp_path / "in.parquet", [long + "!?" + "z" * 9, "SHORT", "new", "New"], id=["a", "b", "c", "d"])

    dedup(rows, "text", tmp_path / "out.parquet", against=released)

    kept, dropped = read(tmp_path / "out.parquet")
    assert [row["id"] for row in kept] == ["c"]
    assert [(row["id"], row["partner_id"]) for row in dropped] == [("a", "old1"), ("b", "old2"), ("d", "c")]


def test_a_release_without_ids_is_named_by_file_and_row(tmp_path):
    released = write(tmp_path / "old.parquet", ["x", "short"])
    rows = write(tmp_path / "in.parquet", ["SHORT"], id=["b"])

    dedup(rows, "text", tmp_path / "out.parquet", against=released)

    assert [row["partner_id"] for row in read(tmp_path / "out.parquet")[1]] == ["old.parquet:1"]


@pytest.mark.parametrize(
    ("keep", "stays"),
    [
        ("longest", "b"),
        ("first", "a"),
        ("highest:quality", "c"),
        ("lowest:quality", "a"),
        ("lowest:day", "d"),
        ("highest:day", "b"),
    ],
)
def test_which_of_several_stays_is_a_policy(tmp_path, keep, stays):
    text = "the same text of a row that was written down several times over, with little changed"
    rows = tmp_path / "in.parquet"
    columns = {
        "id": ["a", "b", "c", "d"],
        "text": [text, text + "!!", text + "!", text + "?"],
        "quality": [0.1, None, 0.9, 0.5],
        "day": pa.array([3, 9, None, 1], pa.date32()),
    }
    pq.write_table(pa.table(columns), rows)

    dedup(rows, "text", tmp_path / "out.parquet", keep=keep)

    assert pq.read_table(tmp_path / "out.parquet").column("id").to_pylist() == [stays]


@pytest.mark.parametrize(
    ("keep", "problem"),
    [
        ("best", "keep = 'best': expected one of longest, first, highest:COLUMN"),
        ("highest:score", "no column 'score' to keep rows by; it has id, text, tags"),
        ("highest:", "keep = 'highest:': expected a column, as in highest:quality"),
        ("lowest", "keep = 'lowest': expected a column, as in lowest:quality"),
        ("lowest:tags", "column 'tags' is list<.*>, which has no order"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(tmp_path, keep, problem):
    rows = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["a"], "tags": [["x"]]}), rows)

    with pytest.raises(InputError, match=problem):
        dedup(rows, "text", tmp_path / "out.parquet", keep=keep)


def test_a_text_that_stands_in_another_leaves_by_containment_alone(tmp_path):
    text = "".join(random.Random(0).choices("abcdefghij klmnop", k=600))
    rows = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["long", "short"], "text": [text, text[:420]]}), rows)

    plain = dedup(rows, "text", tmp_path / "plain.parquet")
    strict = dedup(rows, "text", tmp_path / "strict.parquet", containment=True)

    assert (plain.near, strict.near) == (0, 1)
    (left,) = pq.read_table(tmp_path / "strict.dropped.parquet").to_pylist()
    assert (left["id"], left["partner_id"], left["score"]) == ("short", "long", 1.0)


def test_messages_and_bytes_are_texts_too_and_columns_keep_their_types(tmp_path):
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    messages = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        [{"role": "user", "content": "hi\nho"}],
    ]
    schema = pa.schema([("messages", pa.list_(turn)), ("raw", pa.binary()), ("tag", pa.dictionary(pa.int8(), pa.string()))])
    table = pa.table(
        [pa.array(messages, schema[0].type), [b"\xff\xfe", b"ok"], pa.array(["a", "b"]).dictionary_encode().cast(schema[2].type)],
        schema=schema,
    )
    pq.write_table(table, tmp_path / "in.parquet")

    assert dedup(tmp_path / "in.parquet", "messages", tmp_path / "chat.parquet").exact == 1
    assert dedup(tmp_path / "in.parquet", "raw", tmp_path / "raw.parquet").kept == 2
    assert {row["raw"] for row in read(tmp_path / "raw.parquet")[0]} == {b"\xff\xfe", b"ok"}
    assert pq.read_schema(tmp_path / "raw.parquet").field("messages").type == schema[0].type


def test_odd_rows_stay_as_they_are(tmp_path):
    right_to_left = "\u202e\u0645\u0631\u062d\u0628\u0627\u202c"
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
    odd = ["\x00\x01\x07", right_to_left, family, "1234567890" * 40, "שלום", "\ufffd", "\n", "字", None, "a" * 10_000_000]
    rows = write(tmp_path / "in.parquet", odd)

    assert dedup(rows, "text", tmp_path / "out.parquet").kept == len(odd) - 1  # null and a line end are both empty texts
    assert {row["text"] for row in read(tmp_path / "out.parquet")[0]} >= set(odd) - {None, "\n"}


def test_no_row_and_no_duplicate_are_no_problem(tmp_path):
    rows = write(tmp_path / "in.parquet", pa.array([], pa.string()))

    assert dedup(rows, "text", tmp_path / "out.parquet").rows_in == 0
    assert read(tmp_path / "out.parquet") == ([], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nothing.parquet"}, "nothing.parquet: does not exist"),
        ({"path": "empty"}, "empty: holds no Parquet file"),
        ({"path": "text.parquet"}, "text.parquet: not a readable Parquet file"),
        ({"column": "txt"}, "in.parquet: no column 'txt'; it has text, id, n"),
        ({"column": "n"}, "column 'n' is int64; expected a text, or messages"),
        ({"out": "in.parquet"}, "would write over the input"),
        ({"path": "unlike", "out": "unlike/out.parquet"}, "lies in .*unlike, which is read"),
        ({"path": "list.parquet"}, r"column 'id' is list<.*>; expected texts or numbers"),
        ({"path": "parts.parquet", "column": "messages"}, "column 'messages' is .*; expected a text, or messages"),
        ({"out": "out.csv"}, "expected a name that ends in .parquet"),
        ({"threshold": 0.0}, "threshold = 0.0: expected more than 0 and at most 1"),
        ({"path": "twice.parquet"}, "id 'a' stands in more than one row"),
        ({"path": "null.parquet"}, "1 rows have no id"),
        ({"path": "unlike"}, "other columns than"),
    ],
)
def test_what_is_wrong_is_told_with_its_file(tmp_path, change, message):
    write(tmp_path / "in.parquet", ["a", "b"], id=["a", "b"], n=[1, 2])
    write(tmp_path / "twice.parquet", ["a", "b"], id=["a", "a"])
    write(tmp_path / "null.parquet", ["a", "b"], id=["a", None])
    write(tmp_path / "unlike" / "1.parquet", ["a"])
    write(tmp_path / "unlike" / "2.parquet", ["a"], n=[1])
    write(tmp_path / "list.parquet", ["a"], id=[["x"]])
    write(tmp_path / "parts.parquet", ["a"], messages=[[{"role": "user", "content": ["a"]}]])
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "empty").mkdir()
    given_ = {"path": "in.parquet", "column": "text", "out": "out.parquet", **change}

    with pytest.raises(InputError, match=message):
        dedup(tmp_path / given_["path"], given_["column"], tmp_path / given_["out"], threshold=change.get("threshold", 0.8))
    assert not (tmp_path / "out.parquet").exists() and not list(tmp_path.glob(".out*"))


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    rows = write(tmp_path / "in.parquet", ["a", "b"])
    (tmp_path / "out.parquet").write_bytes(b"of yesterday")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(module, "write_table", full)
    with pytest.raises(WorkError, match="No space left on device"):
        dedup(rows, "text", tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == b"of yesterday"


ODD_COLUMNS = {
    "source": pa.array(["wiki", "wiki", "wiki"]),
    "dropped": pa.array([1.5, None, float("nan")]),
    "Text": pa.array(["x", "y", "z"]),
    "": pa.array([True, None, False]),
    "nested": pa.array([{"a": 1, "A": 2}, None, {"a": 3, "A": 4}], pa.struct([("a", pa.int8()), ("A", pa.int64())])),
    "decimal": pa.array([Decimal(10) ** 60, None, Decimal(-1)], pa.decimal256(76, 2)),
    "half": pa.array(np.array([1, 2, 3], np.float16)),
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
    "zone": pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * 3, pa.timestamp("us", "Europe/Paris")),
    "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "tag": pa.array(["b", "a", "b"]).dictionary_encode(),
    "uuid": pa.array([b"0123456789abcdef"] * 3, pa.uuid()),
    "none": pa.nulls(3),
}


@pytest.mark.parametrize(
    "ids", [[3.5, 1.0, 2.0], [b"c", b"a", b"b"], [Decimal("1E-10"), Decimal(2), Decimal(3)], [date(2026, 1, d) for d in (3, 1, 2)]]
)
def test_values_and_types_of_all_columns_stay_and_no_row_is_in_both_files(tmp_path, ids):
    table = pa.table({"id": ids, "text": ["one row", "One  row", "other"], **ODD_COLUMNS})
    pq.write_table(table, tmp_path / "in.parquet")

    report = dedup(tmp_path / "in.parquet", "text", tmp_path / "out.parquet")

    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema.remove_metadata() == pq.read_schema(tmp_path / "in.parquet").remove_metadata()
    read_back = pq.read_table(tmp_path / "in.parquet")
    kept = [ids.index(value) for value in out.column("id").to_pylist()]
    assert (report.kept, report.exact) == (2, 1) and sorted(kept) == [1, 2]
    expected = read_back.take(kept)
    for name in table.schema.names:
        assert repr(out.column(name).to_pylist()) == repr(expected.column(name).to_pylist())
    assert len(pq.read_table(dropped_path(tmp_path / "out.parquet"))) == 1


def test_folders_and_files_are_read_as_they_are_called(tmp_path):
    write(tmp_path / "in" / "text=77" / "rows*.parquet", ["a", "b"], id=[1, 2])
    write(tmp_path / "in" / "text=77" / "rowsX.parquet", ["c"], id=[3])
    write(tmp_path / "in" / ".cache" / "old.parquet", ["d"], id=[1])
    (tmp_path / "in" / "folder.parquet").mkdir()

    dedup(tmp_path / "in", "text", tmp_path / "out.parquet")

    assert [row["text"] for row in read(tmp_path / "out.parquet")[0]] == ["a", "b", "c"]


def test_files_may_differ_in_the_order_of_columns(tmp_path):
    pq.write_table(pa.table({"id": [1], "text": ["a"], "n": [5]}), (tmp_path / "in").mkdir() or tmp_path / "in" / "1.parquet")
    pq.write_table(pa.table({"n": [6], "text": ["b"], "id": [2]}), tmp_path / "in" / "2.parquet")

    dedup(tmp_path / "in", "text", tmp_path / "out.parquet")

    assert [row["n"] for row in read(tmp_path / "out.parquet")[0]] == [5, 6]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0130stanbul", "I\u0307stanbul"),  # a letter that Arrow and Unicode lower-case differently
        ("\u2fba", "\u9a6c"),  # a radical, of which NFKC makes a traditional character
        ("\uff76\u99ac", "\u30ab\u99ac"),  # half-width kana
        ("\u897f\u8499\u30fb\u99ac", "\u897f\u8499\u30fb\u9a6c"),  # a middle dot that is no kana
        ("\u1112\u1161\u11ab", "\ud55c"),  # Hangul jamo
        ("\ufb01n", "FIN"),
        ("\u212a\u00a0 m", "k\u3000M"),
    ],
)
def test_what_normalisation_makes_equal_is_an_exact_duplicate(tmp_path, one, other):
    rows = write(tmp_path / "in.parquet", [one, other])

    assert dedup(rows, "text", tmp_path / "out.parquet").exact == 1


def test_bytes_that_are_no_text_in_a_text_column_are_moved_as_they_are(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"a\xffb\xfe")])
    pq.write_table(pa.table({"id": ["1", "2"], "text": broken, "other": broken}), tmp_path / "in.parquet")

    assert dedup(tmp_path / "in.parquet", "text", tmp_path / "out.parquet").kept == 2
    assert pq.read_table(tmp_path / "out.parquet").column("other").cast(pa.binary()).to_pylist() == [b"a\xff", b"b\xfe"]


def test_copies_inside_an_earlier_release_cost_nothing_and_warn_of_nothing(tmp_path):
    template = long_text(1, 400)
    released = write(
        tmp_path / "old.parquet", ["same"] * 3000 + [f"{template} {long_text(n, 90)}" for n in range(400)], id=["x"] * 3400
    )
    rows = write(tmp_path / "in.parquet", ["Same", "new"], id=["a", "b"])

    report = dedup(rows, "text", tmp_path / "out.parquet", against=released)

    assert (report.kept, report.exact, report.candidates, report.not_compared) == (1, 1, 0, 0)


def test_large_rows_are_read_a_few_at_a_time(tmp_path):
    rows = write(tmp_path / "in.parquet", [long_text(n, 1000) * 2_000 for n in range(30)])

    sizes = [len(batch) for batch in open_table(rows, "text", tmp_path / "out.parquet").batches()]

    assert sum(sizes) == 30 and max(sizes) <= 8


def test_both_files_appear_together(tmp_path, monkeypatch):
    rows = write(tmp_path / "in.parquet", ["a", "A"])
    dedup(rows, "text", tmp_path / "out.parquet")
    before = [path.read_bytes() for path in (tmp_path / "out.parquet", tmp_path / "out.dropped.parquet")]
    rows = write(tmp_path / "in.parquet", ["b", "B"])
    monkeypatch.setattr(tables, "_write_sorted", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    with pytest.raises(WorkError, match="No space left"):
        dedup(rows, "text", tmp_path / "out.parquet")

    assert [path.read_bytes() for path in (tmp_path / "out.parquet", tmp_path / "out.dropped.parquet")] == before


def test_more_stretches_than_files_may_be_open(tmp_path, monkeypatch):
    texts = [f"{number:04d}" for number in random.Random(1).sample(range(1000), 1000)]
    rows = write(tmp_path / "in.parquet", texts, id=texts)
    dedup(rows, "text", tmp_path / "one.parquet", threshold=1.0)
    monkeypatch.setattr(tables, "_ROWS_PER_GROUP", 7)
    monkeypatch.setattr(tables, "_MOST_FILES", 4)

    dedup(rows, "text", tmp_path / "out.parquet", threshold=1.0)

    assert [row["id"] for row in read(tmp_path / "out.parquet")[0]] == sorted(texts)
    assert pq.read_metadata(tmp_path / "out.parquet").row_group(0).num_rows == 7
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "out.parquet"))


@pytest.mark.slow
def test_killed_at_any_moment_there_is_no_half_written_file(tmp_path):
    texts = [long_text(number % 3000, 200) for number in range(6000)]
    rows = write(tmp_path / "in.parquet", texts, id=[f"{number:05d}" for number in range(6000)])
    command = [sys.executable, "-m", "flows.cli", "dedup", str(rows), "--out", str(tmp_path / "out.parquet")]
    subprocess.run(command, check=True, capture_output=True)
    expected = (tmp_path / "out.parquet").read_bytes()
    for delay in (0.6, 1.0, 1.4, 1.8):
        (tmp_path / "out.parquet").unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out.parquet").exists() or (tmp_path / "out.parquet").read_bytes() == expected
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "out.parquet").read_bytes() == expected
    assert {path.name for path in tmp_path.iterdir()} == {"in.parquet", "out.parquet", "out.dropped.parquet"}
