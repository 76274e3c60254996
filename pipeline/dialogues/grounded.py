"""UltraLink's knowledge-grounded dialogue: a question about a passage, its answer, then follow-ups, each of them gated."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from pipeline.dialogues.evidence import Evidence
from pipeline.dialogues.gates import (
    MIN_GROUNDED_SHARE,
    IsLanguage,
    answer_fault,
    instruction_to_model,
    passage_fault,
    question_fault,
)
from pipeline.dialogues.prompts import Ask, Attempt, Kind, Prompts, TemplatePrompts, unquoted
from pipeline.dialogues.small_teacher import SmallTeacherPrompts
from pipeline.errors import InputError
from pipeline.languages import Language
from pipeline.rows.sample import Message, Passage
from pipeline.teacher import Answer, TeacherClient, TeacherError
from pipeline.teacher.batch import Refused, in_order

STOP_PROBABILITIES = (0.1, 0.2, 0.4, 0.8)
"""After each follow-up (UltraLink); after a fifth the dialogue ends: 2 to 6 turns, 4.1 on average."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """User and assistant in turn; every question and every answer passed its gates."""

    messages: tuple[Message, ...]
    request_keys: tuple[str, ...]
    """Of all requests the dialogue rests on, in order, those that led to a rejected turn too."""
    decisions: tuple[str, ...]
    prompt_version: str


def grounded_dialogues(
    passages: Iterable[Passage],
    language: Language,
    client: TeacherClient,
    *,
    seed: int,
    count: int,
    closed_book: bool = False,
    is_language: IsLanguage | None = None,
    min_grounded: float = MIN_GROUNDED_SHARE,
) -> AsyncIterator[tuple[Passage, Dialogue | Refused]]:
    """Outcomes in the passages' order until `count` dialogues are made (`in_order`)."""

    async def write(passage: Passage) -> Dialogue | Refused:
        return await grounded_dialogue(
            passage,
            language,
            client,
            seed=seed,
            closed_book=closed_book,
            is_language=is_language,
            min_grounded=min_grounded,
        )

    return in_order(passages, write, slots=client.max_concurrency, count=count, worth=lambda o: isinstance(o, Dialogue))


async def grounded_dialogue(
    passage: Passage,
    language: Language,
    client: TeacherClient,
    *,
    seed: int,
    closed_book: bool = False,
    is_language: IsLanguage | None = None,
    min_grounded: float = MIN_GROUNDED_SHARE,
) -> Dialogue | Refused:
    """One passage's dialogue. `closed_book`: asked with the document, answered without, hence not held against it."""
    if reason := passage_fault(passage.title, language) or passage_fault(passage.text, language):
        return Refused(reason=reason)
    prompts = _prompts(language, client)
    writer = _Writer(
        passage, language, client, prompts, closed_book=closed_book, is_language=is_language, min_grounded=min_grounded
    )
    if instruction := instruction_to_model(f"{passage.title}\n{passage.text}", language):
        writer.decisions.append(f"flagged: the passage speaks to a model: {instruction!r}")
    try:
        for number, kind in enumerate(_plan(_draw(seed, passage.id)), 1):
            reason = await writer.add_turn(kind, _draw(seed, passage.id, number))
            if reason and not writer.turns:
                return Refused(reason=reason, detail=writer.detail, request_keys=tuple(writer.request_keys))
            if reason:
                break
    except TeacherError as error:
        return Refused(reason="teacher_failed", detail=str(error), request_keys=tuple(writer.request_keys), fault=error.status)
    return Dialogue(
        messages=tuple(writer.turns),
        request_keys=tuple(writer.request_keys),
        decisions=tuple(writer.decisions),
        prompt_version=prompts.version,
    )


class _Writer:
    """A dialogue in the making."""

    def __init__(
        self,
        passage: Passage,
        language: Language,
        client: TeacherClient,
        prompts: Prompts,
        *,
        closed_book: bool,
        is_language: IsLanguage | None,
        min_grounded: float,
    ) -> None:
        self.turns: list[Message] = []
        self.request_keys: list[str] = []
        self.decisions: list[str] = []
        self.detail = ""
        self._passage = passage
        self._language = language
        self._client = client
        self._prompts = prompts
        self._closed_book = closed_book
        self._is_language = is_language
        self._min_grounded = min_grounded
        self._evidence = Evidence(f"{passage.title}\n{passage.text}", frozenset(language.rules.function_words))

    async def add_turn(self, kind: Kind, draw: Random) -> str | None:
        """Add a question and its answer, or the reason why none of the attempts passed."""
        turn = f"turn {len(self.turns) // 2 + 1} {kind}"
        reason: str | None = "no_attempt"
        for attempt in self._prompts.attempts(self._passage, kind, tuple(self.turns), draw):
            reason = await self._try(attempt)
            if reason is None:
                share = self._evidence.share(self.turns[-1].content)
                self.decisions.append(f"{turn}: kept, {share:.2f} of the answer's rare words are in the passage")
                return None
            self.decisions.append(f"{turn}: {reason}")
        return reason

    async def _try(self, attempt: Attempt) -> str | None:
        earlier = [turn.content for turn in self.turns]
        question = unquoted((await self._ask(attempt.question)).text)
        self.detail = question
        reason = question_fault(
            question,
            passage=self._evidence,
            language=self._language,
            earlier=earlier[::2],
            is_language=self._is_language,
        ) or attempt.question_fault(question)
        if reason:
            return reason
        asked = Message("user", question)
        closed_book = Ask(messages=(*self.turns, asked))
        answer = await self._ask(closed_book if self._closed_book else attempt.answer_to(question))
        self.detail = f"{question} – {answer.text}"
        reason = answer_fault(
            answer.text,
            question,
            finish_reason=answer.finish_reason,
            passage=None if self._closed_book else self._evidence,
            language=self._language,
            earlier=earlier[1::2],
            is_language=self._is_language,
            min_grounded=self._min_grounded,
        ) or (None if self._closed_book else attempt.answer_fault(question, answer.text))
        if reason is None:
            self.turns += [asked, Message("assistant", answer.text)]
        return reason

    async def _ask(self, ask: Ask) -> Answer:
        answer = await self._client.ask(ask.messages, max_tokens=ask.max_tokens, parameters=ask.parameters)
        self.request_keys.append(answer.request_key)
        return answer


def _prompts(language: Language, client: TeacherClient) -> Prompts:
    if not client.small:
        return TemplatePrompts(language)
    if language.code != "en":
        raise InputError(
            f"teacher {client.name!r} is the embedded one, which knows English only: give {language.name} another teacher"
        )
    return SmallTeacherPrompts(language)


def _plan(draw: Random) -> Sequence[Kind]:
    kinds: list[Kind] = ["question"]
    for stop in (*STOP_PROBABILITIES, 1.0):
        kinds.append("depth" if draw.random() < 0.5 else "width")
        if draw.random() < stop:
            break
    return kinds


def _draw(seed: int, *parts: object) -> Random:
    """A generator of its own for every passage and turn: neither order nor concurrency changes what it draws."""
    return Random(hashlib.sha256(repr((seed, *parts)).encode()).digest())
