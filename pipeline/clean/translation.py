"""Checks of a translation that need no model: what must come through unchanged, does it?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pipeline.sample import Sample

_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d+)?(?!\d)|\d+(?:[.,]\d+)*")
_LATEX = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$|\\\[.+?\\\]|\\\(.+?\\\)", re.DOTALL)
_FENCE = re.compile(r"```(\w*)[^\n]*\n(.*?)```", re.DOTALL)
_COMMENT_OR_STRING = re.compile(r"#[^\n]*|//[^\n]*|--[^\n]*|\"\"\".*?\"\"\"|'''.*?'''|\"[^\"\n]*\"|'[^'\n]*'", re.DOTALL)
_FINAL = re.compile(r"^####\s*(.+?)\s*$", re.MULTILINE)


def translation_fault(original: Sample, translation: Sample) -> tuple[str, str] | None:
    """`(reason, detail)` of the first thing that a faithful translation would have kept and this one has not, or None.

    Turn by turn: roles; the final `#### n`; fenced code apart from comments and strings; LaTeX; the multiset of numbers
    outside code, decimal and thousands marks aside (`4.5` is `4,5`).
    """
    if [m.role for m in original.messages] != [m.role for m in translation.messages]:
        return "translation_turns_differ", f"{len(original.messages)} turns, {len(translation.messages)} translated"
    for ours, theirs in zip(original.messages, translation.messages, strict=True):
        a, b = ours.content, theirs.content
        for reason, found_a, found_b in (
            ("translation_result_differs", _results(a), _results(b)),
            ("translation_code_differs", _code(a), _code(b)),
            ("translation_latex_differs", Counter(_LATEX.findall(a)), Counter(_LATEX.findall(b))),
            ("translation_numbers_differ", _numbers(a), _numbers(b)),
        ):
            if found_a != found_b:
                return reason, _difference(found_a, found_b)
    return None


def _code(text: str) -> list[tuple[str, str]]:
    return [(tag, re.sub(r"\s+", " ", _COMMENT_OR_STRING.sub("", body)).strip()) for tag, body in _FENCE.findall(text)]


def _numbers(text: str) -> Counter[str]:
    outside = _LATEX.sub(" ", _FENCE.sub(" ", text))
    return Counter(_plain(number) for number in _NUMBER.findall(outside))


def _results(text: str) -> list[str]:
    return [_NUMBER.sub(lambda number: _plain(number[0]), result) for result in _FINAL.findall(text)]


def _plain(number: str) -> str:
    """`1,250,000`, `1.250.000` and `1 250 000` as `1250000`, `4,5` as `4.5`; `1.250` may be either and counts as the first."""
    whole, *groups = re.split(r"[.,]", re.sub(r"\s", "", number))
    if groups and len(groups[-1]) != 3:
        return "".join([whole, *groups[:-1]]) + "." + groups[-1]
    return "".join([whole, *groups])


def _difference(a: Counter[str] | Sequence[object], b: Counter[str] | Sequence[object]) -> str:
    if isinstance(a, Counter) and isinstance(b, Counter):
        return f"only in the original: {sorted((a - b).elements())}; only in the translation: {sorted((b - a).elements())}"
    return f"{a!r} became {b!r}"[:300]
