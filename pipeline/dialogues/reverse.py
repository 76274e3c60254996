"""Reverse instructions (MURI, 2025): a native, human-written passage is the answer, the instruction is made for it.

The instruction comes from the article's title and the section's heading through a template of the language; consecutive
sections make the turns of one dialogue. No model takes part, so every answer is as true as its source. Where a recipe names a
teacher, it writes the instruction; one that fails a gate gives way to the template's.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.dialogues.evidence import Evidence
from pipeline.dialogues.gates import IsLanguage, answer_misses_question, question_fault
from pipeline.dialogues.prompts import TemplatePrompts, fill, unquoted
from pipeline.files import content_hash
from pipeline.languages import Language
from pipeline.rows.sample import Message, Passage, Section
from pipeline.teacher import TeacherClient
from pipeline.text.tokens import estimate_tokens

MIN_ANSWER_TOKENS = 20
MAX_ANSWER_TOKENS = 600
# How many sections a dialogue takes: about the spread of chat data, where half of the dialogues go on.
_TURNS = (1, 2, 3)
_TURN_WEIGHTS = (30, 45, 25)

_LIST_ITEM = re.compile(r"^(- |\d+\. )")


@dataclass(frozen=True)
class ReverseDialogue:
    """One dialogue and the headings that its answers stand under."""

    messages: tuple[Message, ...]
    headings: tuple[str, ...]
    request_keys: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    prompt_version: str = ""


def reverse_dialogues(passage: Passage, language: Language, seed: int, left_out: Counter[str]) -> Iterator[ReverseDialogue]:
    """Dialogues over all usable sections of a passage, each section in one turn; `left_out` counts what is no answer and why."""
    draw = random.Random(content_hash(seed, passage.id))
    turns = list(_answers(passage, left_out))
    while turns:
        length = draw.choices(_TURNS, _TURN_WEIGHTS)[0]
        taken, turns = turns[:length], turns[length:]
        yield _dialogue(passage.title, taken, language, draw)


async def with_written_instructions(
    dialogue: ReverseDialogue,
    passage: Passage,
    language: Language,
    client: TeacherClient,
    is_language: IsLanguage | None = None,
) -> ReverseDialogue:
    """The dialogue with the questions that a teacher, shown one answer at a time, says it answers; TeacherError as `ask` has it.

    A question has to pass the gates of grounded dialogues against its answer; otherwise the template's stays.
    """
    prompts = TemplatePrompts(language)
    function_words = frozenset(language.rules.function_words)
    messages: list[Message] = []
    keys: list[str] = []
    decisions: list[str] = []
    answers = zip(dialogue.messages[::2], dialogue.messages[1::2], dialogue.headings, strict=True)
    for number, (template, answer, heading) in enumerate(answers, 1):
        shown = replace(passage, sections=(Section(heading, answer.content),))
        attempt = next(prompts.attempts(shown, "question", (), random.Random(0)))
        said = await client.ask(attempt.question.messages, max_tokens=attempt.question.max_tokens)
        keys.append(said.request_key)
        question = unquoted(said.text)
        fault = question_fault(
            question,
            passage=Evidence(f"{passage.title}\n{answer.content}", function_words),
            language=language,
            earlier=[turn.content for turn in messages[::2]],
            is_language=is_language,
        ) or answer_misses_question(answer.content, question, language)
        decisions.append(f"turn {number}: {f'{fault}, the template stays' if fault else 'the teacher wrote the instruction'}")
        messages += [template if fault else Message("user", question), answer]
    return replace(
        dialogue,
        messages=tuple(messages),
        request_keys=tuple(keys),
        decisions=tuple(decisions),
        prompt_version=prompts.version,
    )


def _answers(passage: Passage, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """`(heading, answer)` of the sections that can stand as one."""
    for number, section in enumerate(passage.sections):
        answer = _cut(section.text)
        if not section.heading and (number or passage.position):
            left_out["section_without_heading"] += 1
        elif _is_list(answer):
            left_out["section_is_a_list"] += 1
        elif estimate_tokens(answer) < MIN_ANSWER_TOKENS:
            left_out["section_too_short"] += 1
        else:
            left_out["section_cut"] += answer != section.text
            yield section.heading, answer


def _cut(text: str) -> str:
    """The first paragraphs, up to the longest answer; a last one that announces something that is gone (a table) goes too."""
    kept: list[str] = []
    tokens = 0
    for paragraph in text.split("\n\n"):
        tokens += estimate_tokens(paragraph)
        if kept and tokens > MAX_ANSWER_TOKENS:
            break
        kept.append(paragraph)
    while kept and kept[-1].rstrip().endswith((":", "：")):
        kept.pop()
    return "\n\n".join(kept)


def _is_list(text: str) -> bool:
    """Whether most of the text's characters are in list items."""
    items = sum(len(line) for line in text.split("\n") if _LIST_ITEM.match(line))
    return 2 * items > len(text)


def _dialogue(title: str, turns: Sequence[tuple[str, str]], language: Language, draw: random.Random) -> ReverseDialogue:
    templates = language.reverse
    follow_ups = draw.sample(templates.follow_up, len(turns))
    messages: list[Message] = []
    for number, (heading, answer) in enumerate(turns):
        first = templates.section if heading else templates.opening
        question = follow_ups[number] if number else draw.choice(first)
        messages += [Message("user", fill(question, {"title": title, "section": heading})), Message("assistant", answer)]
    return ReverseDialogue(tuple(messages), tuple(heading for heading, _ in turns))
