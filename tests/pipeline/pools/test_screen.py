import pytest

from pipeline.pools.screen import culture_bound


@pytest.mark.parametrize(
    ("question", "criterion"),
    [
        ("Emily Watson has 36 marbles. How many are left?", "proper_name"),
        ("How far is it from London to Edinburgh?", "proper_name"),
        ("A coffee at Starbucks costs 4 dollars.", "proper_name"),
        ("Could you ask Maria?", "proper_name"),
        ("Write a haiku about rain.", "verse_or_joke"),
        ("Explain this pun to me.", "verse_or_joke"),
        ("How do families celebrate christmas?", "belief_or_politics"),
        ("Who can become prime minister?", "belief_or_politics"),
        ("How much tipping is usual?", "convention"),
        ("Is tipping polite?", "convention"),
    ],
)
def test_what_is_bound_to_a_culture_is_named_by_its_criterion(sample, question, criterion):
    assert culture_bound(sample(question, "An answer.").messages) == criterion


@pytest.mark.parametrize(
    "question",
    [
        "Why does the sky look blue?",
        "What is 2 + 2? Explain.",
        "I think I'm right. Am I?",
        "On Monday in March, how long is the day on Earth?",
        "Write a Python function that parses JSON and calls NumPy or getElementById.",
        "How is DNA copied?",
        "Translate from English to French: good day.",
        '"Water boils." True or False?',
        "Steps:\n- Mix\n- Bake\n* Serve",
        "Use `Maria = 3` and ```python\nclass Paris: ...\n``` in it.",
        "",
    ],
)
def test_what_is_said_everywhere_is_not(sample, question):
    assert culture_bound(sample(question, "An answer.").messages) is None


def test_only_the_users_turns_are_looked_at(sample):
    assert culture_bound(sample("Why is it so?", "As Newton wrote in London on Christmas.").messages) is None


def test_every_turn_of_the_user_is_looked_at(sample):
    assert culture_bound(sample("Why is it so?", "So.", "And in Lima?", "There too.").messages) == "proper_name"
