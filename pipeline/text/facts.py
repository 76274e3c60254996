"""What a translation keeps: numbers, URLs and code; two texts that differ in them do not say the same.

Languages write one number in several ways: `1,250.5` and `1 250,5`, `66 million` and `6600万`, `5 pm` and `17 h`, `the 1980s`
and `80年代`, `1700s` and `XVIII`, `3` and `three`. None of these makes a difference here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

_URL = re.compile(r"https?://[^\s<>\"')\]，。）」]+")
_FENCE = re.compile(r"```(\w*+)[^\n`]*+\n(.*?)```", re.DOTALL)
_COMMENT_OR_STRING = re.compile(r"#[^\n]*|//[^\n]*|--[^\n]*|\"\"\".*?\"\"\"|'''.*?'''|\"[^\"\n]*\"|'[^'\n]*'", re.DOTALL)
_NUMBER = re.compile(
    r"(?=[\d.])"  # five times as fast
    r"(?:(?<![\d.,])\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d+)?(?!\d)|(?:(?<![\w.])\.)?\d+(?:[.,:]\d+)*[万亿萬億]?)"
)
_ROMAN = re.compile(r"(?<![A-Za-z])(?=[IVXL]{2})(?:XL|X{0,3})(?:IX|IV|V?I{0,3})(?<=[IVXL])(?![A-Za-z])")
_UNITS = {"万": 4, "萬": 4, "亿": 8, "億": 8}  # powers of ten
_CLOCK = 12
_SPELT_OUT = 20  # larger ones that are not round are written in digits
_ROUND = frozenset({*range(0, 101, 10), 1000, 10**4, 10**5, 10**6})
_SHIFTS = range(2, 13)  # powers of ten
_TRIED = 10_000  # pairs of numbers: of more it takes seconds to find those that are the same
_TOLERATED = 0.2


@dataclass(frozen=True)
class Facts:
    """Of one text."""

    numbers: Counter[float]
    urls: frozenset[str]
    code: tuple[tuple[str, str], ...]
    """Fenced blocks with their tags, without comments, strings and layout."""


def facts(text: str) -> Facts:
    """The numbers outside of code and URLs, the URLs outside of code, and the code."""
    code = tuple(fenced_code(text))
    prose = _FENCE.sub(" ", text)
    urls = frozenset(url.rstrip(".,;:!?") for url in _URL.findall(prose))
    return Facts(Counter(numbers(_URL.sub(" ", prose))), urls, code)


def contradict(a: Facts, b: Facts) -> str | None:
    """`numbers`, `urls` or `code` where one text says there what the other does not, or None."""
    if a.code != b.code:
        return "code"
    if a.urls and b.urls and not a.urls & b.urls:
        return "urls"
    return "numbers" if _numbers_contradict(a.numbers, b.numbers) else None


def _numbers_contradict(a: Counter[float], b: Counter[float]) -> bool:
    """Where each has numbers that the other lacks (of many a fifth), or one lacks more than it has, such as nobody spells out."""
    only_a, only_b = _unmatched(a, b)
    fewer = min(a.total(), b.total())
    if only_a and only_b:
        return max(len(only_a), len(only_b)) > _TOLERATED * fewer
    return sum(not _may_be_spelt_out(number) for number in only_a + only_b) > fewer


def shared_numbers(a: Counter[float], b: Counter[float]) -> int:
    """How many of `a` are in `b` too, in whichever way of writing."""
    return a.total() - len(_unmatched(a, b)[0])


def _unmatched(a: Counter[float], b: Counter[float]) -> tuple[list[float], list[float]]:
    """What each has alone; that a number is said once more is no difference."""
    only_a, only_b = list((a - b).elements()), list((b - a).elements())
    for number in list(only_a) if len(only_a) * len(only_b) <= _TRIED else ():
        if (other := next((n for n in only_b if _same(number, n)), None)) is not None:
            only_a.remove(number)
            only_b.remove(other)
    return [n for n in only_a if n not in b], [n for n in only_b if n not in a]


def _same(one: float, other: float) -> bool:
    low, high = sorted((one, other))
    if low == high or (1 <= low < _CLOCK and high == low + _CLOCK):
        return True
    if low > 0 and _is_shift(high / low):
        return True
    return 10 <= low < 100 and 1000 <= high < 2100 and low in (high % 100, high // 100 + 1)


def _is_shift(ratio: float) -> bool:
    """Whether it is a power of ten from `_SHIFTS`, but for the last digits."""
    return 99 < ratio < math.inf and (power := round(math.log10(ratio))) in _SHIFTS and math.isclose(ratio, 10.0**power)


def _may_be_spelt_out(number: float) -> bool:
    return number <= _SPELT_OUT or number in _ROUND


def numbers(text: str) -> list[float]:
    """The values of all numbers in digits, and of Roman ones of several letters up to 49; times of day as their hours and minutes.

    Whether a mark before three digits at the end (`1.250`) divides thousands or decimals nobody knows: it counts as the first.
    """
    text = unicodedata.normalize("NFKC", text)
    found = [value for number in _NUMBER.findall(text) for value in _values(number)]
    return found + [_roman(match[0]) for match in _ROMAN.finditer(text)]


def _values(number: str) -> list[float]:
    power = _UNITS.get(number[-1], 0)
    digits = re.sub(r"\s", "", number.rstrip("".join(_UNITS)))
    if ":" in digits:
        return [float(part) for part in re.split(r"[.,:]", digits) if float(part or 0)]
    whole, *groups = re.split(r"[.,]", digits)
    if groups and (len(groups[-1]) != 3 or not whole):
        return [float(f"{''.join([whole, *groups[:-1]])}.{groups[-1]}e{power}")]
    return [float(f"{''.join([whole, *groups])}e{power}")]


def _roman(numeral: str) -> float:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in numeral]
    return float(sum(-v if v < following else v for v, following in zip(values, [*values[1:], 0], strict=True)))


def fenced_code(text: str) -> list[tuple[str, str]]:
    """Fenced blocks: tag, and body without comments and strings, white space squeezed."""
    return [(tag, re.sub(r"\s+", " ", _COMMENT_OR_STRING.sub("", body)).strip()) for tag, body in _FENCE.findall(text)]


def without_code(text: str) -> str:
    """The text with fenced blocks taken out."""
    return _FENCE.sub(" ", text)
