from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dialogues.prompts import fill
from pipeline.dialogues.reverse import MAX_ANSWER_TOKENS, reverse_dialogues
from pipeline.languages import load_language
from pipeline.rows.sample import Passage, Section, Source
from pipeline.text.tokens import estimate_tokens

ENGLISH = load_language("en")
LONG = "The pipes are blown with bellows, and the player sits down to play them, as few other pipers do in the world. "


def passage(*sections: tuple[str, str], title: str = "Uilleann pipes", position: int = 0) -> Passage:
    made = tuple(Section(heading, text) for heading, text in sections)
    return Passage(id="p", document_id="d", language="en", title=title, sections=made, source=Source(name="s"), position=position)


def dialogues(of: Passage, seed: int = 7) -> tuple[list, Counter]:
    left_out: Counter[str] = Counter()
    return list(reverse_dialogues(of, ENGLISH, seed, left_out)), left_out


@given(
    st.dictionaries(st.sampled_from("ABCDEFGHIJ"), st.integers(1, 12), max_size=10),
    st.integers(0, 100),
)
def test_every_answer_is_a_section_word_for_word_and_each_section_answers_once(lengths, seed):
    of = passage(*((heading, f"{heading}: {LONG * n}".strip()) for heading, n in lengths.items()))

    made, _ = dialogues(of, seed)

    answers = [m.content for dialogue in made for m in dialogue.messages if m.role == "assistant"]
    assert answers == [section.text for section in of.sections]


def test_turns_alternate_and_are_at_most_three_a_dialogue():
    made, _ = dialogues(passage(*((heading, LONG * 2) for heading in "ABCDEFGHIJKLMNOP")))

    assert {len(dialogue.headings) for dialogue in made} == {1, 2, 3}
    for dialogue in made:
        assert [m.role for m in dialogue.messages] == ["user", "assistant"] * len(dialogue.headings)


def test_the_first_question_names_the_subject_and_every_question_its_section():
    made, _ = dialogues(passage(("", LONG * 2), ("History", LONG * 2), ("Tuning", LONG * 2), ("Players", LONG * 2)))

    for dialogue in made:
        questions = [m.content for m in dialogue.messages if m.role == "user"]
        assert "Uilleann pipes" in questions[0]
        assert all(heading in question for heading, question in zip(dialogue.headings, questions, strict=True))
        assert not any("{" in question for question in questions)


def test_one_seed_gives_one_result_and_another_seed_another():
    of = passage(*((heading, LONG * 2) for heading in "ABCDEFGH"))

    assert dialogues(of, 7) == dialogues(of, 7)
    assert dialogues(of, 7) != dialogues(of, 8)


@pytest.mark.parametrize(
    ("sections", "position", "reason"),
    [
        ((("A", "Short."),), 0, "section_too_short"),
        ((("A", "\n".join(f"- {LONG}" for _ in range(5))),), 0, "section_is_a_list"),
        ((("", LONG * 3),), 1, "section_without_heading"),
        ((("A", "They are the following:"),), 0, "section_too_short"),
    ],
)
def test_a_section_that_cannot_answer_is_left_out_and_counted(sections, position, reason):
    made, left_out = dialogues(passage(*sections, position=position))

    assert made == []
    assert left_out == {reason: 1}


def test_a_long_section_is_cut_at_a_paragraphs_end():
    text = "\n\n".join(f"Paragraph {number}. {LONG * 4}".strip() for number in range(30))

    ((dialogue,), left_out) = dialogues(passage(("A", text)))

    answer = dialogue.messages[1].content
    assert text.startswith(answer + "\n\n")
    assert estimate_tokens(answer) <= MAX_ANSWER_TOKENS + 10
    assert left_out["section_cut"] == 1


def test_an_answer_does_not_end_by_announcing_what_was_cut():
    text = f"{LONG * 3}\n\nThe makers are:"

    ((dialogue,), _) = dialogues(passage(("A", text)))

    assert dialogue.messages[1].content == LONG * 3


@given(st.text(max_size=30), st.text(max_size=30))
def test_braces_in_a_value_stay_what_they_are(title, section):
    slots = {"title": title, "section": section}

    assert fill("«{title}»: {section}, {other}", slots) == f"«{title}»: {section}, {{other}}"


def test_a_value_that_looks_like_a_slot_is_not_filled():
    assert fill("{title} / {section}", {"title": "{section}", "section": "{title}"}) == "{section} / {title}"
