import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.exact import first_of_equal, letter_sums, normalise
from pipeline.clean.shingles import code_points

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=20)
SAME = [
    ("Why?", "why?", "en"),
    ("Why  not?\n", "Why not?", "en"),
    ("Straße", "STRASSE", "de"),
    ("café", "cafe\u0301", "fr"),
    ("３+４", "3+4", "zh"),
    ("崑曲", "昆曲", "zh"),
    ("Où\u00a0?", "Où ?", "fr"),
]


@pytest.mark.parametrize(("one", "other", "language"), SAME)
def test_form_case_space_and_chinese_script_do_not_tell_texts_apart(one, other, language):
    assert normalise(one, language) == normalise(other, language)


def test_what_is_one_letter_in_chinese_may_be_two_elsewhere():
    assert normalise("崑曲", "ja") != normalise("昆曲", "ja")


@given(TEXT)
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text, "en")

    assert normalise(once, "en") in {once, normalise(unicodedata.normalize("NFKC", once), "en")}


@pytest.mark.parametrize(("one", "other", "language"), SAME)
def test_texts_that_are_normalised_to_one_have_one_sum(one, other, language):
    first, second = letter_sums(*code_points(pa.array([one, other])))

    assert first == second


@given(
    TEXT, st.sampled_from([str, str.upper, str.title, lambda text: f" {text}\n", lambda text: unicodedata.normalize("NFC", text)])
)
def test_however_a_text_is_written_its_sum_is_the_same(text, rewritten):
    other = rewritten(text)
    first, second = letter_sums(*code_points(pa.array([text, other])))

    assert first == second or normalise(text, "zh") != normalise(other, "zh")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.binary(min_size=2, max_size=2).map(lambda key: key[:1] * 2), st.integers()), max_size=30))
def test_the_first_of_equal_ones_is_that_of_the_lowest_rank(tmp_path_factory, rows):
    rank = np.argsort(np.argsort([number for _, number in rows], kind="stable"), kind="stable").astype(np.int64)
    keys = np.array([key for key, _ in rows], dtype="V2")

    found = first_of_equal(keys, rank, tmp_path_factory.mktemp("work"))

    expected = [min((other for other, (own, _) in enumerate(rows) if own == key), key=lambda n: rank[n]) for key, _ in rows]
    assert found.tolist() == expected
