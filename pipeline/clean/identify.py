"""Language identification: scripts decide where they can, langdetect (seeded, with a prior on the recipe's languages) elsewhere.

`langdetect-rs` gives langdetect's results, bit for bit, some forty times as fast; where it is installed it is what runs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langdetect import detector_factory
from langdetect.lang_detect_exception import LangDetectException

_RUST = find_spec("langdetect_rs") is not None
BACKEND = f"langdetect-rs {version('langdetect-rs')}" if _RUST else f"langdetect {version('langdetect')}"
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
    probabilities = _probabilities(text, tuple(sorted(languages)), "langdetect_rs" if _RUST else "langdetect")
    best = max(probabilities, key=lambda p: (p.prob, p.lang), default=None)
    return Identified(best.lang[:2], float(best.prob)) if best else Identified(UNDETERMINED, 0.0)


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
