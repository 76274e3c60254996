import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.knowledge.records import plain_sections, read_dataset, read_jsonl, read_parquet, read_text
from pipeline.languages import load_language
from pipeline.rows.read import jsonl_rows, parquet_rows

ENGLISH = load_language("en")


def documents(reader, path):
    return list(reader(path, ENGLISH, source="", licence="CC0 1.0"))


def test_a_jsonl_line_is_a_document(tmp_path):
    path = tmp_path / "wiki.jsonl"
    path.write_text(
        '{"id": 12, "title": "Pipes", "text": "Old.", "url": "https://x.example/Pipes"}\n\n{"title": "B", "text": ""}\n'
    )

    first, second = documents(read_jsonl, path)

    assert (first.id, first.title, first.source.url, first.source.licence) == (
        "wiki-12",
        "Pipes",
        "https://x.example/Pipes",
        "CC0 1.0",
    )
    assert first.sections()[0].text == "Old."
    assert (second.id, second.skip) == ("wiki-wiki.jsonl:3", "page_without_text")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"title": "A"}', "line 2: has no text 'text'"),
        (b'{"title": 5, "text": "x"}', "line 2: has no text 'title'"),
        (b'{"title": "A", "text": null}', "line 2: has no text 'text'"),
        (b"[1, 2]", "line 2: is not a JSON object"),
        (b'"text"', "line 2: is not a JSON object"),
        (b"{title: A}", "line 2: is not JSON"),
        (b'{"title": "A", "text": "caf\xe9"}', "line 2: is not UTF-8"),
        (b'{"title": "A", "text": "half a pair: \\ud83d"}', "line 2: is not Unicode"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_number(tmp_path, line, problem):
    path = tmp_path / "wiki.jsonl"
    path.write_bytes(b'{"title": "Fine", "text": "Fine \\ud83d\\ude00."}\n' + line + b"\n")

    with pytest.raises(InputError) as error:
        documents(read_jsonl, path)

    assert f"wiki.jsonl: {problem}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_does_not_matter(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')

    assert list(jsonl_rows(tmp_path / "bom.jsonl")) == [(1, {"a": 1})]


def test_parquet_rows_come_from_a_file_or_a_folder_in_the_order_of_its_names(tmp_path):
    for name, titles in (("b.parquet", ["C"]), ("a.parquet", ["A", "B"])):
        pq.write_table(pa.table({"title": titles, "text": ["x"] * len(titles)}), tmp_path / name)

    assert [document.title for document in documents(read_parquet, tmp_path)] == ["A", "B", "C"]
    assert [document.title for document in documents(read_parquet, tmp_path / "b.parquet")] == ["C"]


def test_rows_of_a_folder_that_datasets_saved_are_documents(tmp_path):
    rows = {"id": ["1", "2"], "title": ["Pipes", "Reel"], "text": ["Old.", "Danced."], "more": [[1], [2]]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "wiki")

    pipes, reel = documents(read_dataset, tmp_path / "wiki")

    assert (pipes.id, pipes.title, pipes.text, reel.id) == ("wiki-1", "Pipes", "Old.", "wiki-2")


def test_a_dataset_is_streamed_by_the_name_that_load_dataset_takes(tmp_path):
    folder = tmp_path / "org"
    folder.mkdir()  # a folder instead of a repository: the hub itself is not asked by a test
    (folder / "train.jsonl").write_text('{"id": 7, "title": "Pipes", "text": "Old."}\n', "utf-8")
    (document,) = documents(read_dataset, Path(f"hub:{folder}"))
    assert (document.title, document.text) == ("Pipes", "Old.")


@pytest.mark.parametrize("address", ["hub:", "hub:/nowhere/at/all", "hub:a@"])
def test_a_dataset_of_the_hub_that_is_not_there_is_refused_by_its_address(address, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=re.escape(address)):
        documents(read_dataset, Path(address))


def test_an_empty_dataset_is_said_to_be_one(tmp_path):
    datasets.Dataset.from_dict({"title": [], "text": []}).save_to_disk(tmp_path / "wiki")
    with pytest.raises(InputError, match="wiki: holds no row"):
        documents(read_dataset, tmp_path / "wiki")


def test_a_dataset_of_several_splits_is_refused_with_the_folder_of_each(tmp_path):
    one = datasets.Dataset.from_dict({"title": ["Pipes"], "text": ["Old."]})
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "wiki")

    with pytest.raises(InputError, match=r"holds several splits; name the folder of one: .*/wiki/train, .*/wiki/test"):
        documents(read_dataset, tmp_path / "wiki")
    assert len(documents(read_dataset, tmp_path / "wiki" / "train")) == 1


def test_a_dataset_without_a_text_is_refused_with_what_it_has(tmp_path):
    datasets.Dataset.from_dict({"title": ["Pipes"], "body": ["Old."]}).save_to_disk(tmp_path / "wiki")

    with pytest.raises(InputError, match="lacks the column 'text'; it has title, body"):
        documents(read_dataset, tmp_path / "wiki")


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_folder_that_datasets_did_not_save_is_refused(tmp_path, content):
    (tmp_path / "wiki").mkdir()
    if content:
        (tmp_path / "wiki" / "state.json").write_text(content)

    with pytest.raises(InputError, match=r"wiki: is not a folder that datasets\.save_to_disk wrote"):
        documents(read_dataset, tmp_path / "wiki")


def test_documents_of_several_parquet_files_have_different_ids(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(pa.table({"title": ["A", "B"], "text": ["x", "y"]}), tmp_path / name)

    ids = [document.id for document in documents(read_parquet, tmp_path)]

    assert len(set(ids)) == len(ids) == 4


def test_a_parquet_file_that_lacks_a_column_is_refused_with_the_columns_it_has(tmp_path):
    pq.write_table(pa.table({"title": ["A"], "body": ["x"]}), tmp_path / "a.parquet")

    with pytest.raises(InputError, match=r"a\.parquet: lacks the column 'text'; it has title, body"):
        documents(read_parquet, tmp_path / "a.parquet")


@pytest.mark.parametrize(("content", "problem"), [(b"PAR1 no", "is not Parquet"), (b"", "is not Parquet")])
def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path, content, problem):
    (tmp_path / "a.parquet").write_bytes(content)

    with pytest.raises(InputError, match=rf"a\.parquet: {problem}"):
        list(parquet_rows(tmp_path / "a.parquet", ()))


def test_a_text_that_is_not_utf8_is_refused_by_its_column(tmp_path):
    text = pa.array([b"Fine.", b"caf\xe9 noir"]).view(pa.string())
    pq.write_table(pa.table({"title": ["A", "B"], "text": text}), tmp_path / "a.parquet")

    with pytest.raises(InputError, match=r"a\.parquet: column 'text': b'caf\\xe9 noir' is not UTF-8: invalid continuation byte"):
        documents(read_parquet, tmp_path / "a.parquet")


def test_a_column_of_another_type_is_refused_by_its_row(tmp_path):
    pq.write_table(pa.table({"title": ["A"], "text": [5]}), tmp_path / "a.parquet")

    with pytest.raises(InputError, match=r"a\.parquet: row 0: has no text 'text'"):
        documents(read_parquet, tmp_path / "a.parquet")


def test_a_folder_of_texts_is_a_document_a_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "Uilleann_pipes.txt").write_text("Old.")
    (tmp_path / "b" / "Kora.md").write_text("# Kora\n\nA harp.\n\n## Use\n\nMuch.")
    (tmp_path / "notes.pdf").write_text("no")

    kora, pipes = sorted(documents(read_text, tmp_path), key=lambda document: document.title)

    assert (pipes.title, pipes.sections()[0].text) == ("Uilleann pipes", "Old.")
    assert [(s.heading, s.text) for s in kora.sections()] == [("Kora", "A harp."), ("Use", "Much.")]


def test_texts_of_one_name_in_different_folders_have_different_ids(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "index.md").write_text("Text.")

    ids = [document.id for document in documents(read_text, tmp_path)]

    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("reader", "name", "problem"),
    [
        (read_jsonl, "gone.jsonl", "No such file"),
        (read_parquet, "gone.parquet", "No such file"),
        (read_text, "gone.txt", "No such file"),
        (read_text, "empty", "holds no .txt or .md file"),
        (read_parquet, "empty", "holds no Parquet file"),
        (read_text, "latin1.txt", "is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, reader, name, problem):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")

    with pytest.raises(InputError) as error:
        documents(reader, tmp_path / name)

    assert name in str(error.value)
    assert problem in str(error.value)


def test_plain_text_is_one_section_without_a_heading():
    assert [(s.heading, s.text) for s in plain_sections("One.\r\n\r\n\r\n\r\nTwo.\n")] == [("", "One.\n\nTwo.")]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_no_word_of_a_plain_text_is_lost(text):
    sections = plain_sections(text)

    kept = " ".join(f"{section.heading} {section.text}" for section in sections if section.text)
    headings = " ".join(section.heading for section in sections)
    assert not set(kept.split()) - set(text.replace("\r\n", "\n").split()) - set(headings.split())
    if "#" not in text and "==" not in text:
        assert kept.split() == text.split()
