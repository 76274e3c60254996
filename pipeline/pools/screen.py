"""The screen for culture-bound English rows, which are not carried over to other languages (UltraLink's seven criteria).

Rules stand in for UltraLink's LLM judge: what names a person, a place, an organisation or a brand is capitalised inside a
sentence; belief, politics and convention, verse, jokes and slang have their words. Only the user's turns are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.rows.sample import Message
from pipeline.text.identify import mask

_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_OPENERS = frozenset(".!?:;…\"“”'‘([•*-")
# Capitalised by convention and bound to no culture.
_NEUTRAL = frozenset(
    """
    i i'm i've i'd i'll january february march april may june july august september october november december monday
    tuesday wednesday thursday friday saturday sunday english chinese french spanish russian german japanese
    portuguese arabic latin python java javascript typescript rust ruby kotlin swift bash linux unix windows excel
    git docker numpy pandas unicode boolean fibonacci fahrenheit celsius kelvin newton pascal earth sun moon mars
    venus jupiter saturn mercury internet web postgres sqlite markdown true false none null
    """.split()
)
_LEXICON = {
    "verse_or_joke": "poems? haikus? limericks? sonnets? rhymes? puns? jokes? riddles? slang idioms? proverbs? lyrics",
    "belief_or_politics": """
        church mosque temple synagogue prayers? bible quran gospel easter christmas ramadan diwali thanksgiving halloween gods?
        religio\\w+ elections? president prime.minister congress parliament republicans? democrats? political.party
    """,
    "convention": "etiquette superstitions? wedding.customs? tipping dowry national.holidays? folk.?tales? zodiac",
}
_LEXICON_PATTERNS = {name: re.compile(rf"\b(?:{'|'.join(words.split())})\b", re.IGNORECASE) for name, words in _LEXICON.items()}


def culture_bound(messages: Iterable[Message]) -> str | None:
    """The first criterion by which an English row is culture-bound (`proper_name`, `verse_or_joke`, …), or None."""
    text = mask("\n".join(message.content for message in messages if message.role == "user"))
    for criterion, pattern in _LEXICON_PATTERNS.items():
        if pattern.search(text):
            return criterion
    return "proper_name" if any(_is_name(text, match) for match in _WORD.finditer(text)) else None


def _is_name(text: str, match: re.Match[str]) -> bool:
    word = match[0]
    if not word[0].isupper() or len(word) == 1 or word.lower() in _NEUTRAL or any(c.isupper() for c in word[1:]):
        return False  # acronyms and CamelCase are terms
    if not _begins_sentence(text, match.start()):
        return True
    following = _WORD.match(text, match.end() + 1)  # "Emily Watson has …": two capitalised words open a sentence with a name
    return bool(following and following[0][0].isupper() and following[0].lower() not in _NEUTRAL and following[0][1:].islower())


def _begins_sentence(text: str, place: int) -> bool:
    while place and text[place - 1].isspace():
        if text[place - 1] == "\n":
            return True
        place -= 1
    return not place or text[place - 1] in _OPENERS
