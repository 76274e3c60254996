"""The language of every row of anybody's Parquet file: all rows come out, two columns richer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commands.identify import identify_table
from pipeline.errors import InputError
from pipeline.text.identify import UNDETERMINED, identify

TEXTS = [
    "The bridge was built in the nineteenth century by local people.",
    "Le pont a été construit au dix-neuvième siècle par les habitants.",
    "这座桥是十九世纪由当地人建造的。",
    "Oui.",
    None,
    "Die Brücke wurde im neunzehnten Jahrhundert von den Bewohnern gebaut.",
]


def write(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_every_row_comes_out_with_its_language_and_its_other_columns(tmp_path):
    rows = write(tmp_path / "in.parquet", id=[5, 4, 3, 2, 1, 0], text=TEXTS, more=[[n] for n in range(6)])

    done = identify_table(rows, "text", ["en", "fr", "zh"], tmp_path / "out.parquet")

    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema.names == ["id", "text", "more", "identified_language", "identified_score"]
    assert out.column("id").to_pylist() == [0, 1, 2, 3, 4, 5]
    assert out.column("more").to_pylist() == [[5], [4], [3], [2], [1], [0]]
    assert out.column("identified_language").to_pylist() == ["de", UNDETERMINED, UNDETERMINED, "zh", "fr", "en"]
    expected = identify(TEXTS[1], ["en", "fr", "zh"]).score
    assert out.column("identified_score")[4].as_py() == pytest.approx(expected)
    assert done.languages == {UNDETERMINED: 2, "de": 1, "en": 1, "fr": 1, "zh": 1}


def test_rows_without_ids_and_messages_will_do(tmp_path):
    messages = [
        [{"role": "user", "content": TEXTS[1]}, {"role": "assistant", "content": "Au dix-neuvième siècle, par les habitants."}]
    ]
    rows = write(tmp_path / "in.parquet", messages=messages * 2)

    assert identify_table(rows, "messages", ["fr"], tmp_path / "out.parquet").languages == {"fr": 2}
    assert len(set(pq.read_table(tmp_path / "out.parquet").column("id").to_pylist())) == 2


def test_a_second_opinion_says_of_each_row_whether_it_agrees(tmp_path):
    rows = write(tmp_path / "in.parquet", id=["a", "b"], text=["Die Brücke wurde im neunzehnten Jahrhundert gebaut.", "Oui."])

    done = identify_table(rows, "text", ["de"], tmp_path / "out.parquet", second=True)

    out = pq.read_table(tmp_path / "out.parquet")
    assert out.column("identified_language").to_pylist() == ["de", UNDETERMINED]
    assert out.column("identified_agreed").to_pylist() == [True, True]
    assert done.disagreed == 0


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes(tmp_path):
    rows = write(tmp_path / "in.parquet", id=range(600), text=TEXTS * 100)

    for workers in (1, 2):
        identify_table(rows, "text", ["en", "fr", "zh"], tmp_path / f"out{workers}.parquet", workers=workers)

    assert (tmp_path / "out1.parquet").read_bytes() == (tmp_path / "out2.parquet").read_bytes()


@pytest.mark.parametrize("languages", [[], ["english"], ["EN"], ["en", ""]])
def test_languages_are_codes(tmp_path, languages):
    rows = write(tmp_path / "in.parquet", text=["a"])
    with pytest.raises(InputError, match="expected ISO 639-1 codes"):
        identify_table(rows, "text", languages, tmp_path / "out.parquet")


def test_a_table_that_was_identified_before_is_not_written_over(tmp_path):
    rows = write(tmp_path / "in.parquet", text=["a"], identified_language=["en"])
    with pytest.raises(InputError, match="has a column 'identified_language' already"):
        identify_table(rows, "text", ["en"], tmp_path / "out.parquet")
