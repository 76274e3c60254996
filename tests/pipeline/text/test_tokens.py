import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.tokens import estimate_all_tokens, estimate_tokens


def test_no_text_is_no_token_and_any_text_at_least_one():
    assert [estimate_tokens(text) for text in ("", "a", " ", "字")] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("The quick brown fox jumps over the lazy dog. " * 20, 180, 270),  # 45 characters, 10 tokens each time
        ("Съешь же ещё этих мягких французских булок. " * 20, 220, 340),
        ("我能吞下玻璃而不伤身体。" * 20, 110, 170),
    ],
)
def test_the_estimate_is_near_what_a_multilingual_tokenizer_makes(text, low, high):
    assert low <= estimate_tokens(text) <= high


def test_a_character_counts_for_more_in_chinese_than_in_russian_than_in_english():
    assert estimate_tokens("中" * 100) > estimate_tokens("ж" * 100) > estimate_tokens("x" * 100)


@given(st.text(max_size=200))
def test_every_character_counts_once(text):
    assert round(0.26 * len(text)) <= max(estimate_tokens(text), 0) <= max(1, round(0.56 * len(text)))


@given(st.text(max_size=100), st.text(max_size=100))
def test_more_text_is_never_fewer_tokens(text, more):
    assert estimate_tokens(text + more) >= estimate_tokens(text)


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=12), st.integers(0, 12))
def test_all_at_once_the_estimates_are_those_of_each(texts, first):
    expected = [estimate_tokens(text or "") for text in texts[first:]]

    assert estimate_all_tokens(pa.array(texts, pa.string()).slice(first)).tolist() == expected
    assert estimate_all_tokens(pa.array([text and text.encode() for text in texts], pa.binary())[first:]).tolist() == expected


def test_all_at_once_every_letter_of_unicode_counts_as_it_does_alone():
    letters = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = ["".join(letters[start : start + 997]) for start in range(0, len(letters), 997)]

    assert estimate_all_tokens(pa.array(texts)).tolist() == [estimate_tokens(text) for text in texts]
