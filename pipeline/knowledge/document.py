"""A document of a knowledge source, as its reader hands it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.rows.sample import Section, Source


@dataclass(frozen=True, kw_only=True)
class Document:
    """One page before cleaning. It can be sent to another process, with the function of its source that parses it."""

    id: str
    title: str
    source: Source
    text: str
    parse: Callable[[str], list[Section]]
    skip: str | None = None
    """Why the reader already knows that there is nothing in it (`redirect`, `list_page`, …)."""
    pass_over: bool = False
    """Too many of them to list one by one: the skip is only counted."""

    def sections(self) -> list[Section]:
        """The prose of the text: parsed now, which is the dear part."""
        return self.parse(self.text)
