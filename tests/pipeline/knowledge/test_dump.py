import bz2

import pytest

from pipeline.errors import InputError
from pipeline.knowledge.dump import read_dump
from pipeline.languages import load_language

SITE = (
    "<siteinfo><sitename>Wikipédia</sitename><dbname>frwiki</dbname><base>https://fr.example/wiki/Accueil</base>"
    '<generator>g</generator><case>first-letter</case><namespaces><namespace key="0" case="first-letter" />'
    '<namespace key="6" case="first-letter">Fichier</namespace><namespace key="102" case="first-letter">Projet</namespace>'
    "</namespaces></siteinfo>"
)


def page(title: str, text: str = "Texte.", ns: int = 0, number: int = 7, redirect: str = "") -> str:
    return (
        f"<page><title>{title}</title><ns>{ns}</ns><id>{number}</id>{redirect}"
        f"<revision><id>41</id><timestamp>2020-01-01T00:00:00Z</timestamp><text>{text}</text></revision></page>"
    )


def dump(*pages: str, site: str = SITE) -> bytes:
    return (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11">{site}{"".join(pages)}</mediawiki>'.encode()
    )


@pytest.fixture
def read(tmp_path):
    def read(content: bytes, name: str = "frwiki.xml", **options):
        path = tmp_path / name
        path.write_bytes(content)
        return list(read_dump(path, load_language("fr"), source="", licence="CC BY-SA 4.0", **options))

    return read


@pytest.mark.parametrize("compress", [bytes, bz2.compress])
def test_a_page_is_a_document_with_title_revision_address_and_licence(read, compress):
    (document,) = read(compress(dump(page("Fête d'été (Nice)"))))

    assert (document.id, document.title, document.skip) == ("frwiki-7", "Fête d'été (Nice)", None)
    assert (document.source.name, document.source.revision, document.source.licence) == ("Wikipédia", "41", "CC BY-SA 4.0")
    assert document.source.url == "https://fr.example/wiki/F%C3%AAte_d%27%C3%A9t%C3%A9_(Nice)"
    assert [section.text for section in document.sections()] == ["Texte."]


def test_a_dump_is_known_to_be_compressed_by_its_bytes_and_not_its_name(read):
    assert len(read(bz2.compress(dump(page("A"))), "renamed.xml")) == 1


@pytest.mark.parametrize(
    ("of", "skip", "only_counted"),
    [
        (page("A", "#REDIRECT [[B]]"), "redirect", True),
        (page("A", "#REDIRECTION [[B]]"), "redirect", True),
        (page("A", "x", redirect='<redirect title="B" />'), "redirect", True),
        (page("Projet:A", ns=102), "other_namespace", True),
        (page("A", ""), "page_without_text", False),
        (page("A", "  \n "), "page_without_text", False),
        ("<page><title>A</title><ns>0</ns><id>7</id></page>", "page_without_text", False),
        (page("Liste de fromages suisses"), "list_page", False),
        (page("Kora", "{{homonymie}}"), "disambiguation", False),
        (page("A", "Un {{pas " * 201), "damaged_markup", False),
        (page("A", "Un [[pas " * 201), "damaged_markup", False),
        (page("A", "Un &lt;ref name=pas " * 201), "damaged_markup", False),
        (page("A", "Un {{pas " * 200), None, False),
        (page("A", "Un {{pas}} [[pas]] &lt;b&gt;pas&lt;/b&gt; 1 &lt; 2 " * 900), None, False),
        (page("A", "# Un pas\n# Deux [[pas]]"), None, False),
    ],
)
def test_a_page_that_gives_nothing_says_why(read, of, skip, only_counted):
    (document,) = read(dump(of))

    assert (document.skip, document.pass_over) == (skip, only_counted)


def test_of_several_revisions_the_last_one_counts(read):
    revisions = "".join(
        f"<revision><id>{n}</id><timestamp>2020-01-0{n}T00:00:00Z</timestamp><text>Texte {n}.</text></revision>" for n in (1, 2, 3)
    )
    (document,) = read(dump(f"<page><title>A</title><ns>0</ns><id>7</id>{revisions}</page>"))

    assert (document.source.revision, document.sections()[0].text) == ("3", "Texte 3.")


def test_a_hidden_text_is_a_page_without_text(read):
    hidden = '<revision><id>1</id><timestamp>2020-01-01T00:00:00Z</timestamp><text deleted="deleted" /></revision>'
    (document,) = read(dump(f"<page><title>A</title><ns>0</ns><id>7</id>{hidden}</page>"))

    assert document.skip == "page_without_text"


def test_each_page_keeps_its_own_text_until_it_is_asked_for(read):
    documents = read(dump(page("A", "Un.", number=1), page("B", "Deux.", number=2)))

    assert [document.sections()[0].text for document in documents] == ["Un.", "Deux."]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (bz2.compress(b""), "is empty"),
        (bz2.compress(dump(page("A", "x" * 5000)))[:-40], "is cut off"),
        (bz2.compress(dump(page("A", "x" * 5000)))[:20], "is cut off"),
        (b"BZh91AY&SYgarbage that is no bzip2", "Invalid data stream"),
        (dump(page("A"))[:-30], "is not a whole MediaWiki XML dump"),
        (b"just some text", "is not a whole MediaWiki XML dump"),
        (b'{"title": "json"}', "is not a whole MediaWiki XML dump"),
        (b"<html><body>404</body></html>", "is not a whole MediaWiki XML dump"),
        (b"\x00\x01\x02", "is not a whole MediaWiki XML dump"),
        (dump(page("A")).replace(b"Texte", b"Text\xe9"), "is not"),
        (dump(page("A"), site=""), "siteinfo"),
        (dump(page("A").replace("<id>7</id>", "<id>seven</id>")), "is not a whole MediaWiki XML dump"),
        (dump(page("A").replace("<timestamp>2020-01-01T00:00:00Z</timestamp>", "<timestamp>soon</timestamp>")), "is not a whole"),
    ],
)
def test_a_file_that_is_no_whole_dump_is_refused_by_name(read, content, problem):
    with pytest.raises(InputError) as error:
        read(content)

    assert "frwiki.xml: " in str(error.value)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_dump_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"gone\.xml\.bz2: No such file"):
        list(read_dump(tmp_path / "gone.xml.bz2", load_language("fr"), source="", licence=""))


def test_a_folder_is_no_dump(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        list(read_dump(tmp_path, load_language("fr"), source="", licence=""))


CATEGORIES = dump(
    page("Catégorie:Bretagne", "Rien.", 14, 1),
    page("Catégorie:Fest-noz", "[[Catégorie:bretagne|*]]", 14, 2),
    page("Catégorie:Sonneur de fest-noz", "[[Category: Fest-noz ]]", 14, 3),
    page("Catégorie:Cercle", "[[Catégorie:Sonneur de fest-noz]] [[Catégorie:Cercle]]", 14, 4),
    page("Menhir", "Une pierre. [[catégorie:Bretagne]]", 0, 5),
    page("Sonneur", "Il joue. [[Catégorie:Sonneur_de_fest-noz|Sonneur]]", 0, 6),
    page("Ronde", "Elle tourne. [[Catégorie:Cercle]]", 0, 7),
    page("Volcan", "Il fume, et la [[:Catégorie:Bretagne]] est loin. [[Catégorie:Montagne]]", 0, 8),
)


@pytest.mark.parametrize(
    ("depth", "titles"),
    [
        (0, ["Menhir"]),
        (1, ["Menhir"]),
        (2, ["Menhir", "Sonneur"]),
        (3, ["Menhir", "Sonneur", "Ronde"]),
        (99, ["Menhir", "Sonneur", "Ronde"]),
    ],
)
def test_pages_are_chosen_by_the_categories_that_they_stand_below(read, depth, titles):
    documents = read(CATEGORIES, categories=("bretagne",), depth=depth)
    assert [document.title for document in documents if not document.skip] == titles
    (volcano,) = (document for document in documents if document.title == "Volcan")
    assert volcano.skip == "outside_categories" and volcano.pass_over


def test_a_category_that_the_dump_does_not_have_is_refused(read):
    with pytest.raises(InputError, match="categories: the dump has none called 'Bretange'"):
        read(CATEGORIES, categories=("Bretagne", "Bretange"), depth=1)
