"""Evaluation items in another language than theirs: a translated test question trains as well as the question itself.

A text is held for a translation of the item that is nearest to it in meaning, if it is near, much nearer than the next items of the
same language, and has the item's numbers. Texts in the item's own language are left to `Overlap`: paraphrases and problems of
one kind would be taken for contamination here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.clean.evaluation import Item
from pipeline.clean.exact import normalise
from pipeline.engine.batches import blocks
from pipeline.text.facts import Facts, contradict, facts, numbers, shared_numbers
from pipeline.text.identify import SURE, UNDETERMINED, identify
from pipeline.vectors.embeddings import LANGUAGES, Embedder
from pipeline.vectors.nearest import F16, F32, cosines_of

_NEXT = 3  # items that a translation has to be nearer to than to them
_MANY_NUMBERS = 2  # with so many of an item found, its meaning need not be as near
_LEAST = {True: (0.5, 1.1), False: (0.6, 1.15)}  # cosine; the same over the mean of the next items
_SHARED = 0.5  # of an item's numbers
_ROUGH = 0.01  # by so much the cosines of a matrix product may be wrong, and more
_SHORTEST = 12  # characters of a paragraph that is compared
_ROWS_AT_ONCE = 2_048


@dataclass(frozen=True)
class Translated:
    """The item that a row holds a translation of, and the cosine of the two."""

    item: Item
    cosine: float


@dataclass(frozen=True)
class _Items:
    """Of one language."""

    items: tuple[Item, ...]
    stated: tuple[Facts, ...]
    vectors: F32

    def nearest(self, vector: F16, rough: F32) -> tuple[int, float, float]:
        """Of the items, of which the cosines are known roughly: the nearest, its cosine, and the mean one of those next to it."""
        count = min(_NEXT + 1, len(self.items))
        near = np.flatnonzero(rough >= np.partition(rough, -count)[-count] - _ROUGH)
        both = np.concatenate([vector[None], self.vectors[near].astype(np.float16)])
        cosines = cosines_of(both, np.zeros(len(near), dtype=np.int64), np.arange(1, len(both)))
        first, *following = np.lexsort((near, -cosines))[:count].tolist()
        return int(near[first]), float(cosines[first]), float(cosines[following].sum()) / max(1, len(following))


class TranslatedItems:
    """Finds items in texts of other languages. `not_comparable` counts the items in languages that embeddings do not know."""

    def __init__(self, items: Iterable[Item], embedder: Embedder) -> None:
        self._embedder = embedder
        self._sets: dict[str, _Items] = {}
        self.not_comparable = 0
        for language, found in sorted(_by_language(items).items()):
            if language not in LANGUAGES:
                self.not_comparable += len(found)
                continue
            texts = [item.text for item in found]
            vectors = np.concatenate(list(embedder.embed(texts))).astype(np.float32)
            self._sets[language] = _Items(tuple(found), tuple(map(facts, texts)), vectors)
        # Where each item has a number, a text without digits need not be looked at.
        self._only_numbers = all(own.numbers for of in self._sets.values() for own in of.stated)

    def find(self, rows: Iterable[tuple[str, Sequence[str]]]) -> Iterator[Translated | None]:
        """For each row, of a language and its turns, what it holds; None as well where embeddings do not know the language."""
        for block in blocks(rows, _ROWS_AT_ONCE):
            owners, texts = [], []
            for number, (language, turns) in enumerate(block):
                if language in LANGUAGES and self._sets.keys() - {language}:
                    for part in self._parts(turns):
                        owners.append(number)
                        texts.append(part)
            found: list[Translated | None] = [None] * len(block)
            done = 0
            for vectors in self._embedder.embed(texts):
                of = slice(done, done + len(vectors))
                for owner, translated in self._nearest(vectors, texts[of], [block[o][0] for o in owners[of]], owners[of]):
                    best = found[owner]
                    if best is None or translated.cosine > best.cosine:
                        found[owner] = translated
                done += len(vectors)
            yield from found

    def _parts(self, turns: Sequence[str]) -> Iterator[str]:
        """Turns, their paragraphs where they have several, and what stands before the answer where both are one paragraph."""
        for turn in turns:
            paragraphs = [paragraph for paragraph in turn.split("\n") if len(paragraph) >= _SHORTEST]
            questions = [paragraph[:end] for paragraph in paragraphs if (end := _end_of_question(paragraph))]
            for part in dict.fromkeys([turn, *(paragraphs if len(paragraphs) > 1 else ()), *questions]):
                if len(part) >= _SHORTEST and (not self._only_numbers or any(map(str.isdigit, part)) or numbers(part)):
                    yield part

    def _nearest(
        self, vectors: F16, texts: Sequence[str], languages: Sequence[str], owners: Sequence[int]
    ) -> Iterator[tuple[int, Translated]]:
        spoken = np.array(languages)
        for language, of in self._sets.items():
            others = np.flatnonzero(spoken != language)
            if not len(others):
                continue
            cosines = vectors[others].astype(np.float32) @ of.vectors.T
            least = min(cosine for cosine, _ in _LEAST.values()) - _ROUGH
            for number in np.flatnonzero(cosines.max(axis=1) >= least).tolist():
                row = others[number]
                item, cosine, following = of.nearest(vectors[row], cosines[number])
                if _same(cosine, cosine / max(following, 0.01), of.stated[item], facts(texts[row])):
                    yield owners[row], Translated(of.items[item], cosine)


def _end_of_question(paragraph: str) -> int:
    """Behind the last question mark, where something follows it, or else 0."""
    end = max(map(paragraph.rfind, "?？؟")) + 1
    return end if any(map(str.isalnum, paragraph[end:])) else 0


def _same(cosine: float, margin: float, item: Facts, text: Facts) -> bool:
    shared = shared_numbers(item.numbers, text.numbers)
    least_cosine, least_margin = _LEAST[shared >= _MANY_NUMBERS]
    if cosine < least_cosine or margin < least_margin or shared < _SHARED * item.numbers.total():
        return False
    return contradict(item, text) is None


def _by_language(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Each item once, by its language; what is too short to be sure is of the language of its set."""
    once = {normalise(item.text, "zh"): item for item in reversed(list(items))}
    distinct = sorted(once.values(), key=lambda item: (item.file, int(item.name.rpartition(":")[2])))
    spoken = [identify(item.text, LANGUAGES) for item in distinct]
    usual: dict[str, Counter[str]] = {}
    for item, own in zip(distinct, spoken, strict=True):
        if own.language != UNDETERMINED:
            usual.setdefault(item.file, Counter())[own.language] += 1
    found: dict[str, list[Item]] = {}
    for item, own in zip(distinct, spoken, strict=True):
        sure = own.score >= SURE or item.file not in usual
        found.setdefault(own.language if sure else usual[item.file].most_common(1)[0][0], []).append(item)
    return found
