"""How a teacher is asked for the turns of a dialogue: one request for one question or one answer, in plain text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Literal, Protocol

from pipeline.files import content_hash
from pipeline.languages import Language
from pipeline.rows.sample import Message, Passage

Kind = Literal["question", "depth", "width"]
"""The first question, or a follow-up that digs into the dialogue or broadens it (UltraLink)."""

QUESTION_MAX_TOKENS = 96

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request; `parameters` are added to the client's own."""

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _no_fault(*_: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way to get a turn: a question, the answer to it, and gates of its own beside the common ones."""

    question: Ask
    answer_to: Callable[[str], Ask]
    question_fault: Callable[[str], str | None] = _no_fault
    answer_fault: Callable[[str, str], str | None] = _no_fault
    """Given question and answer."""


class Prompts(Protocol):
    """A way of asking; `version` names it in every row's lineage."""

    version: str

    def attempts(self, passage: Passage, kind: Kind, turns: Sequence[Message], draw: Random) -> Iterator[Attempt]:
        """Ways to get the next turn, tried in order until one passes the gates."""
        ...


class TemplatePrompts:
    """The prompts of a language's file, for teachers that follow instructions.

    The document stands in the system message, which is thus the common prefix of all requests of a passage (servers cache
    it) and never a user's turn. An answer is asked for after the dialogue so far, so that "it" has somebody to refer to.
    """

    def __init__(self, language: Language) -> None:
        self._templates = language.grounded
        self.version = content_hash(asdict(language.grounded))

    def attempts(self, passage: Passage, kind: Kind, turns: Sequence[Message], draw: Random) -> Iterator[Attempt]:
        t = self._templates
        template = {"question": t.question, "depth": t.depth, "width": t.width}[kind]
        slots = {"title": passage.title, "passage": passage.text, "dialogue": _written_out(turns)}
        system = Message("system", fill(t.system, slots))

        def answer_to(question: str) -> Ask:
            return Ask(messages=(system, *turns, Message("user", fill(t.answer, slots | {"question": question}))))

        question = Ask(messages=(system, Message("user", fill(template, slots))), max_tokens=QUESTION_MAX_TOKENS)
        yield Attempt(question=question, answer_to=answer_to)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Every known `{slot}` replaced in one pass: a passage that holds `{question}` stays data."""
    return _SLOT.sub(lambda slot: slots.get(slot[1], slot[0]), template)


def unquoted(text: str) -> str:
    """The text without the quotation marks that some models put around all they say."""
    text = text.strip()
    pairs = ('""', "“”", "«»", "''", "「」", "『』", "„“")
    if len(text) > 2 and text[0] + text[-1] in pairs and text[0] not in text[1:-1] and text[-1] not in text[1:-1]:
        return text[1:-1].strip()
    return text


def _written_out(turns: Sequence[Message]) -> str:
    """The dialogue as paragraphs, question and answer in turn; dashes instead of words, which would need a language."""
    return "\n\n".join(f"– {turn.content}" for turn in turns)
