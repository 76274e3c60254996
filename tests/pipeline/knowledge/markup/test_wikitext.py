import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.knowledge.dump import namespaces
from pipeline.knowledge.markup import wikitext
from pipeline.knowledge.markup.wikitext import WikitextCleaner
from pipeline.languages import known_languages, load_language

CLEANERS = {code: WikitextCleaner(load_language(code), namespaces(load_language(code))) for code in known_languages()}


def clean(text: str, language: str = "en") -> list[tuple[str, str]]:
    return [(section.heading, section.text) for section in CLEANERS[language].sections(text)]


def prose(text: str, language: str = "en") -> str:
    """The text of a page of one section, or the empty string."""
    return "".join(text for _, text in clean(text, language))


def test_links_and_quotes_are_their_words():
    text = "'''Jerk''' is a ''style'' of [[Jamaica|Jamaican]] [[cooking]] known [http://x.example abroad].[[Category:Food]]"

    assert prose(text) == "Jerk is a style of Jamaican cooking known abroad."


@pytest.mark.parametrize(
    "text",
    [
        "The pipes are old.<ref>Smith 1999</ref> They are loud.<ref name=a />",
        "The pipes are old.{{citation needed|date=May 2001}} They are loud.{{sfn|Smith|1999|p=4}}",
        "The pipes<!-- really? --> are old. They are loud.<ref>See [[x]] {{cite web|title=y}}</ref>",
        "[[File:Pipes.jpg|thumb|left|[[Uilleann pipes|Pipes]] in 1900]]The pipes are old. They are loud.",
        "{{Infobox instrument|name=Pipes|image=[[File:P.jpg]]}}\nThe pipes are old. They are loud.\n{{Commons|Pipes}}",
        "{| class=wikitable\n! Year\n|-\n| 1900\n|}\nThe pipes are old. They are loud.",
        "The pipes are old. They are loud.\n<gallery>\nFile:A.jpg|A pipe\nFile:B.jpg\n</gallery>",
        "__NOTOC__\nThe pipes are old. They are loud. [[fr:Cornemuse]]",
        "The pipes ({{IPAc-en|p|aɪ|p}}) are old ( ; ). They are loud.",
    ],
)
def test_what_is_not_prose_leaves_no_trace(text):
    assert prose(text) == "The pipes are old. They are loud."


@pytest.mark.parametrize(
    ("language", "link"),
    [
        ("en", "[[File:A.jpg|thumb|A picture]]"),
        ("en", "[[Image:A.jpg|thumb|A picture]]"),
        ("fr", "[[Fichier:A.jpg|vignette|Une image]]"),
        ("fr", "[[Image:A.jpg|vignette|Une image]]"),
        ("es", "[[Archivo:A.jpg|miniatura|Una imagen]]"),
        ("es", "[[Imagen:A.jpg|thumb|Una imagen]]"),
        ("ru", "[[Файл:A.jpg|мини|Картина]]"),
        ("ru", "[[Изображение:A.jpg|thumb|Картина]]"),
        ("zh", "[[文件:A.jpg|thumb|left|图片说明]]"),
        ("zh", "[[檔案:A.jpg|thumb|圖片說明]]"),
        ("de", "[[Bild:A.jpg|mini|Ein Bild]]"),
        ("ja", "[[画像:A.jpg|thumb|絵]]"),
        ("ar", "[[صورة:A.jpg|تصغير|صورة]]"),
        ("hi", "[[चित्र:A.jpg|thumb|चित्र]]"),
        ("sw", "[[Picha:A.jpg|thumb|Picha]]"),
        ("uk", "[[Зображення:A.jpg|міні|Картина]]"),
        ("fr", "[[Catégorie:Musique]]"),
        ("es", "[[Categoría:Música]]"),
        ("ru", "[[Категория:Музыка]]"),
        ("zh", "[[分类:音乐]]"),
        ("zh", "[[分類:音樂]]"),
    ],
)
def test_files_and_categories_go_in_every_languages_names(language, link):
    assert prose(f"{link}\nabc def.\n{link}", language) == "abc def."


@pytest.mark.parametrize("place", range(len("See [[Foo|bar]] here, as [[it]] is.") + 1))
def test_a_comment_anywhere_changes_nothing(place):
    page = "See [[Foo|bar]] here, as [[it]] is."
    if page[max(0, place - 1) : place + 1] not in ("[[", "]]"):  # there it parts the brackets, for MediaWiki as well
        assert prose(f"{page[:place]}<!-- c -->{page[place:]}") == "See bar here, as it is."


def test_a_reference_that_was_pasted_as_shown_goes():
    assert prose("It runs left to right.[3] So does Greek,[12][13] and an array x[1] stays.") == (
        "It runs left to right. So does Greek, and an array x[1] stays."
    )


def test_a_comment_alone_on_its_line_parts_no_paragraph():
    assert prose("One line\n<!-- c -->\nand the next.") == "One line and the next."


def test_prose_between_comments_stays():
    page = "One.\n\n<!-- a -->The town lies by the river.\n\nMore prose.\n<!-- b -->\nThe end."
    assert prose(page) == "One.\n\nThe town lies by the river.\n\nMore prose. The end."


@pytest.mark.parametrize("tag", ["ref", 'ref name="a"', "source", "syntaxhighlight", "pre"])
def test_the_sentence_of_a_tag_that_is_never_closed_goes(tag):
    assert prose(f"The town lies by the river. It has <{tag}> a port.\n\nNext.") == "The town lies by the river.\n\nNext."


@pytest.mark.parametrize("reference", ["<ref>Smith 1990. <ref>Jones</ref>", "<ref>Smith <ref>Jones</ref> 1990</ref>"])
def test_a_reference_that_another_begins_in_is_no_prose(reference):
    shown = prose(f"The town lies by the river. {reference} It has a port.\n\nNext.")
    assert "Smith" not in shown and "Jones" not in shown and shown.endswith("Next.")


def test_what_follows_a_comment_that_is_never_closed_is_not_shown():
    assert prose("The town lies.<!-- see the port\n\nIt has a port.") == "The town lies."


@pytest.mark.parametrize("tag", ["<!-- a. ", "<ref> a. ", "<source> a. ", "<pre> a. ", "<nowiki> a. "])
def test_many_tags_that_are_never_closed_take_no_time(tag):
    began = time.perf_counter()
    clean(tag * (200_000 // len(tag)))
    assert time.perf_counter() - began < 5  # a second or less; minutes when each looks for its end


def test_a_link_to_a_category_in_a_sentence_is_its_words():
    assert prose("See [[:Category:Pipes|the pipes]] here.") == "See the pipes here."


@pytest.mark.parametrize(
    ("language", "text", "shown"),
    [
        ("en", "It is {{convert|1300|mi|km}} long.", "It is 1,300 miles long."),
        ("en", "A {{convert|60|mile|km|adj=on}} swath.", "A 60 mile swath."),
        ("en", "Between {{convert|5|and|10|ft|m}} deep.", "Between 5 and 10 feet deep."),
        ("en", "{{As of|2011|7}}, there were two.", "As of July 2011, there were two."),
        ("en", "There were two {{as of|2014|lc=y}}.", "There were two as of 2014."),
        ("en", "There were two {{as of|2020|²|lc=y}}.", "There were two as of ² 2020."),
        ("en", "The name {{lang|grc|ἄναρχος}} means none.", "The name ἄναρχος means none."),
        (
            "en",
            "It holds {{chem|H|2|O}} at 10<sup>-5</sup> and x<sub>1</sub> on the 19<sup>th</sup>.",
            "It holds H₂O at 10⁻⁵ and x₁ on the 19th.",
        ),
        ("en", "{{chem|SO|4|2-}} and H<sup>+</sup> meet.", "SO₄²⁻ and H⁺ meet."),
        ("en", "It grew 2<sup>n</sup>-fold{{snd}}fast.", "It grew 2^n-fold – fast."),
        ("en", "The letter {{angbr|a}} is first.", "The letter ⟨a⟩ is first."),
        ("en", "About {{val|6.241|e=18}} of them.", "About 6.241 × 10¹⁸ of them."),
        ("en", "''Animal''{{'s}} end at 35{{nbsp}}mm &amp; 5&nbsp;m.", "Animal’s end at 35 mm & 5 m."),
        ("en", "Alongside {{HMS|Ajax|22|6}} it lay.", "Alongside HMS Ajax it lay."),
        ("fr", "Au {{s|xix|e}}, le {{date-|10 janvier 1929}}, {{unité|30|mm}}.", "Au XIXe siècle, le 10 janvier 1929, 30 mm."),
        ("fr", "Il dit {{citation|oui}} et {{lang|en|texte=no}}.", "Il dit « oui » et no."),
        ("fr", "{{refnec|La phrase}} est là.", "La phrase est là."),
        ("es", "El {{fecha|2|²}} no hubo nada.", "El 2 de ² no hubo nada."),
        ("es", "El {{fecha|2|11}} hubo {{unidad|75|°C}} en el {{siglo|xx}}.", "El 2 de noviembre hubo 75 °C en el siglo XX."),
        ("ru", "Это {{нп5|Title|слово|en|Word}} и {{nobr|две штуки}}.", "Это слово и две штуки."),
        ("ja", "{{読み仮名|和紙|わし}}は紙である{{要出典|date=2020年}}。", "和紙は紙である。"),
        ("hi", "ताजमहल आगरा में है। {{अज्ञात|x}} यह बड़ा है। इसे शाहजहाँ ने बनवाया।", "ताजमहल आगरा में है। इसे शाहजहाँ ने बनवाया।"),
        ("uk", "Це {{не перекладено|Title|слово|en|Word}} тут.", "Це слово тут."),
        ("zh", "这是{{le|新加坡饮食|Singaporean cuisine}}的一种。", "这是新加坡饮食的一种。"),
    ],
)
def test_a_template_that_carries_words_keeps_them(language, text, shown):
    assert prose(text, language) == shown


def test_a_formula_stays_as_it_is_and_no_double_brace_is_left_in_it():
    assert prose("So <math>f''(x)=\\frac{{a}}{2}, \\; (\\ )</math> holds.") == "So $f''(x)=\\frac{ {a} }{2}, \\; (\\ )$ holds."


def test_a_sentence_with_a_hole_goes_and_its_neighbours_stay():
    text = "The land is flat. It had a density of {{pop density|1|2}} in 2011. The coast is long."

    assert prose(text) == "The land is flat. The coast is long."


def test_a_bracket_with_a_hole_goes_and_its_sentence_stays():
    assert prose("The land (from {{unknown|x}}, old) is flat.") == "The land is flat."


@pytest.mark.parametrize(
    "gone", ["{| class=wikitable\n| a\n|}", "<gallery>\nA.jpg\n</gallery>", "{{some chart|1|2}}", "== Next ==\nMore there is."]
)
def test_a_sentence_that_announces_what_is_gone_goes_with_it(gone):
    assert clean(f"The land is flat. The largest towns are:\n\n{gone}")[0] == ("", "The land is flat.")


def test_a_sentence_that_announces_a_list_stays():
    assert prose("The towns are:\n{{div col|2}}\n* Rome\n* Pisa\n{{div col end}}") == "The towns are:\n\n- Rome\n- Pisa"


def test_a_quotation_template_is_a_paragraph():
    assert prose("He wrote:\n{{quote|All is '''well'''.|author=X}}\nThen he left.") == "He wrote:\n\nAll is well.\n\nThen he left."


def test_lists_keep_their_items_and_numbers_count_up():
    text = "They are:\n* one\n** one and a half\n*: or so\n\nSteps:\n# cut\n# cook\n\nAgain:\n# eat"

    assert prose(text) == "They are:\n- one\n- one and a half or so\n\nSteps:\n1. cut\n2. cook\n\nAgain:\n1. eat"


def test_an_html_list_is_a_list():
    assert prose("They are:<ul><li>one</li><li>two</li></ul>") == "They are:\n\n- one\n\n- two"


def test_terms_stand_with_their_definitions():
    assert prose("; Block\n: A schedule.\n; Cell : A room.\nText.") == "Block: A schedule.\n\nCell : A room.\n\nText."


def test_verse_keeps_its_lines():
    assert prose("<poem>Roses are red,\nviolets blue.</poem>") == "Roses are red,\nviolets blue."
    assert prose("One<br />two<br>three.") == "One\ntwo\nthree."


def test_one_line_end_is_a_space_and_two_are_a_paragraph():
    assert prose("One\ntwo.\n\nThree.") == "One two.\n\nThree."


def test_sections_have_their_headings_and_empty_ones_are_left_out():
    text = "Lead.\n== A ==\n=== ''B'' [[c|C]] ===\nInside.\n== D ==\n{{stub}}"

    assert clean(text) == [("", "Lead."), ("B C", "Inside.")]


@pytest.mark.parametrize(
    ("language", "heading"),
    [("en", "References"), ("fr", "Voir aussi"), ("es", "Enlaces externos"), ("ru", "Примечания"), ("zh", "參考資料")],
)
def test_apparatus_goes_with_its_sub_sections_and_prose_after_it_stays(language, heading):
    text = f"Lead.\n== {heading} ==\nApparatus.\n=== Sub ===\nMore.\n== Legacy ==\nKept."

    assert clean(text, language) == [("", "Lead."), ("Legacy", "Kept.")]


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("这是-{zh-hans:计算机; zh-hant:電腦}-。", "这是计算机。"),
        ("这是-{zh-tw:電腦;zh-cn:电脑}-。", "这是电脑。"),
        ("这是-{字}-。", "这是字。"),
        ("-{T|zh-hans:标题; zh-hant:標題}-这是字。", "这是字。"),
    ],
)
def test_chinese_variants_are_their_simplified_reading(markup, shown):
    assert prose(markup, "zh") == shown


@pytest.mark.parametrize(
    ("language", "text", "is_one"),
    [
        ("en", "'''Foo''' may be:\n* a\n{{disambiguation}}", True),
        ("en", "{{Disambiguation|geo}}", True),
        ("fr", "{{homonymie}}", True),
        ("ru", "{{неоднозначность}}", True),
        ("es", "{{desambiguación}}", True),
        ("zh", "{{消歧義}}", True),
        ("en", "A page about disambiguation.", False),
        ("en", "{{disambiguation needed}}", False),
    ],
)
def test_a_disambiguation_page_is_known_by_its_template(language, text, is_one):
    assert CLEANERS[language].is_disambiguation(text) is is_one


MARKUP = st.sampled_from(
    r"""
    ''' '' [[ ]] {{ }} {| |} |- | <ref> </ref> <ref/> ==_ _== *_ # : ; File: Category: thumb| <math> </math> <br> <!-- -->
    &nbsp; &#0; &#xE004; -{ }- zh-hans: {{{1 }}} <nowiki> </nowiki> <gallery> </gallery> <div> http:// are: $ ( ) convert|
    as+of| lang| quote|1= formatnum: abc Ärger слово. 字。 12 ¶ ¶¶ _
    """.split()
).map(lambda markup: markup.translate({ord("_"): " ", ord("+"): " ", ord("¶"): "\n"}))
PAGES = st.lists(MARKUP | st.text(max_size=6), max_size=40).map("".join)


@given(PAGES, st.sampled_from(sorted(CLEANERS)))
@example("&#xd800;&#x110000;&bogus;", "en")
@example("{{as of|2011|99}}{{convert}}{{s|}}{{frac||}}{{fecha|x}}", "en")
def test_any_wikitext_gives_sections_of_prose_without_markup(text, language):
    for section in CLEANERS[language].sections(text):
        assert section.text == section.text.strip() != ""
        outside = re.sub(r"\$.*?\$", "", section.text, flags=re.DOTALL)
        assert not re.search(r"''|\{\{|\}\}|\[\[|\]\]|\{\||<ref|[\ue000-\ue009]|\n\n\n", outside), outside
        (section.heading + section.text).encode()


TRICKY = [
    "Old.<ref>Book, p. 3</ref> New.",
    'Old.<ref name="a" /> New.<ref name=a>{{cite|x=1|y=[[A|B]]}}</ref>',
    "<ref>a</ref>* no item\n<ref>a</ref>\n* item<ref>b</ref>\n* item",
    "''Old<ref>a</ref>''' s''",
    "Shown: <nowiki><ref>a</ref></nowiki> and <pre><ref>b</ref></pre> and <!-- <ref> --> hidden.<ref>c</ref>",
    "Never closed <ref>a and [[b]]. More.\n\n== Next ==\nText.",
    "Never closed <ref name=x> here. <ref>a</ref> There.",
    "In {{lang|fr|mot<ref>a {{b}}</ref>}} and [[Link|text<ref>c</ref>]].",
    "A < b and a <refrain>sung</refrain>. <references><ref name=a>x</ref></references>",
    "{| class=x\n| cell<ref>a</ref>\n|}\nAfter.",
    "<REF>a</REF>Old.<ref name=b>c</ref>",
    "<nowiki/>Old<ref>a<nowiki>]]</nowiki></ref>.",
    "Comment<!-- {{ [[ --> in words, {{lang|fr|mot}}<!-- ''}} -->.",
    "=== Head<ref>a</ref> ===\nText<ref>b\n\n== not a head ==\n</ref> goes on.",
]


@pytest.mark.parametrize("text", TRICKY)
def test_references_taken_out_before_the_parser_change_nothing(text, monkeypatch):
    fast = clean(text)
    monkeypatch.setattr(wikitext, "_UNSEEN", re.compile("(?P<shown>(?!))"))

    assert fast == clean(text)
