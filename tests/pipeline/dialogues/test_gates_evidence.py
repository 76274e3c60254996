"""What a passage holds: sentences, words in their forms, names and numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dialogues.evidence import Evidence, alike, content_words, names, numbers, ordered_share
from pipeline.text.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Elisha J. King wrote it. St. Paul heard it.", ["Elisha J. King wrote it.", "St. Paul heard it."]),
        ("It cost 3.5 pounds in all. He paid.", ["It cost 3.5 pounds in all.", "He paid."]),
        ("«Где?» — спросил он. Никто не ответил.", ["«Где?» — спросил он.", "Никто не ответил."]),
        ("京剧是戏曲。他问：“谁？”没有人回答。", ["京剧是戏曲。", "他问：“谁？”没有人回答。"]),
        ("A heading\nA sentence", ["A heading", "A sentence"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text())
def test_cutting_into_sentences_loses_nothing(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_rare_words_are_pairs_of_characters_where_words_are_not_spaced() -> None:
    assert content_words("The dancer's two pavlovas", {"the", "two"}) == ["dancer", "pavlovas"]
    assert content_words("京剧的脸谱", {"的"}) == ["京剧", "脸谱"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 926 habitants", ["1926"]),
        ("1,926 people, 3.5 %", ["1926", "3.5"]),
        ("3,5 км и 1.250.000", ["3.5", "1250000"]),
        ("1922–26, the 1920s", ["1922", "26", "1920"]),
        ("１９世纪", ["19"]),
    ],
)
def test_numbers_are_compared_without_separators(text: str, expected: list[str]) -> None:
    assert numbers(text) == expected


def test_names_have_a_capital_inside_a_sentence() -> None:
    assert names("Singers met Anna in Georgia. They were from Ohio.", {"they"}) == ["anna", "georgia", "ohio"]
    assert names("他在UNESCO工作", set()) == ["unesco"]
    assert names("UNESCO在巴黎。1945.", set()) == []


@pytest.mark.parametrize(
    ("one", "other"), [("самовары", "самовара"), ("книга", "книгами"), ("sirven", "sirve"), ("chanteur", "chanteurs")]
)
def test_forms_of_one_word_are_alike(one: str, other: str) -> None:
    assert alike(one, other) and alike(other, one)


@pytest.mark.parametrize(("one", "other"), [("pavlova", "pavement"), ("tea", "ten"), ("internet", "intonation"), ("мост", "море")])
def test_other_words_are_not(one: str, other: str) -> None:
    assert not alike(one, other)


def test_a_share_counts_forms_and_ignores_function_words() -> None:
    passage = Evidence("Самовары делали в Туле.", {"в", "из"})
    assert passage.share("в самоваре из Тулы") == 1.0
    assert passage.share("самовар из серебра") == 0.5
    assert passage.share("в из") == 1.0


@given(st.lists(st.sampled_from(["singer", "paints", "square", "music"])))
def test_everything_is_in_its_own_order(words: list[str]) -> None:
    assert ordered_share(words, words) == 1.0


def test_who_did_what_to_whom_is_in_the_order() -> None:
    assert ordered_share(["white", "compiled", "king"], ["king", "compiled", "white"]) == pytest.approx(1 / 3)
