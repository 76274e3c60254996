"""Numbers, URLs and code: what two texts of one meaning share, however their languages write it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.facts import contradict, facts, numbers, shared_numbers

ALPHABET = st.text(st.sampled_from("0123456789.,:万亿 `\n#\"'aIVX٣२½²/-") | st.characters(), max_size=60)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,250.5", [1250.5]),
        ("1 250,5", [1250.5]),
        ("1\u202f250\u00a0000", [1_250_000]),
        ("1.250.000", [1_250_000]),
        ("6600万", [66_000_000]),
        ("1.1亿", [110_000_000]),
        ("１２", [12]),
        ("٣٥", [35]),
        ("17:30", [17, 30]),
        ("17:00", [17]),
        (".5", [0.5]),
        ("Louis XIV", [14]),
        ("IV and X", [4]),
        ("in 2019 300 people", [2019, 300]),
        ("none", []),
    ],
)
def test_what_a_number_is_worth(text, found):
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is 1,250.5 m.", "Cela fait 1 250,5 m."),
        ("66 million people", "6600万人"),
        ("1.4 billion people", "14亿人"),
        ("0.7 million", "700,000 habitants"),
        ("It begins at 5 pm.", "Cela commence à 17 h."),
        ("in the 1980s", "80年代"),
        ("in the 1700s", "au XVIIIe siècle, le XVIII"),
        ("It has 3 wheels.", "Il a trois roues."),
        ("a thousand lakes", "1000 lacs"),
        ("See https://example.org/a.", "Voir https://example.org/a !"),
        ("See https://example.org/a.", "Voir le site."),
        ("```py\nx = 1  # one\n```", "```py\nx = 1  # un\n```"),
        ("Page 7. Page 7 again.", "Page 7, encore."),
        ("", "Rien."),
    ],
)
def test_what_languages_write_in_their_own_way_is_no_contradiction(one, other):
    assert contradict(facts(one), facts(other)) is None


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("It costs 35 coins.", "Cela coûte 25 pièces.", "numbers"),
        ("Built in 1950.", "Construit.", "numbers"),
        ("https://example.org/a", "https://example.org/b", "urls"),
        ("```py\nx = 1\n```", "```py\nx = 2\n```", "code"),
        ("```py\nx = 1\n```", "```js\nx = 1\n```", "code"),
        ("```py\nx = 1\n```", "x = un", "code"),
    ],
)
def test_what_differs_is_named(one, other, what):
    assert contradict(facts(one), facts(other)) == what


@given(st.integers(1, 9_999), st.sampled_from([10, 100, 1000]), st.sampled_from([("thousand", 3), ("million", 6), ("billion", 9)]))
def test_a_number_with_its_unit_spelt_out_is_the_number_in_digits(value, parts, unit):
    name, power = unit

    assert contradict(facts(f"{value / parts} {name}"), facts(f"{value * 10**power // parts:,}")) is None


@given(st.integers(10_000, 10**12))
def test_thousands_are_divided_in_any_way(value):
    written = f"{value:,}"

    assert [numbers(written.replace(",", mark)) for mark in (",", ".", " ", "\u202f", "")] == [[value]] * 5


@given(ALPHABET)
def test_any_text_has_numbers_and_does_not_contradict_itself(text):
    assert all(isinstance(number, float) for number in numbers(text))
    assert contradict(facts(text), facts(text)) is None


@given(ALPHABET, ALPHABET)
def test_a_contradiction_is_one_from_both_sides(one, other):
    assert contradict(facts(one), facts(other)) == contradict(facts(other), facts(one))


NUMBERS = st.lists(st.sampled_from([3, 5, 17, 80, 500, 1700, 1718, 1980, 50_000, 5_000_000]), max_size=8)


@given(NUMBERS, NUMBERS)
def test_it_is_one_from_both_sides_where_many_numbers_could_be_each_other(one, other):
    a, b = (facts(" and ".join(map(str, given_))) for given_ in (one, other))

    assert contradict(a, b) == contradict(b, a)
    assert shared_numbers(a.numbers, b.numbers) <= len(one)


@pytest.mark.parametrize("text", ["1:" + "2" * 5000, "9" * 500, "9" * 5000 + "亿", "0." + "0" * 5000 + "1"])
def test_a_number_of_any_length_is_a_number(text):
    assert numbers(text)


@pytest.mark.parametrize(
    "text",
    [
        "`" * 300_000,
        "```" + "a" * 300_000,
        "``` " * 100_000,
        "```\n" * 100_001,
        "\"'" * 200_000,
        "1." * 200_000,
        "1 " + "234 " * 100_000,
    ],
    ids=lambda text: text[:4] + "…",
)
def test_odd_texts_are_read_in_no_time(text):
    started = time.process_time()

    facts(text)

    assert time.process_time() - started < 3


def test_tables_of_numbers_are_compared_in_no_time():
    one, other = (facts(" ".join(f"{number}.{end}" for number in range(1000, 7000))) for end in (17, 29))
    started = time.process_time()

    assert contradict(one, other) == "numbers"
    assert time.process_time() - started < 3


def test_numbers_in_code_and_urls_do_not_count():
    assert not facts("See https://example.org/2019/05 and\n```py\nx = 17\n```\n").numbers
