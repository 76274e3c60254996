from dataclasses import FrozenInstanceError, asdict, replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import content_hash
from pipeline.rows.sample import (
    DROPPED_SCHEMA,
    PASSAGE_SCHEMA,
    SAMPLE_SCHEMA,
    Decision,
    Dropped,
    Message,
    Passage,
    Sample,
    Section,
    Source,
    drop,
    passage_from_row,
    rows_to_table,
    sample_from_row,
    sample_id,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SOURCES = st.builds(Source, name=TEXT, title=TEXT, revision=TEXT, url=TEXT, licence=TEXT)
TURNS = st.lists(st.builds(Message, st.sampled_from(["user", "assistant", "system"]), TEXT), max_size=4)
SAMPLES = st.builds(
    Sample,
    id=TEXT,
    language=st.sampled_from(["en", "zh"]),
    task=st.sampled_from(["math", "code"]),
    messages=TURNS.map(tuple),
    mode=TEXT,
    group_id=TEXT,
    source=SOURCES,
    parent_ids=st.lists(TEXT, max_size=2).map(tuple),
    request_keys=st.lists(TEXT, max_size=2).map(tuple),
    decisions=st.lists(st.builds(Decision, TEXT, TEXT), max_size=2).map(tuple),
)
PASSAGES = st.builds(
    Passage,
    id=TEXT,
    document_id=TEXT,
    language=TEXT,
    title=TEXT,
    sections=st.lists(st.builds(Section, TEXT, TEXT), max_size=3).map(tuple),
    source=SOURCES,
    position=st.integers(0, 2**31 - 1),
)


@given(SAMPLES)
def test_a_sample_comes_back_from_arrow_as_it_went(row):
    table = pa.Table.from_pylist([asdict(row)], schema=SAMPLE_SCHEMA)

    assert sample_from_row(table.to_pylist()[0]) == row


@given(PASSAGES)
def test_a_passage_comes_back_from_arrow_as_it_went(passage):
    table = pa.Table.from_pylist([asdict(passage)], schema=PASSAGE_SCHEMA)

    assert passage_from_row(table.to_pylist()[0]) == passage


@pytest.mark.parametrize(("rows", "schema"), [(SAMPLES, SAMPLE_SCHEMA), (PASSAGES, PASSAGE_SCHEMA)], ids=["samples", "passages"])
@given(st.data())
def test_rows_become_the_table_that_arrow_makes_of_them_one_by_one(rows, schema, data):
    given_rows = data.draw(st.lists(rows, max_size=5))

    found = rows_to_table(given_rows, schema)

    found.validate(full=True)
    assert found.schema.equals(schema)
    assert found.equals(pa.Table.from_pylist([asdict(row) for row in given_rows], schema=schema))


@given(SAMPLES)
def test_a_dropped_sample_keeps_all_its_columns_beside_its_reason(row):
    table = pa.Table.from_pylist([drop(row, "dull", partner_id="p").to_row("rules")], schema=DROPPED_SCHEMA)

    (dropped,) = table.to_pylist()
    assert sample_from_row(dropped) == row
    assert (dropped["stage"], dropped["reason"], dropped["partner_id"]) == ("rules", "dull", "p")


def test_a_dropped_page_is_a_row_with_its_source_and_no_messages():
    page = Dropped(id="enwiki-7", reason="list_page", language="en", source=Source(name="Wikipedia", title="List of lists"))

    (row,) = pa.Table.from_pylist([page.to_row("passages-en")], schema=DROPPED_SCHEMA).to_pylist()

    assert (row["id"], row["reason"], row["source"]["title"], row["messages"]) == ("enwiki-7", "list_page", "List of lists", [])


@given(TURNS, TURNS)
def test_two_conversations_have_one_id_only_when_they_are_equal(one, other):
    assert (sample_id("en", "math", one, ["p"]) == sample_id("en", "math", other, ["p"])) == (one == other)


@pytest.mark.parametrize(
    "other", [("fr", "math", ["p"]), ("en", "code", ["p"]), ("en", "math", ["q"]), ("en", "math", ["p", "p"]), ("en", "math", [])]
)
def test_language_task_and_parents_are_part_of_an_id(other):
    turns = [Message("user", "2 + 2?"), Message("assistant", "4")]
    language, task, parents = other

    assert sample_id("en", "math", turns, ["p"]) != sample_id(language, task, turns, parents)


def test_an_id_is_the_same_on_every_machine():
    assert sample_id("fr", "math", [Message("user", "Où ?"), Message("assistant", "Là.")], ["p"]) == "0f81972d77d31fea7a3d"


def test_the_parts_of_a_hash_are_not_just_joined():
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert len(content_hash("a", digits=16)) == 16


def test_a_row_is_changed_by_making_another(sample):
    row = sample("Why?", "Because.")

    with pytest.raises(FrozenInstanceError):
        row.language = "fr"
    assert replace(row, language="fr").language == "fr"


@pytest.mark.parametrize(
    ("turns", "answer"), [(("a?", "b.", "c?", "d."), "d."), (("a?", "b.", "c?"), "b."), (("a?",), ""), ((), "")]
)
def test_the_answer_is_the_last_assistant_turn(sample, turns, answer):
    assert sample(*turns).answer == answer


def test_a_passages_text_has_its_headings_between_empty_lines():
    sections = (Section("", "Lead."), Section("History", "Old.\n\nNew."))
    passage = Passage(id="p", document_id="d", language="en", title="T", sections=sections, source=Source(name="s"))

    assert passage.text == "Lead.\n\nHistory\n\nOld.\n\nNew."
