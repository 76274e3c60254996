import json
import re
from collections.abc import Iterator
from dataclasses import astuple
from importlib import resources
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.errors import InputError
from pipeline.languages import known_languages, load_language
from pipeline.recipe import parse_recipe

CODES = ("ar", "de", "en", "es", "fr", "hi", "ja", "pt", "ru", "sw", "uk", "zh")


def test_these_languages_ship():
    assert known_languages() == CODES


def test_an_unknown_language_is_refused_with_the_ones_there_are():
    with pytest.raises(InputError, match="'xx' is not known; there are ar, de, en, es, fr, hi, ja, pt, ru, sw, uk, zh"):
        load_language("xx")


@pytest.mark.parametrize("code", CODES)
def test_a_language_says_which_it_is(code):
    assert load_language(code).code == code


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ["opening", "section", "follow_up"])
def test_there_are_twelve_different_templates_of_every_kind(code, kind):
    templates = getattr(load_language(code).reverse, kind)

    assert len(set(templates)) == len(templates) >= 12


@pytest.mark.parametrize("code", CODES)
def test_templates_have_the_slots_that_are_filled_and_no_others(code):
    templates = load_language(code).reverse

    def slots(template):
        return set(re.findall(r"\{(.*?)\}", template))

    assert all(slots(template) == {"title"} for template in templates.opening)
    assert all(slots(template) == {"title", "section"} for template in templates.section)
    assert all(slots(template) == {"section"} for template in templates.follow_up)


@pytest.mark.parametrize("code", CODES)
def test_names_that_pages_are_compared_with_are_lower_case(code):
    wikitext = load_language(code).wikitext

    assert all(name == name.lower() for name in (*wikitext.apparatus, *wikitext.disambiguation))


@pytest.mark.parametrize("code", CODES)
def test_no_pattern_finds_something_in_every_text(code):
    rules = load_language(code).rules
    patterns = (
        *rules.refusal,
        *rules.refers_to_source,
        *rules.dangling,
        *rules.instructs_model,
        *load_language(code).wikitext.list_titles,
    )

    assert patterns
    assert not [pattern for pattern in patterns if re.search(pattern, "") or re.search(pattern, "###")]


@pytest.mark.parametrize("code", CODES)
def test_nothing_in_a_language_file_is_empty(code):
    language = load_language(code)

    for group in (language.wikitext, language.reverse, language.grounded, language.rules):
        assert all(astuple(group))


@pytest.mark.parametrize(
    ("code", "refusal", "answer"),
    [
        ("en", "I'm sorry, but I can't help with that.", "The bridge was built in 1932."),
        ("fr", "Je suis désolé, mais je ne peux pas répondre à cette question.", "Le pont fut construit en 1932."),
        ("de", "Es tut mir leid, aber diese Frage kann ich nicht beantworten.", "Die Brücke wurde 1932 gebaut."),
        ("pt", "Sinto muito, mas não posso responder a essa pergunta.", "A ponte foi construída em 1932."),
        ("es", "Lo siento, pero no puedo responder a esa pregunta.", "El puente se construyó en 1932."),
        ("ru", "Извините, но я не могу ответить на этот вопрос.", "Мост построили в 1932 году."),
        ("ar", "آسف، لا أستطيع الإجابة عن هذا السؤال.", "بُني الجسر عام 1932."),
        ("hi", "क्षमा करें, मैं इस प्रश्न का उत्तर नहीं दे सकता।", "यह पुल 1932 में बनाया गया था।"),
        ("ja", "申し訳ありませんが、その質問にはお答えできません。", "橋は1932年に建設されました。"),
        ("sw", "Samahani, siwezi kujibu swali hilo.", "Daraja lilijengwa mwaka 1932."),
        ("uk", "Вибачте, але я не можу відповісти на це запитання.", "Міст збудували 1932 року."),
        ("zh", "抱歉，我无法回答这个问题。", "这座桥建于1932年。"),
    ],
)
def test_refusals_are_known_from_answers(code, refusal, answer):
    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in load_language(code).rules.refusal]

    assert any(pattern.search(refusal) for pattern in patterns)
    assert not any(pattern.search(answer) for pattern in patterns)


@pytest.fixture
def own_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "languages"
    folder.mkdir()
    monkeypatch.setenv("GLOTLOOM_LANGUAGES", str(folder))
    load_language.cache_clear()
    yield folder
    load_language.cache_clear()


def _italian() -> str:
    text = (resources.files("pipeline.languages") / "es.toml").read_text("utf-8")
    text = re.sub(
        r"opening = \[.*?\n\]", 'opening = ["Che cosa si può dire di questo strumento, la {title}?"]', text, flags=re.DOTALL
    )
    return text.replace('code = "es"', 'code = "it"').replace('english_name = "Spanish"', 'english_name = "Italian"')


def test_a_language_is_one_file_and_no_code(own_languages: Path, tmp_path: Path) -> None:
    (own_languages / "it.toml").write_text(_italian(), "utf-8")
    text = (
        "La zampogna è uno strumento a fiato che i pastori suonano nelle feste di Natale in molte regioni. "
        "Il sacco di pelle raccoglie l'aria, e le canne di legno danno la melodia. Oggi la costruiscono pochi artigiani."
    )
    (tmp_path / "it.jsonl").write_text(json.dumps({"title": "Zampogna", "text": text}) + "\n", "utf-8")
    recipe = {
        "name": "t",
        "languages": ["it"],
        "knowledge": {"it": {"kind": "jsonl", "path": str(tmp_path / "it.jsonl"), "min_tokens": 10}},
        "dialogues": {"it": [{"mode": "reverse"}]},
    }
    dataset = build(parse_recipe(recipe), tmp_path / "out")
    ((language, messages),) = dataset.query("SELECT language, messages FROM data")
    assert language == "it" and "Zampogna" in messages[0]["content"]
    assert "Italian" in (tmp_path / "out/README.md").read_text("utf-8")


def test_a_file_of_ones_own_goes_before_the_one_that_ships(own_languages: Path) -> None:
    text = (resources.files("pipeline.languages") / "en.toml").read_text("utf-8")
    (own_languages / "en.toml").write_text(text.replace('english_name = "English"', 'english_name = "Our English"'), "utf-8")
    assert load_language("en").english_name == "Our English"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("it", 'code = "it"', "it.toml: lacks 'english_name'"),
        ("it", 'code = "fr"', "it.toml: code = 'fr' is not the file's name"),
        ("it", "code", "it.toml: "),
        ("it", _italian().replace("list_titles", "titles"), "unexpected keyword argument 'titles'"),
        ("it", re.sub(r"dangling = \[", "dangling = ['(', ", _italian()), "missing \\), unterminated"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(own_languages: Path, name: str, text: str, message: str) -> None:
    (own_languages / f"{name}.toml").write_text(text, "utf-8")
    with pytest.raises(InputError, match=message):
        load_language(name)


def test_a_folder_of_languages_that_is_not_there_is_said(own_languages: Path) -> None:
    own_languages.rmdir()
    with pytest.raises(InputError, match=r"GLOTLOOM_LANGUAGES = .*: is no folder"):
        known_languages()
