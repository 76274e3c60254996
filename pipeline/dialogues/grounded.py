"""UltraLink's knowledge-grounded dialogue: a question about a passage, its answer, then follow-ups, each of them gated."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
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
from pipeline.dialogues.prompts import Ask, Attempt, Kind, Prompts, TemplatePrompts
from pipeline.dialogues.small_teacher import SmallTeacherPrompts
from pipeline.errors import InputError, WorkError
from pipeline.languages import Language
from pipeline.sample import Message, Passage
from pipeline.teacher import Answer, BudgetError, TeacherClient, TeacherError

STOP_PROBABILITIES = (0.1, 0.2, 0.4, 0.8)
"""After each follow-up (UltraLink); after a fifth the dialogue ends: 2 to 6 turns, 4.1 on average."""
HOPELESS_FAILURES = 10
"""So many passages in a row that fail with one and the same error: the teacher is gone, the list need not be burnt."""
_AHEAD = 8  # times as many dialogues as are made at once may be done and wait for an earlier one


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """User and assistant in turn; every question and every answer passed its gates."""

    messages: tuple[Message, ...]
    request_keys: tuple[str, ...]
    """Of all requests the dialogue rests on, in order, those that led to a rejected turn too."""
    decisions: tuple[str, ...]
    prompt_version: str


@dataclass(frozen=True, kw_only=True)
class Refused:
    """No dialogue: the reason that dropped the first turn, or `teacher_failed`, which the next run tries again."""

    reason: str
    detail: str = ""
    request_keys: tuple[str, ...] = ()
    fault: int | None = None
    """The status of the teacher's error; its words may differ from one to the next."""


async def grounded_dialogues(
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
    """Outcomes in the passages' order until `count` dialogues are made; later passages may have been asked for nothing.

    Which passages are used depends on their order and the answers alone, never on timing or concurrency. WorkError when
    `HOPELESS_FAILURES` passages in a row (or all there are) fail with one error.
    """
    waiting = iter(passages)
    in_order: deque[tuple[Passage, asyncio.Task[Dialogue | Refused]]] = deque()
    under_way: set[asyncio.Task[Dialogue | Refused]] = set()
    # Some more than slots: between its answer and its next question, and while it waits to try again, a dialogue needs none.
    at_once = client.max_concurrency + max(1, client.max_concurrency // 4)
    made = ready = 0
    failures = _Failures()

    def start_more() -> None:
        # Twice what is still wanted at most: what overshoots is paid for and thrown away. Behind enough dialogues that only
        # wait for an earlier one, nothing can be wanted.
        while made + ready < count and len(under_way) < at_once and len(in_order) < min(_AHEAD * at_once, 2 * (count - made)):
            if (passage := next(waiting, None)) is None:
                return
            work = grounded_dialogue(
                passage,
                language,
                client,
                seed=seed,
                closed_book=closed_book,
                is_language=is_language,
                min_grounded=min_grounded,
            )
            task = asyncio.create_task(work)
            under_way.add(task)
            task.add_done_callback(end)
            in_order.append((passage, task))

    def end(task: asyncio.Task[Dialogue | Refused]) -> None:
        nonlocal ready
        under_way.discard(task)
        ready += _is_dialogue(task)
        if not ending:
            start_more()

    ending = False
    try:
        start_more()
        while in_order:
            passage, task = in_order.popleft()
            outcome = await task
            made += isinstance(outcome, Dialogue)
            ready -= isinstance(outcome, Dialogue)
            start_more()
            failures.count(outcome, is_last=not in_order)
            yield passage, outcome
            if made >= count:
                return
    except BudgetError:
        ending = True
        await asyncio.gather(*under_way, return_exceptions=True)  # what is asked is paid for: its answers are kept
        raise
    finally:
        ending = True
        for _, task in in_order:
            task.cancel()
        await asyncio.gather(*(task for _, task in in_order), return_exceptions=True)


def _is_dialogue(task: asyncio.Task[Dialogue | Refused]) -> bool:
    return not task.cancelled() and task.exception() is None and isinstance(task.result(), Dialogue)


class _Failures:
    """Counts passages that fail in a row with one kind of error, and calls the run off when there is no hope."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._fault: int | None = None
        self._outcomes = 0

    def count(self, outcome: Dialogue | Refused, *, is_last: bool) -> None:
        refused = outcome if isinstance(outcome, Refused) and outcome.reason == "teacher_failed" else None
        fault = refused.fault if refused else None
        self._in_a_row = self._in_a_row + 1 if refused and fault == self._fault else int(refused is not None)
        self._fault = fault
        self._outcomes += 1
        if refused and (self._in_a_row >= HOPELESS_FAILURES or (is_last and self._in_a_row == self._outcomes)):
            raise WorkError(f"{self._in_a_row} passages in a row failed alike, nothing more is asked: {refused.detail}")


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


def unquoted(text: str) -> str:
    """The text without the quotation marks that some models put around all they say."""
    text = text.strip()
    pairs = ('""', "“”", "«»", "''", "「」", "『』", "„“")
    if len(text) > 2 and text[0] + text[-1] in pairs and text[0] not in text[1:-1] and text[-1] not in text[1:-1]:
        return text[1:-1].strip()
    return text


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
