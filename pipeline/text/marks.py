"""The marks by which chat templates tell turns apart: in a text they could forge a turn when a model reads it or learns from it."""

from __future__ import annotations

import re

CONTROL_MARK = re.compile(
    r"<\|[^|\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<[｜|][^>\n]{1,40}[｜|]>", re.IGNORECASE
)
STRIKE_TAGS = frozenset(["<s>", "</s>"])
"""Beginning and end of a text to some tokenizers, and struck-out words in HTML."""
