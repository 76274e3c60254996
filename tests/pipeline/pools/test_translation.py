import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pools.translation import translation_fault


def fault_of(original, translation):
    return translation_fault(original.messages, translation.messages)


@pytest.mark.parametrize(
    ("original", "translation"),
    [
        ("It is 4.5 metres.", "Cela fait 4,5 mètres."),
        ("There are 1,250,000 people.", "Il y a 1 250 000 personnes."),
        ("There are 1,250,000 people.", "Hay 1.250.000 personas."),
        ("There are 12500 people.", "Hay 12 500 personas."),
        ("First 3, then 5.", "D'abord 5, puis 3."),
        ("So $x^2 = 4$ holds.", "Donc $x^2 = 4$ est vrai."),
        ("```python\n# add\nprint('Hello')\n```", "```python\n# ajouter\nprint('Bonjour')\n```"),
        ("```sql\nSELECT a -- the name\n```", "```sql\nSELECT a -- le nom\n```"),
        ("Thus.\n#### 12", "Donc.\n#### 12"),
        ("Thus.\n#### 1,200", "Donc.\n#### 1200"),
        ("No number.", "没有数字。"),
    ],
)
def test_what_a_faithful_translation_may_change(sample, original, translation):
    assert fault_of(sample("Q?", original), sample("Q ?", translation, language="fr")) is None


@pytest.mark.parametrize(
    ("original", "translation", "reason"),
    [
        ("It costs 35 coins.", "Cela coûte 25 pièces.", "translation_numbers_differ"),
        ("It costs 35 coins.", "Cela coûte des pièces.", "translation_numbers_differ"),
        ("35 and 35.", "35.", "translation_numbers_differ"),
        ("It is 4.5.", "C'est 45.", "translation_numbers_differ"),
        ("Thus.\n#### 12", "Donc.\n#### 13", "translation_result_differs"),
        ("Thus.\n#### 12", "Donc. 12", "translation_result_differs"),
        ("So $x^2$.", "Donc $x^3$.", "translation_latex_differs"),
        ("```python\nx = 1\n```", "```python\nx = 2\n```", "translation_code_differs"),
        ("```python\nx = 1\n```", "```\nx = 1\n```", "translation_code_differs"),
        ("```python\nx = 1\n```", "x = 1", "translation_code_differs"),
    ],
)
def test_what_a_translation_must_keep(sample, original, translation, reason):
    fault = fault_of(sample("Q?", original), sample("Q ?", translation, language="fr"))

    assert fault is not None
    assert fault[0] == reason


def test_a_translation_has_the_turns_of_its_original(sample):
    fault = fault_of(sample("Q?", "A."), sample("Q ?", "R.", "Et ?", "R."))

    assert fault == ("translation_turns_differ", "2 turns, 4 translated")


def test_the_question_counts_too(sample):
    fault = fault_of(sample("7 apples?", "Yes."), sample("8 pommes ?", "Oui."))

    assert fault is not None
    assert fault[0] == "translation_numbers_differ"
    assert "[7.0]" in fault[1]
    assert "[8.0]" in fault[1]


@given(st.text(max_size=80))
def test_every_text_is_a_faithful_translation_of_itself(sample, text):
    assert fault_of(sample(text, text), sample(text, text)) is None
