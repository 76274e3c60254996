"""What a very small teacher says about one sentence, held against that sentence. The examples are SmolLM2's own."""

from __future__ import annotations

from random import Random

import pytest

from pipeline.dialogues.small_teacher import MAX_ATTEMPTS, SmallTeacherPrompts
from pipeline.languages import load_language
from pipeline.rows.sample import Message, Passage, Section, Source

PROMPTS = SmallTeacherPrompts(load_language("en"))


def passage(title: str, *sections: str) -> Passage:
    made = tuple(Section(f"Section {i}" if i else "", text) for i, text in enumerate(sections))
    return Passage(id="p", document_id="d", language="en", title=title, sections=made, source=Source(name="test"))


def verdict(title: str, sentence: str, question: str, answer: str) -> str | None:
    """The reason of the attempt whose opening the question has; None where both pass."""
    word = question.split(maxsplit=1)[0]
    for seed in range(9):
        for attempt in PROMPTS.attempts(passage(title, sentence), "question", (), Random(seed)):
            if f'"{word} "' in attempt.question.parameters["grammar"]:
                return attempt.question_fault(question) or attempt.answer_fault(question, answer)
    return "not_asked"


HARP = (
    "The Sacred Harp was compiled in Georgia by Benjamin Franklin White and Elisha J. King, who mixed older pieces with folk hymns."
)
ROOFS = "The roofs of the Sydney Opera House are covered with more than a million glazed tiles made in Sweden."
OPENED = "Queen Elizabeth II opened the Sydney Opera House on 20 October 1973."
CLUES = "A cryptic crossword is a crossword in which every clue is a small word puzzle in its own right."


@pytest.mark.parametrize(
    ("title", "sentence", "question", "answer", "reason"),
    [
        (
            "Sacred Harp",
            HARP,
            "Who compiled the Sacred Harp?",
            "Benjamin Franklin White and Elisha J. King compiled the Sacred Harp in Georgia from older pieces.",
            None,
        ),
        (
            "Pavlova (dessert)",
            "A pavlova is a dessert with a base of baked meringue, covered with whipped cream and fresh fruit.",
            "What is a pavlova?",
            "A pavlova is a dessert with a base of baked meringue, covered with whipped cream and fresh fruit.",
            None,
        ),
        (
            "Cryptic crossword",
            CLUES,
            "What is a cryptic crossword?",
            "A cryptic crossword is a crossword in which every clue is a small word puzzle, designed to mislead the solver.",
            "answer_beyond_sentence",
        ),
        ("Cryptic crossword", CLUES, "What is a puzzle?", "", "question_without_subject"),
        ("Cryptic crossword", CLUES, "What is the right of a cryptic crossword clue it has?", "", "question_dangling"),
        ("Cryptic crossword", CLUES, "Why is a cryptic crossword so hard?", "", "not_asked"),
        (
            "Sydney Opera House",
            ROOFS,
            "What is the Sydney Opera House made of?",
            "The Sydney Opera House is made of more than a million glazed tiles made in Sweden.",
            "answer_leaves_out",
        ),
        ("Sydney Opera House", ROOFS, "What is the Sydney Opera House?", "", "question_beyond_sentence"),
        (
            "Sacred Harp",
            "The roots of Sacred Harp lie in New England, where traveling teachers taught people to read music.",
            "Who taught people Sacred Harp?",
            "The roots of Sacred Harp lie in New England, where traveling teachers taught people to read music.",
            "answer_off_question",
        ),
        (
            "Croquet",
            "Croquet was brought to London from Ireland by the merchant John Jaques in the 1850s.",
            "Who did bring croquet to London?",
            "Croquet was brought to London from Ireland by the merchant John Jaques in the 1850s.",
            None,
        ),
        (
            "Malgudi",
            "Critics have compared Malgudi with William Faulkner's Yoknapatawpha County.",
            "What is the Malgudi of William Faulkner's Yoknapatawpha County?",
            "Critics have compared Malgudi with William Faulkner's Yoknapatawpha County.",
            "answer_off_question",
        ),
        ("Sydney Opera House", OPENED, "Where was the Sydney Opera House built?", "", "not_asked"),
        (
            "Uilleann pipes",
            "The society Na Píobairí Uilleann, founded in 1968, teaches and promotes the uilleann pipes.",
            "Who founded the society of the uilleann pipes?",
            "The society was founded in 1968.",
            "answer_off_question",
        ),
        (
            "Croquet",
            "Croquet is not played in winter because the lawn of the club is closed.",
            "Why is croquet played in winter?",
            "Croquet is played in winter because the lawn of the club is closed.",
            "answer_beyond_sentence",
        ),
    ],
)
def test_an_answer_is_held_to_its_sentence(title: str, sentence: str, question: str, answer: str, reason: str | None) -> None:
    assert verdict(title, sentence, question, answer) == reason


def test_sentences_that_lean_on_others_are_not_asked_about() -> None:
    leaning = "It is the setting of most of his novels and stories. They were all of them written in English for a newspaper."
    assert not list(PROMPTS.attempts(passage("Malgudi", leaning), "question", (), Random(1)))


def test_depth_stays_in_the_section_and_width_leaves_it() -> None:
    here, also_here = (
        "Croquet is played on a lawn with mallets and balls.",
        "Croquet balls are struck through hoops by the players.",
    )
    elsewhere = "Croquet clubs in England hold their tournaments in the summer."
    both = passage("Croquet", f"{here} {also_here}", elsewhere)
    turns = (Message("user", "What is croquet played on?"), Message("assistant", here))
    shown = {
        kind: {attempt.question.messages[-1].content for attempt in PROMPTS.attempts(both, kind, turns, Random(1))}
        for kind in ("depth", "width")
    }
    assert shown == {"depth": {f"Croquet: {also_here}"}, "width": {f"Croquet: {elsewhere}"}}


def test_attempts_are_few_and_the_same_for_the_same_draw() -> None:
    text = " ".join(f"Croquet in town {n} is played with mallets by Anna Smith since 190{n} because of its lawn." for n in range(9))
    one, two = (
        [attempt.question for attempt in PROMPTS.attempts(passage("Croquet", text), "question", (), Random(5))] for _ in range(2)
    )
    assert one == two and len(one) == MAX_ATTEMPTS["question"]
