from dataclasses import replace

import pytest

from pipeline.clean.rules import row_rules
from pipeline.clean.steps import rules_step
from pipeline.recipe import parse_recipe
from pipeline.rows.sample import Message

RECIPE = parse_recipe(
    {"name": "p", "languages": ["en", "fr", "zh"], "agnostic": {"math": {"path": "p.jsonl", "budget": {"en": "all"}}}}
)
GOOD = "The bridge was built in the nineteenth century by the people of the town."


def fault(row):
    """The first rule's `(reason, detail)` for a row, or None."""
    return next((found for rule in row_rules(("en", "fr", "zh"), 10) if (found := rule(row))), None)


def reason(row):
    found = fault(row)
    return found and found[0]


@pytest.mark.parametrize(
    ("answer", "task"),
    [
        (GOOD, "chat_agnostic"),
        ("This is a list:\n- one\n- two", "chat_agnostic"),
        ("Steps follow.\n1. mix\n2. bake", "chat_agnostic"),
        ("So the sum is this.\n#### 12", "math"),
        ("So the sum is $x = 4$", "math"),
        ("The result is 42", "math"),
        ("42", "math"),
        ("```python\nx = 1\n```", "code"),
        ("SELECT name FROM users", "code"),
        ("He said: “It is done.”", "chat_agnostic"),
    ],
)
def test_a_good_answer_passes_every_rule(sample, answer, task):
    assert fault(sample("How is it done?", answer, task=task)) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", "answer_empty"),
        (" \n ", "answer_empty"),
        ("Yes.", "answer_too_short"),
        ("I'm sorry, but as an AI language model I cannot help with this.", "answer_refuses"),
        ("Switch off the lights when you leave. " * 3, "answer_repeats_itself"),
        ("The bridge was built in the nineteenth century by the", "answer_breaks_off"),
        ("Here it is:\n```python\nx = 1", "answer_breaks_off"),
        ("Le pont a été construit au dix-neuvième siècle par les habitants.", "answer_in_other_language"),
    ],
)
def test_an_answer_that_is_none_has_its_reason(sample, answer, expected):
    assert reason(sample("How was it built?", answer)) == expected


@pytest.mark.parametrize(
    "roles",
    [
        [],
        ["assistant"],
        ["user"],
        ["user", "user"],
        ["user", "assistant", "user"],
        ["assistant", "user"],
        ["user", "assistant"] * 2 + ["assistant"],
        ["user", "system", "assistant"],
        ["system"],
    ],
)
def test_turns_that_do_not_alternate_are_named(sample, roles):
    row = replace(sample("Q?", GOOD), messages=tuple(Message(role, GOOD) for role in roles))

    assert reason(row) == "turns_do_not_alternate"


def test_a_system_turn_may_come_first(sample):
    row = sample("How is it done?", GOOD)

    assert fault(replace(row, messages=(Message("system", "Be kind."), *row.messages))) is None


def test_an_empty_question_is_named(sample):
    assert reason(sample(" ", GOOD)) == "question_empty"


def test_every_turn_is_looked_at_and_the_faulty_one_is_named(sample):
    row = sample("How?", GOOD, "Et quand le pont a-t-il été construit par les habitants du village ?", GOOD)

    assert fault(row) == ("question_in_other_language", "turn 3 is in fr (1.00)")


def test_an_answer_half_in_another_language_leaves_and_one_that_quotes_stays(sample):
    french = "Le pont a été construit au dix-neuvième siècle par les habitants. On le voit encore aujourd'hui depuis la route. "
    more = "Chaque printemps, les enfants du village y jettent des fleurs dans la rivière. "

    assert reason(sample("Et alors ?", f"{french}{GOOD} It can be seen from the road even today.", language="fr")) in {
        "answer_mixes_languages",
        "answer_in_other_language",
    }
    assert fault(sample("Et alors ?", f"{french}{more}{GOOD}", language="fr")) is None


def test_a_row_in_a_language_that_says_it_is_french_is_held_to_french(sample):
    french = "Le pont a été construit au dix-neuvième siècle par les habitants."

    assert fault(sample("Quand ?", french, language="fr")) is None
    assert reason(sample("Quand ?", GOOD, language="fr")) == "answer_in_other_language"


def test_foreign_code_in_an_answer_does_not_make_it_foreign(sample):
    answer = "Voici la fonction :\n```python\ndef add(first, second):\n    return first + second  # the sum of both\n```"

    assert fault(sample("Écris une fonction.", answer, language="fr", task="code")) is None


def test_a_short_refrain_is_no_loop(sample):
    assert fault(sample("How?", "It is 2. It is 2. It is 2. " + GOOD)) is None


def test_the_step_keeps_what_is_good_and_says_why_the_rest_left(sample, run_over):
    rows = [sample("How is it done?", GOOD, title="good"), sample("How is it done?", "", title="empty")]

    outcome = run_over(lambda given: rules_step(RECIPE, (given,)), rows)

    assert [row.source.title for row in outcome.kept] == ["good"]
    assert outcome.kept[0].decisions[-1].stage == "rules"
    assert outcome.reasons == {"empty": "answer_empty"}
