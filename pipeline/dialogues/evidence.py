"""What a passage holds, and how much of a text it bears out, without a model.

Words are compared lower-cased and by a shared beginning, so that inflection (ru, fr, es) is no difference; Arabic ones without
their article and what is written together with it; Chinese and Japanese, which write no spaces, by pairs of characters. Names
and numbers are compared strictly.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

from pipeline.text.scripts import CYRILLIC, HAN_COMPATIBLE, KANA, REPEATED
from pipeline.text.sentences import sentences

_UNSPACED = f"[{REPEATED}{KANA}\u3400-\u9fff{HAN_COMPATIBLE}]"  # between the blocks of Han stand hexagrams, which are words too
# To a regular expression the vowel signs of Hindi are no letters, and would cut its words in two.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x3000)) if unicodedata.category(c) in ("Mn", "Mc")) + "\u200c\u200d"
_WORD = rf"(?!{_UNSPACED})[^\W\d_](?:(?!{_UNSPACED})[^\W\d_]|[{_MARKS}])*"
_TOKEN = re.compile(rf"(?P<run>{_UNSPACED}+)|(?P<word>{_WORD})")
UNIT = re.compile(rf"{_UNSPACED}|{_WORD}|\d+")
"""A word, a number, or a character of a script without spaces."""
_NUMBER = re.compile(r"\d+(?:[.,\u00a0\u202f ]\d{3}(?!\d))*(?:[.,]\d+)?")
_GROUPED = re.compile(r"(?<=\d)[.,\u00a0\u202f ](?=\d{3}(?!\d))")
_APOSTROPHE = re.compile(rf"(?<=[{CYRILLIC}])['’](?=[{CYRILLIC}])|(?<=[nN]g)['’](?=[aeiou])")
_ONE_WAY: dict[int, str | None] = {
    **dict.fromkeys(map(ord, "\u0640\u0670\u200e\u200f\u061c")),  # Arabic's lengthener, a vowel, marks of direction
    **dict.fromkeys(range(0x64B, 0x660)),  # Arabic's vowels, which most texts leave out
    **{ord(c): to for c, to in zip("أإآٱى٫٬", "ااااي.,", strict=True)},
    **{p: str(unicodedata.digit(chr(p))) for p in range(0x660, 0xAC00) if unicodedata.category(chr(p)) == "Nd"},
}
_ARTICLE = re.compile(r"^[وف]?(?:[بك]?ال|لل)(?=[\u0620-\u064a]{3})")


def one_way(text: str) -> str:
    """What a language writes in several ways, written in one: digits, Arabic vowels and alefs, apostrophes within words."""
    return _APOSTROPHE.sub("ʼ", text.translate(_ONE_WAY) if not text.isascii() else text)


@functools.cache
def _all_one_way(words: frozenset[str]) -> frozenset[str]:
    return frozenset(map(one_way, words))


def content_words(text: str, function_words: Collection[str]) -> list[str]:
    """The text's rare words in order: what is left without function words and fragments; pairs of characters for zh, ja."""
    return list(_content_words(_normal(text), _all_one_way(frozenset(function_words))))


def _normal(text: str) -> str:
    return one_way(unicodedata.normalize("NFKC", text))


def _content_words(text: str, function_words: Collection[str]) -> Iterator[str]:
    for token in _TOKEN.finditer(text):
        if run := token["run"]:
            pairs = (run[i : i + 2] for i in range(len(run) - 1)) if len(run) > 1 else (run,)
            yield from (pair for pair in pairs if not any(character in function_words for character in pair))
        else:
            word = token["word"].lower()
            if len(word) > 2 and word not in function_words:
                yield _ARTICLE.sub("", word)


def numbers(text: str) -> list[str]:
    """The numbers in digits, without thousands separators and with a decimal point: `1 926,5` is `1926.5`."""
    return [_GROUPED.sub("", number).replace(",", ".") for number in _NUMBER.findall(_normal(text))]


def names(text: str, function_words: Collection[str]) -> list[str]:
    """Words with a capital, lower-cased, but for a sentence's first, whose capital says nothing."""
    found = []
    for sentence in sentences(one_way(text)):
        for token in list(_TOKEN.finditer(sentence))[1:]:
            word = unicodedata.normalize("NFKC", token["word"] or "")
            if len(word) > 1 and word[0].isupper() and word.lower() not in function_words:
                found.append(word.lower())
    return found


def alike(one: str, other: str) -> bool:
    """Whether two words may be forms of one: equal, or with a common beginning that makes up most of both."""
    if one == other:
        return True
    shorter, longer = sorted((len(one), len(other)))
    common = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    if common == 3:  # tea, teas; and Cyrillic endings take each other's place: Тула, Туле, Тулой
        return longer - common <= 1 if shorter == 3 else longer - common <= 2 and "\u0400" <= one[0] <= "\u052f"
    return common >= 4 and common >= 0.55 * longer


class Evidence:
    """A text to hold others against: its rare words, its numbers, its sentences."""

    def __init__(self, text: str, function_words: Collection[str]) -> None:
        self.text = text
        self.function_words = function_words
        self.sentences = sentences(text)
        self._numbers = frozenset(numbers(text))
        self._words: dict[str, set[str]] = {}
        spelled = (token["word"].lower() for token in _TOKEN.finditer(_normal(text)) if token["word"])
        for word in (*spelled, *content_words(text, ())):
            self._words.setdefault(word[:3], set()).add(word)

    def holds(self, word: str) -> bool:
        """Whether the word, in some form, stands in the text. Words are looked up by their first three letters."""
        return any(alike(word, known) for known in self._words.get(word[:3], ()))

    def share(self, text: str) -> float:
        """The share of the other text's rare words that this one holds; 1 when it has none."""
        words = content_words(text, self.function_words)
        return sum(map(self.holds, words)) / len(words) if words else 1.0

    def missing_numbers(self, text: str) -> list[str]:
        return [number for number in numbers(text) if number not in self._numbers]

    def missing_names(self, text: str) -> list[str]:
        return [name for name in names(text, self.function_words) if not self.holds(name)]


def ordered_share(words: Sequence[str], known: Sequence[str]) -> float:
    """The share of `words` that `known` holds in the same order (longest common subsequence); 1 when there are none.

    Who did what to whom is in the order of the words: "White compiled King's book" has all the words of "King compiled
    White's book" and this share is 2/3.
    """
    row = [0] * (len(known) + 1)
    for word in words:
        above_left = 0
        for j, other in enumerate(known, 1):
            above = row[j]
            row[j] = above_left + 1 if alike(word, other) else max(above, row[j - 1])
            above_left = above
    return row[-1] / len(words) if words else 1.0
