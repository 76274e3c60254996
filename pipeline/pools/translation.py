"""Checks of a translation that need no model: what must come through unchanged, does it?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.rows.sample import Message
from pipeline.text.facts import fenced_code, numbers, without_code

Turns = tuple[Message, ...]

_LATEX = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$|\\\[.+?\\\]|\\\(.+?\\\)", re.DOTALL)
_FINAL = re.compile(r"^####\s*(.+?)\s*$", re.MULTILINE)


def translation_fault(original: Turns, translation: Turns) -> tuple[str, str] | None:
    """`(reason, detail)` of the first thing that a faithful translation would have kept and this one has not, or None.

    Turn by turn: roles; the final `#### n`; fenced code apart from comments and strings; LaTeX; the multiset of numbers
    outside code, decimal and thousands marks aside (`4.5` is `4,5`).
    """
    if [m.role for m in original] != [m.role for m in translation]:
        return "translation_turns_differ", f"{len(original)} turns, {len(translation)} translated"
    for ours, theirs in zip(original, translation, strict=True):
        a, b = ours.content, theirs.content
        for reason, found_a, found_b in (
            ("translation_result_differs", _results(a), _results(b)),
            ("translation_code_differs", fenced_code(a), fenced_code(b)),
            ("translation_latex_differs", Counter(_LATEX.findall(a)), Counter(_LATEX.findall(b))),
            ("translation_numbers_differ", _numbers(a), _numbers(b)),
        ):
            if found_a != found_b:
                return reason, _difference(found_a, found_b)
    return None


def _numbers(text: str) -> Counter[float]:
    return Counter(numbers(_LATEX.sub(" ", without_code(text))))


def _results(text: str) -> list[list[float] | str]:
    return [numbers(result) or result for result in _FINAL.findall(text)]


def _difference(a: Counter[Any] | Sequence[object], b: Counter[Any] | Sequence[object]) -> str:
    if isinstance(a, Counter) and isinstance(b, Counter):
        return f"only in the original: {sorted((a - b).elements())}; only in the translation: {sorted((b - a).elements())}"
    return f"{a!r} became {b!r}"[:300]
