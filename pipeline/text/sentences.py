"""Where sentences end, in any script: the signs, and text cut at them."""

from __future__ import annotations

import re

STOPS = ".!?।॥؟"
"""End a sentence where a space follows."""
UNSPACED_STOPS = "。！？"
"""End one wherever they stand, but before a closing quotation mark or bracket."""
ELLIPSIS = "…"

_END = re.compile(rf"(?<=[{UNSPACED_STOPS}])(?![」』”’）])|(?<=[{STOPS}{ELLIPSIS}])[\"”’»)]*\s+|\n+")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[^\W\d_]|[A-ZА-ЯІЇЄҐ]\w)\.$")


def sentences(text: str) -> list[str]:
    """The text cut after sentence ends; `J.` and `St.` end none, nor does a stop before a small letter."""
    cut: list[str] = []
    start = 0
    for end in _END.finditer(text):
        piece = text[start : end.end()].strip()
        following = text[end.end() : end.end() + 1]
        goes_on = following.islower() or following in ("—", "–") or _ABBREVIATION.search(piece)
        if goes_on and "\n" not in end.group():
            continue
        if piece:
            cut.append(piece)
        start = end.end()
    return [*cut, text[start:].strip()] if text[start:].strip() else cut
