import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.exact import exact_duplicate_stage, normalise, normalised_hash

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=20)


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [
        ("Why?", "why?", "en"),
        ("Why  not?\n", "Why not?", "en"),
        ("Straße", "STRASSE", "de"),
        ("café", "cafe\u0301", "fr"),
        ("３+４", "3+4", "zh"),
        ("崑曲", "昆曲", "zh"),
        ("Où\u00a0?", "Où ?", "fr"),
    ],
)
def test_form_case_space_and_chinese_script_do_not_tell_rows_apart(sample, one, other, language):
    assert normalised_hash(sample(one, "A.", language=language)) == normalised_hash(sample(other, "A.", language=language))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("ab",)),
        (("a b", "c"), ("a", "b c")),
        (("2 + 2?", "4"), ("2 + 3?", "4")),
        (("a",), ("a", "")),
        (("", ""), ("",)),
    ],
)
def test_different_turns_are_different_rows(sample, one, other):
    assert normalised_hash(sample(*one)) != normalised_hash(sample(*other))


def test_language_and_task_tell_rows_apart(sample):
    row = sample("2 + 2?", "4", task="math")

    assert len({normalised_hash(r) for r in (row, replace(row, language="fr"), replace(row, task="code"))}) == 3


def test_the_first_row_stays_and_the_others_name_it(sample, run_over):
    rows = [sample("Why?", "So.", title=title) for title in ("first", "second", "third")]

    outcome = run_over(exact_duplicate_stage, [sample("Other?", "So."), *rows])

    assert [row.source.title for row in outcome.kept] == ["row", "first"]
    assert [(row["reason"], row["partner_id"]) for row in outcome.dropped] == [("exact_duplicate", rows[0].id)] * 2


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["", "a", "A ", "字", "字 ", "ж", "ﬁ", "fi", "x" * 3000, "长" * 3000, "👍", "1"]), max_size=12))
def test_duplicates_of_any_length_and_script_are_found_and_nothing_else_is_lost(sample, run_over, texts):
    rows = [sample(text, text, language="zh", title=f"{number}") for number, text in enumerate(texts)]

    outcome = run_over(exact_duplicate_stage, rows)

    seen: set[str] = set()
    expected = [t for t in texts if normalise(t, "zh") not in seen and not seen.add(normalise(t, "zh"))]
    assert [row.messages[0].content for row in outcome.kept] == expected
    assert outcome.report.rows_in == len(rows)


@given(TEXT)
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text, "en")

    assert normalise(once, "en") in {once, normalise(unicodedata.normalize("NFKC", once), "en")}


def test_no_row_is_no_problem(run_over):
    assert run_over(exact_duplicate_stage, []).report.rows_in == 0
