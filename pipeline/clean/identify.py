"""Language identification: scripts decide where they can, langdetect (seeded, with a prior on the recipe's languages) elsewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from langdetect import detector_factory
from langdetect.lang_detect_exception import LangDetectException

BACKEND = "langdetect"
"""Which engine ran; in the configuration, and so the fingerprint, of the stages that drop by it: `passages-*` and `rules`."""

UNDETERMINED = "undetermined"

_MASKED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\\\[.*?\\\]|\\\(.*?\\\)|https?://\S+", re.DOTALL)
_KANA = re.compile(r"[\u3040-\u30ff]")
_HANGUL = re.compile(r"[\uac00-\ud7af]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")

# Shorter texts than this say nothing dependable of their language: letters for alphabets, characters for Han.
_MIN_LETTERS = 20
_MIN_HAN = 4
# The weight of a language outside the recipe against one inside it.
_PRIOR_OUTSIDE = 0.001
_SEED = 0


@dataclass(frozen=True)
class Identified:
    """`language` is ISO 639-1 or `undetermined`; `score` in [0, 1]."""

    language: str
    score: float


def mask(text: str) -> str:
    """The text without code, LaTeX and URLs, which are of no language."""
    return _MASKED.sub(" ", text)


def identify(text: str, languages: Iterable[str]) -> Identified:
    """The language of a text among all that langdetect knows, the given ones preferred; `undetermined` when too short to say."""
    text = mask(text)
    letters = len(_LETTER.findall(text))
    if (found := _by_script(text, letters)) is not None:
        return found
    if letters < _MIN_LETTERS:
        return Identified(UNDETERMINED, 0.0)
    detector = _factory().create()
    detector.seed = _SEED
    detector.set_prior_map(_prior(tuple(sorted(languages))))
    detector.append(text)
    try:
        best = max(detector.get_probabilities(), key=lambda p: (p.prob, p.lang), default=None)
    except LangDetectException:  # a script of which it knows no language
        best = None
    return Identified(best.lang[:2], float(best.prob)) if best else Identified(UNDETERMINED, 0.0)


def _by_script(text: str, letters: int) -> Identified | None:
    """Kana is Japanese, Hangul Korean, mostly Han Chinese; a third of the letters settles it, since each of them says more."""
    kana, hangul, han = (len(p.findall(text)) for p in (_KANA, _HANGUL, _HAN))
    if kana + hangul + han < _MIN_HAN or 3 * (kana + hangul + han) < letters:
        return None
    if 10 * kana > han + kana:
        return Identified("ja", 1.0)
    return Identified("ko", 1.0) if hangul > han else Identified("zh", 1.0)


@functools.cache
def _factory() -> detector_factory.DetectorFactory:
    factory = detector_factory.DetectorFactory()
    # Not `load_profile`: it takes the files as the disk lists them, and the last digits of a score depend on the order.
    profiles = sorted(Path(detector_factory.PROFILES_DIRECTORY).glob("[!.]*"))
    factory.load_json_profile([profile.read_text("utf-8") for profile in profiles])
    detector_factory.DetectorFactory.seed = _SEED
    return factory


@functools.cache
def _prior(languages: tuple[str, ...]) -> dict[str, float]:
    return {name: 1.0 if name[:2] in languages else _PRIOR_OUTSIDE for name in _factory().get_lang_list()}
