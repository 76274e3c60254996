"""Row-local rules: a conversation's form, the language of its turns, and answers that are none.

A rule returns `(reason, detail)` or None.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable

from pipeline.clean.own_rules import Place, own_rules
from pipeline.engine.step import Context, Decisions, Drop
from pipeline.languages import load_language
from pipeline.rows.sample import Sample, sample_from_row
from pipeline.rows.tables import TextTable
from pipeline.text.identify import mask, mixed_in, other_language
from pipeline.text.marks import CONTROL_MARK, STRIKE_TAGS
from pipeline.text.sentences import ELLIPSIS, STOPS, UNSPACED_STOPS

# A sentence said this often, or filling half of an answer of several sentences, is a loop.
_LOOP = 3
_MIXED = 1 / 3
_SENTENCE = re.compile(rf"[^{STOPS}{UNSPACED_STOPS}\n]+[{STOPS}{UNSPACED_STOPS}\n]?")
_ENDS = re.compile(rf"[{STOPS}{UNSPACED_STOPS}{ELLIPSIS}:：)\]}}）】」』“”\"’'»«`*$][\s\u200e\u200f]*$")
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s")
# Code that ends: what stands after a fence that is never closed is looked at. Not `mask`, which takes out what stands between two
# dollar signs as well.
_CODE = re.compile(r"```.*?```|(?<!`)`[^`\n]+`(?!`)", re.DOTALL)

Rule = Callable[[Sample], tuple[str, str] | None]


def decide_by_rules(
    table: TextTable, context: Context, *, languages: tuple[str, ...], min_answer_characters: int, own: tuple[Place, ...] = ()
) -> Decisions:
    """Drops rows by the first rule that finds a fault, and notes that the others are in their language."""
    rules = [*row_rules(languages, min_answer_characters), *own_rules(own)]
    drops: list[Drop] = []
    notes: list[str | None] = []
    for batch in table.batches():
        for raw in batch.to_pylist():
            sample = sample_from_row(raw)
            if fault := next((fault for rule in rules if (fault := rule(sample))), None):
                drops.append((len(notes), fault[0], "", None, fault[1]))
            notes.append(f"every turn that is long enough to tell is in {sample.language}")
    return Decisions.of(drops, notes)


def row_rules(languages: tuple[str, ...], min_answer_characters: int) -> list[Rule]:
    """The rules in the order in which they are asked; the first reason counts."""
    return [
        turns_alternate,
        turns_have_no_control_marks,
        functools.partial(answers_are_there, min_answer_characters=min_answer_characters),
        answers_do_not_refuse,
        answers_do_not_loop,
        answers_are_whole,
        functools.partial(turns_are_in_language, languages=languages),
        functools.partial(answers_do_not_mix, languages=languages),
    ]


def turns_alternate(sample: Sample) -> tuple[str, str] | None:
    """An optional system turn, then user and assistant in turn, the assistant last, nothing empty on the user's side."""
    roles = [m.role for m in sample.messages]
    if roles[:1] == ["system"]:
        del roles[0]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        return "turns_do_not_alternate", " ".join(roles) or "no turn"
    if any(not m.content.strip() for m in sample.messages if m.role == "user"):
        return "question_empty", ""
    return None


def turns_have_no_control_marks(sample: Sample) -> tuple[str, str] | None:
    """No turn has a chat template's mark, which could forge another turn; the system turn is number 0.

    What stands in code may: a row that explains chat templates quotes their marks there. In rows of the task code `<s>` is HTML.
    """
    allowed = STRIKE_TAGS if sample.task == "code" else frozenset()
    first = 0 if sample.messages[0].role == "system" else 1
    for number, message in enumerate(sample.messages, first):
        for found in CONTROL_MARK.findall(_CODE.sub("` `", message.content)):
            if found.lower() not in allowed:
                return "control_marks", f"{found} in turn {number}"
    return None


def answers_are_there(sample: Sample, *, min_answer_characters: int) -> tuple[str, str] | None:
    """Every answer has at least so many characters; the short form of a sum is an answer (`#### 4`)."""
    for answer in _answers(sample):
        if not answer.strip():
            return "answer_empty", ""
        if len(answer.strip()) < min_answer_characters and not re.search(r"\d", answer):
            return "answer_too_short", f"{len(answer.strip())} characters"
    return None


def answers_do_not_refuse(sample: Sample) -> tuple[str, str] | None:
    """No answer is a refusal in the row's language."""
    for pattern in _refusals(sample.language):
        for answer in _answers(sample):
            if found := pattern.search(answer[:400]):
                return "answer_refuses", found[0]
    return None


@functools.cache
def _refusals(language: str) -> list[re.Pattern[str]]:
    return [re.compile(pattern, re.IGNORECASE) for pattern in load_language(language).rules.refusal]


def answers_do_not_loop(sample: Sample) -> tuple[str, str] | None:
    """No answer says one longer sentence again and again; code may."""
    for answer in _answers(sample):
        sentences = [s.strip().casefold() for s in _SENTENCE.findall(mask(answer))]
        counts = Counter(s for s in sentences if len(s) >= 15)  # shorter ones recur in worked sums
        sentence, count = counts.most_common(1)[0] if counts else ("", 0)
        if count >= _LOOP:
            return "answer_repeats_itself", f"{count} × {sentence[:60]!r}"
    return None


def answers_are_whole(sample: Sample) -> tuple[str, str] | None:
    """The last line of the last answer ends like a sentence, a list item, code, or a result (`#### 12`)."""
    lines = sample.answer.rstrip().splitlines()
    last = lines[-1] if lines else ""
    if sample.answer.count("```") % 2:
        return "answer_breaks_off", "a code fence is open"
    if (
        _ENDS.search(last)
        or _LIST_ITEM.match(last)
        or last.startswith("####")
        or re.search(r"\d\s*$", last)
        or sample.task == "code"
    ):
        return None
    return "answer_breaks_off", last[-60:]


def turns_are_in_language(sample: Sample, *, languages: tuple[str, ...]) -> tuple[str, str] | None:
    """No turn is surely in another language than the row's; code, LaTeX and URLs do not count, nor what is too short to say."""
    for number, message in enumerate(m for m in sample.messages if m.role != "system"):
        if found := other_language(message.content, sample.language, languages):
            side = "question" if message.role == "user" else "answer"
            return f"{side}_in_other_language", f"turn {number + 1} is in {found.language} ({found.score:.2f})"
    return None


def answers_do_not_mix(sample: Sample, *, languages: tuple[str, ...]) -> tuple[str, str] | None:
    """No answer is for more than a third surely in another language; a quotation or an example in one is less than that."""
    for answer in _answers(sample):
        language, share = mixed_in(answer, sample.language, languages)
        if share > _MIXED:
            return "answer_mixes_languages", f"{share:.0%} in {language}"
    return None


def _answers(sample: Sample) -> list[str]:
    return [m.content for m in sample.messages if m.role == "assistant"]
