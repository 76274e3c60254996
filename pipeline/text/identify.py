"""Language identification: scripts decide where they can, langdetect (seeded, with a prior on the recipe's languages) elsewhere.

`langdetect-rs` gives langdetect's results, bit for bit, some forty times as fast; where it is installed it is what runs.
py3langid, another method trained on other text, gives a second opinion where one is asked for.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langdetect import detector_factory
from langdetect.lang_detect_exception import LangDetectException

from pipeline.errors import InputError
from pipeline.text.scripts import CYRILLIC, HAN, HANGUL, KANA
from pipeline.text.sentences import STOPS, UNSPACED_STOPS

_RUST = find_spec("langdetect_rs") is not None
_RULES = 2  # raised with what stands around langdetect here
BACKEND = (f"langdetect-rs {version('langdetect-rs')}" if _RUST else f"langdetect {version('langdetect')}") + f", rules {_RULES}"
"""Which engine ran; in the configuration, and so the fingerprint, of the stages that drop by it: `passages-*` and `rules`."""

UNDETERMINED = "undetermined"
SURE = 0.9
"""A language other than the one expected counts from this score on; below it two neighbours cannot be told apart."""

# A formula has an end nearby: to look for it far and wide from every beginning would take forever.
_MASKED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.{0,2000}?\$\$|\$[^$\n]{1,2000}\$|\\\[.{0,2000}?\\\]|\\\(.{0,500}?\\\)|https?://\S+", re.DOTALL
)
_KANA = re.compile(f"[{KANA}]")
_HANGUL = re.compile(f"[{HANGUL}]")
_HAN = re.compile(f"[{HAN}]")
_PART = re.compile(rf"[^\n]{{40,}}?[{STOPS}](?=\s)|[^\n]{{10,}}?[{UNSPACED_STOPS}]|[^\n]+")
# Cyrillic letters that one language alone has among those told apart here. Belarusian, and the languages of the last row, which
# nothing here knows (Kazakh, Tatar, Mongolian and others), have letters of Ukrainian and Russian besides.
_CYRILLIC = re.compile(f"[{CYRILLIC}]")
_OWN_LETTERS = {
    "uk": re.compile(r"[ґєії]", re.IGNORECASE),
    "ru": re.compile(r"[ёыэ]", re.IGNORECASE),
    "be": re.compile(r"ў", re.IGNORECASE),
    "sr": re.compile(r"[ђћ]", re.IGNORECASE),
    "mk": re.compile(r"[ѓќѕ]", re.IGNORECASE),
    UNDETERMINED: re.compile(r"[әғқңөұүһӣӯҷҳӑӗҫӳ]", re.IGNORECASE),
}

# Shorter texts than this say nothing of their language: letters for alphabets, characters for Han.
_MIN_LETTERS = 10
_MIN_HAN = 4
_PIECE = 200  # characters
# From so many on an alphabet's text says as much as the probability claims.
_ENOUGH_LETTERS = 20
# The weight of a language outside the recipe against one inside it.
_PRIOR_OUTSIDE = 0.001
_SEED = 0


@dataclass(frozen=True)
class Identified:
    """`language` is ISO 639-1 or `undetermined`; `score` in [0, 1], below `SURE` for texts of less than 18 letters."""

    language: str
    score: float


def mask(text: str) -> str:
    """The text without code, LaTeX and URLs, which are of no language."""
    return _MASKED.sub(" ", text)


def identify(text: str, languages: Iterable[str]) -> Identified:
    """The language of a text among all that langdetect knows, the given ones preferred; `undetermined` when too short to say."""
    text = _pieces(mask(text))
    letters = _letters(text)
    if (found := _by_script(text, letters)) is not None:
        return found
    if letters < _MIN_LETTERS:
        return Identified(UNDETERMINED, 0.0)
    share = min(1.0, letters / _ENOUGH_LETTERS)
    if (own := _by_own_letters(text, letters)) is not None:
        return Identified(own, share if own != UNDETERMINED else 0.0)
    probabilities = _probabilities(text, tuple(sorted(languages)), "langdetect_rs" if _RUST else "langdetect")
    best = max(probabilities, key=lambda p: (p.prob, p.lang), default=None)
    return Identified(best.lang[:2], float(best.prob) * share) if best else Identified(UNDETERMINED, 0.0)


def other_language(text: str, expected: str, languages: Iterable[str]) -> Identified | None:
    """The language of a text that is surely in another one than expected."""
    found = identify(text, languages)
    return found if found.language not in {expected, UNDETERMINED} and found.score >= SURE else None


def mixed_in(text: str, expected: str, languages: Iterable[str]) -> tuple[str, float]:
    """The language of which most stands in a text beside the expected one, and the share of the letters that is surely in it.

    Told from the lines, and the sentences of long ones; those that are too short to be sure of count as expected.
    """
    counts: Counter[str] = Counter()
    for part in _PART.findall(mask(text)):
        found = other_language(part, expected, languages)
        counts[found.language if found else expected] += _letters(part)
    others = [(count, language) for language, count in counts.items() if language != expected]
    count, language = max(others, default=(0, expected))
    return language, count / max(1, counts.total())


def second_opinion(text: str) -> str:
    """What py3langid holds the text to be, among all of its 97 languages; `undetermined` where there is too little to say."""
    text = mask(text)
    if _letters(text) < _MIN_LETTERS and not _HAN.search(text):
        return UNDETERMINED
    language: str = _second().classify(text)[0]
    return language


def second_backend() -> str:
    """Its name and version, for fingerprints; InputError where it is not installed."""
    if find_spec("py3langid") is None:
        raise InputError("a second opinion needs py3langid, which is not installed: pip install 'glotloom[fast]'")
    return f"py3langid {version('py3langid')}"


@functools.cache
def known_languages() -> tuple[str, ...]:
    """All that can be identified, ISO 639-1, sorted."""
    names = _factory("langdetect_rs" if _RUST else "langdetect").get_lang_list()
    return tuple(sorted({name[:2] for name in names} | set(_OWN_LETTERS) - {UNDETERMINED}))


def _probabilities(text: str, languages: tuple[str, ...], backend: str) -> list[Any]:
    """What langdetect holds to be likely; nothing for a script of which it knows no language."""
    detector = _factory(backend).create()
    detector.seed = _SEED
    detector.prior_map = list(_prior(languages, backend))
    detector.append(text)
    try:
        found: list[Any] = detector.get_probabilities()
    except (LangDetectException, _factory_module(backend).LangDetectException):
        return []
    return found


def _by_script(text: str, letters: int) -> Identified | None:
    """Kana is Japanese, Hangul Korean, mostly Han Chinese; a third of the letters settles it, since each of them says more."""
    kana, hangul, han = (len(p.findall(text)) for p in (_KANA, _HANGUL, _HAN))
    if kana + hangul + han < _MIN_HAN or 3 * (kana + hangul + han) < letters:
        return None
    if 10 * kana > han + kana:
        return Identified("ja", 1.0)
    return Identified("ko", 1.0) if hangul > han else Identified("zh", 1.0)


def _by_own_letters(text: str, letters: int) -> str | None:
    """Of Cyrillic text: a language whose own letters stand there three times as often as those of any other."""
    if 2 * len(_CYRILLIC.findall(text)) < letters:
        return None
    counts = {language: len(own.findall(text)) for language, own in _OWN_LETTERS.items()}
    for wider in ("be", UNDETERMINED):
        if counts[wider] > 1 or (counts[wider] and letters < _ENOUGH_LETTERS):
            counts[wider] += counts.pop("uk", 0) + counts.pop("ru", 0)
    language, count = max(counts.items(), key=lambda item: item[1])
    return language if count and count >= 3 * (sum(counts.values()) - count) else None


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _pieces(text: str) -> str:
    """The beginning, the middle and the end of a long text say as much of its language as all of it."""
    if len(text) <= 3 * _PIECE:
        return text
    middle = (len(text) - _PIECE) // 2
    return " ".join((text[:_PIECE], text[middle : middle + _PIECE], text[-_PIECE:]))


@functools.cache
def _second() -> Any:
    module = import_module("py3langid.langid")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE)


@functools.cache
def _factory_module(backend: str) -> Any:
    return import_module(f"{backend}.detector_factory")


@functools.cache
def _factory(backend: str) -> Any:
    factory = _factory_module(backend).DetectorFactory()
    # Not `load_profile`: it takes the files as the disk lists them, and the last digits of a score depend on the order.
    profiles = sorted(Path(detector_factory.PROFILES_DIRECTORY).glob("[!.]*"))
    factory.load_json_profile([profile.read_text("utf-8") for profile in profiles])
    return factory


@functools.cache
def _prior(languages: tuple[str, ...], backend: str) -> list[float]:
    """As `set_prior_map` makes it of weights by language, which takes longer than the detection."""
    detector = _factory(backend).create()
    detector.set_prior_map({name: 1.0 if name[:2] in languages else _PRIOR_OUTSIDE for name in detector.langlist})
    prior: list[float] = detector.prior_map
    return prior
