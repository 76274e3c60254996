import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.text import identify as module
from pipeline.text.identify import SURE, UNDETERMINED, identify, mask, mixed_in, other_language, second_backend, second_opinion

SAMPLES = Path(module.__file__).parents[1] / "samples"
RECIPE = ("en", "es", "fr", "ru", "zh")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The bridge was built in the nineteenth century by local people.", "en"),
        ("Le pont a été construit au dix-neuvième siècle par les habitants.", "fr"),
        ("El puente fue construido en el siglo diecinueve por los vecinos.", "es"),
        ("Мост был построен в девятнадцатом веке местными жителями.", "ru"),
        ("这座桥是十九世纪由当地人建造的。", "zh"),
        ("這座橋是十九世紀由當地人建造的。", "zh"),
        ("この橋は十九世紀に地元の人々によって建てられました。", "ja"),
        ("이 다리는 19세기에 지역 주민들이 지었습니다.", "ko"),
        ("Die Brücke wurde im neunzehnten Jahrhundert von den Bewohnern gebaut.", "de"),
        ("用Python写一个函数，返回列表中的最大值。", "zh"),
    ],
)
def test_a_sentence_is_enough_to_tell(text, language):
    assert identify(text, RECIPE).language == language


@pytest.mark.parametrize(
    "text", ["", "Oui.", "OK, 42!", "1 + 1 = 2", "😀😀😀", "`print(value)`", "https://example.org/a/long/path/of/words", "字"]
)
def test_what_is_too_short_or_no_language_is_undetermined(text):
    found = identify(text, RECIPE)

    assert (found.language, found.score) == (UNDETERMINED, 0.0)


def test_a_script_that_is_not_known_is_undetermined():
    assert identify("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", RECIPE).language == UNDETERMINED


def test_the_recipes_languages_are_preferred_between_neighbours():
    text = "La casa es de color verde, grande y bonita."

    assert identify(text, ("es", "en")).language == "es"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Їхні діти вже пішли до школи.", "uk"),
        ("Это был первый мост через реку.", "ru"),
        ("Гэта быў першы мост, які пабудаваў быў мой дзед.", "be"),
        ("Ово је био први мост преко реке, ђаче.", "sr"),
        ("Бұл өзен арқылы салынған алғашқы көпір болды.", UNDETERMINED),
        ("В Киеве (укр. Київ) это знают все, и в этом все уверены.", "ru"),
    ],
)
def test_letters_that_one_language_alone_has_tell_cyrillic_languages_apart(text, language):
    assert identify(text, ("ru", "en")).language == language


def test_a_short_text_is_never_a_reason_to_doubt_its_language():
    text = "Guten Abend allen"

    assert identify(text, RECIPE).score < SURE
    assert other_language(text, "en", RECIPE) is None
    assert other_language("Die Brücke wurde im neunzehnten Jahrhundert gebaut.", "en", RECIPE).language == "de"


def test_an_answer_in_two_languages_is_found_by_its_sentences():
    french = "Le pont a été construit au dix-neuvième siècle par les habitants du village. "
    english = "The bridge was built in the nineteenth century by the people of the village. "

    assert mixed_in(french + english, "fr", RECIPE) == ("en", pytest.approx(0.5, abs=0.05))
    assert mixed_in(french * 3, "fr", RECIPE) == ("fr", 0)
    assert mixed_in("这座桥是十九世纪由当地人建造的。" * 4 + "\n" + english, "zh", RECIPE)[0] == "en"
    assert mixed_in("", "fr", RECIPE) == ("fr", 0)


def test_a_second_opinion_is_another_librarys():
    assert second_opinion("Die Brücke wurde im neunzehnten Jahrhundert gebaut.") == "de"
    assert second_opinion("OK!") == UNDETERMINED
    assert second_backend().startswith("py3langid ")


def test_a_second_opinion_that_is_not_installed_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'glotloom\[fast\]'"):
        second_backend()


def test_code_and_formulas_do_not_count():
    text = (
        "Voici la fonction demandée, elle additionne deux nombres :\n```python\n"
        + "return the sum of the two values\n" * 20
        + "```"
    )

    assert identify(text, RECIPE).language == "fr"
    assert mask("a `b` $c$ \\(d\\) https://e.f ```g\nh").split() == ["a"]


def test_one_text_has_one_answer():
    text = "Es ist nicht leicht to say which langue ceci est, pero bueno."

    assert len({identify(text, RECIPE) for _ in range(5)}) == 1


def test_the_order_in_which_the_disk_lists_the_profiles_does_not_matter(monkeypatch):
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listed(folder), reverse=True))

    languages = module._factory.__wrapped__("langdetect").get_lang_list()

    assert languages == sorted(languages)
    assert {"en", "zh-cn"} < set(languages)


def _pieces() -> list[str]:
    """5,000 pieces of the sample pool in five languages, of 15 to 160 characters."""
    lines = [line for file in sorted((SAMPLES / "agnostic").glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]
    text = "\n".join(message["content"] for line in lines for message in json.loads(line)["messages"])
    draw = random.Random(0)
    starts = [draw.randrange(len(text) - 160) for _ in range(5_000)]
    return [text[start : start + draw.randint(15, 160)] for start in starts]


@pytest.mark.slow
def test_the_fast_backend_gives_langdetects_results_bit_for_bit():
    pytest.importorskip("langdetect_rs")
    different = []
    for text in _pieces():
        slow, fast = (
            [(p.lang, p.prob) for p in module._probabilities(text, RECIPE, name)] for name in ("langdetect", "langdetect_rs")
        )
        if slow != fast:
            different.append((text, slow, fast))
    assert different == []


@given(st.text(max_size=120))
def test_any_text_is_identified_without_an_error(text):
    found = identify(text, RECIPE)

    assert 0 <= found.score <= 1
    assert found.language == UNDETERMINED or len(found.language) == 2


def test_of_a_long_text_beginning_middle_and_end_tell():
    french = "Le pont a été construit au dix-neuvième siècle par les habitants du village. "
    english = "The bridge was built in the nineteenth century by the people of the village. "

    assert identify(french * 2000, RECIPE) == identify(french * 20, RECIPE)
    assert identify(english + french * 200, RECIPE).language == "fr"
