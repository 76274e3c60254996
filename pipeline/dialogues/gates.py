"""Which of a teacher's questions and answers may stay. Each gate is pure and returns a named reason, or None to let pass.

Rules gate, models never do: a reason can be looked up, counted and argued with. What is particular to a language comes from
its file; the code knows scripts only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.dialogues.evidence import UNIT, Evidence, alike, content_words, names, numbers
from pipeline.languages import Language, load_language
from pipeline.text.marks import CONTROL_MARK
from pipeline.text.sentences import ELLIPSIS, STOPS, UNSPACED_STOPS, sentences

MIN_ANSWER_CHARACTERS = 10
"""UltraLink's floor; shorter answers ended its dialogues."""
MIN_GROUNDED_SHARE = 0.7
"""Of an answer's rare words, unless the recipe says otherwise. A judgement, made by reading; not yet measured on an able
teacher's answers."""
MIN_QUESTION_TOKENS = 3
MAX_QUESTION_TOKENS = 40

IsLanguage = Callable[[str], bool]

_QUESTION_MARK = re.compile(r"[?？؟]")
_QUESTION_END = re.compile(r"(?:[?？؟]|か。)$")  # in Japanese prose a question needs no mark
_SENTENCE_CLOSED = re.compile(rf"[{STOPS}{UNSPACED_STOPS}{ELLIPSIS}][\"“”’»«」』)）\]\u200e\u200f]*$")
_LIST_MARK = re.compile(r"^\s*(?:[-*•·・#>①-⑳]|\d{1,2}[.)、．](?!\d)|[(（]\d{1,2}[)）])\s*\S", re.MULTILINE)
_FORMATTING = re.compile(r"\*\*|__|```|^\s*#+\s|\n\s*\n\s*\n|</?\w+>", re.MULTILINE)
# A speaker's name before a line too, which a pool's honest transcripts have and a passage or an answer about it has not.
_CONTROL = re.compile(rf"{CONTROL_MARK.pattern}|^[^\S\n]*(?:user|assistant|system|human)\s*:", re.IGNORECASE | re.MULTILINE)
_HAN_PER_WORD, _KANA_PER_WORD = 1.6, 3.0
"""So many characters make about the word that other languages write."""
_RUN, _UNSPACED_RUN = 4, 9  # words, or characters: so many in the same order three times are a loop


def passage_fault(text: str, language: Language) -> str | None:
    """A passage with a chat template's control marks, or the prompt's own, could forge turns; it is not shown to a teacher."""
    before, _, after = language.grounded.system.partition("{passage}")
    fences = (before.strip().rpartition("\n")[2], after.strip().partition("\n")[0])
    forged = any(_closed_up(fence) in _closed_up(text) for fence in fences)
    return "passage_has_control_marks" if forged or _CONTROL.search(text) else None


def _closed_up(text: str) -> str:
    return re.sub(r"[\s=]+", "=", text.casefold())


def instruction_to_model(text: str, language: Language) -> str | None:
    """What of the passage tells a model what to do, in the language or in English: data like the rest, but worth a look."""
    patterns = (*language.rules.instructs_model, *load_language("en").rules.instructs_model)
    match = next(filter(None, (re.search(pattern, text, re.IGNORECASE) for pattern in patterns)), None)
    return match[0] if match else None


def question_fault(
    question: str,
    *,
    passage: Evidence,
    language: Language,
    earlier: Sequence[str] = (),
    is_language: IsLanguage | None = None,
) -> str | None:
    """Why this question cannot stand in a dialogue about the passage, or None. `earlier`: the questions before it."""
    return (
        _question_form(question)
        or _question_alone(question, language, first=not earlier)
        or ("question_wrong_language" if is_language and not is_language(question) else None)
        or question_topic(question, passage)
        or question_repeats(question, earlier, language)
    )


def _question_form(question: str) -> str | None:
    if not question.strip():
        return "question_empty"
    length = _length_in_words(question)
    if _CONTROL.search(question) or _FORMATTING.search(question):
        return "question_not_plain"
    if len(_QUESTION_MARK.findall(question)) > 1 or "\n" in question.strip() or _LIST_MARK.search(question):
        return "several_questions"
    if not _QUESTION_END.search(question.rstrip('"“”’»«」』 \u200e\u200f\u061c')):
        return "question_not_a_question"
    if length < MIN_QUESTION_TOKENS:
        return "question_too_short"
    return "question_too_long" if length > MAX_QUESTION_TOKENS else None


def _question_alone(question: str, language: Language, *, first: bool) -> str | None:
    """Only the first question of a dialogue has nobody to whom "he" could refer."""
    if _matches(language.rules.refers_to_source, question):
        return "question_refers_to_source"
    return "question_dangling" if first and _matches(language.rules.dangling, question.lstrip('¿"“«「 ')) else None


def question_topic(question: str, passage: Evidence) -> str | None:
    """Asked about something of which the passage knows nothing, or with a name or number that it lacks."""
    words = content_words(question, passage.function_words)
    if not any(map(passage.holds, words)):
        return "question_not_about_passage"
    return "question_invents" if passage.missing_numbers(question) or passage.missing_names(question) else None


def question_repeats(question: str, earlier: Sequence[str], language: Language) -> str | None:
    """Four fifths of the rare words in common with an earlier question: the same thing asked again."""
    words = set(content_words(question, language.rules.function_words))
    for other in (set(content_words(q, language.rules.function_words)) for q in earlier):
        if words and other and _overlap(words, other) >= 0.8:
            return "question_repeats"
    return None


def answer_fault(
    answer: str,
    question: str,
    *,
    finish_reason: str = "stop",
    passage: Evidence | None,
    language: Language,
    earlier: Sequence[str] = (),
    is_language: IsLanguage | None = None,
    min_grounded: float = MIN_GROUNDED_SHARE,
) -> str | None:
    """Why this answer cannot stand, or None. `earlier`: the answers before it; without a passage nothing is grounded."""
    return (
        answer_breaks_off(answer, finish_reason)
        or _answer_form(answer, language)
        or ("answer_wrong_language" if is_language and not is_language(answer) else None)
        or answer_repeats(answer, earlier, language)
        or answer_misses_question(answer, question, language)
        or (answer_grounding(answer, passage, min_grounded) if passage else None)
    )


def _answer_form(answer: str, language: Language) -> str | None:
    if _CONTROL.search(answer) or _FORMATTING.search(answer) or _LIST_MARK.search(answer):
        return "answer_not_plain"
    if _matches(language.rules.refusal, answer):
        return "answer_refuses"
    if _matches(language.rules.refers_to_source, answer):
        return "answer_refers_to_source"
    return "answer_asks_back" if _QUESTION_MARK.search(answer) else None


def answer_breaks_off(answer: str, finish_reason: str) -> str | None:
    """Too short, cut off by a limit or a filter, or with no end to its last sentence or bracket."""
    text = answer.strip()
    if len(text) < MIN_ANSWER_CHARACTERS:
        return "answer_too_short"
    opening, closing = ("„", "“”") if "„" in text else ("“", "”")  # German closes with what English opens with
    open_brackets = sum(map(text.count, "([{（「『【〔«" + opening)) - sum(map(text.count, ")]}）」』】〕»" + closing))
    closed = _SENTENCE_CLOSED.search(text) and open_brackets <= 0
    return None if closed and finish_reason == "stop" else "answer_breaks_off"


def answer_repeats(answer: str, earlier: Sequence[str], language: Language) -> str | None:
    """A sentence said twice (here or in an earlier answer), or one run of words three times."""
    told = [set(content_words(s, language.rules.function_words)) for text in earlier for s in sentences(text)]
    for sentence in sentences(answer):
        words = set(content_words(sentence, language.rules.function_words))
        if len(words) > 2 and any(_overlap(words, other) >= 0.8 for other in told):
            return "answer_repeats_itself" if not earlier else "answer_repeats_dialogue"
        told.append(words)
    units = UNIT.findall(answer.lower())
    length = _UNSPACED_RUN if 2 * sum(map(_is_unspaced, units)) > len(units) else _RUN
    runs = Counter(tuple(units[i : i + length]) for i in range(len(units) - length + 1))
    return "answer_repeats_itself" if runs and max(runs.values()) > 2 else None


def answer_misses_question(answer: str, question: str, language: Language) -> str | None:
    """Shares nothing with what was asked, or adds nothing to it ("it has two parts because it has two parts")."""
    asked = content_words(question, language.rules.function_words)
    said = content_words(answer, language.rules.function_words)
    shared = [word for word in said if any(alike(word, other) for other in asked)]
    if asked and not shared:
        return "answer_off_question"
    told = {*numbers(answer), *names(answer, language.rules.function_words)} - {*numbers(question), *asked}
    return "answer_echoes_question" if len({*said} - {*shared}) < 2 and not told else None


def answer_grounding(answer: str, passage: Evidence, min_grounded: float = MIN_GROUNDED_SHARE) -> str | None:
    """All numbers and names must be the passage's own; of the rare words the share `min_grounded`."""
    if passage.missing_numbers(answer) or passage.missing_names(answer):
        return "answer_not_grounded"
    return "answer_not_grounded" if passage.share(answer) < min_grounded else None


def _length_in_words(text: str) -> float:
    units: list[str] = UNIT.findall(text)
    kana = sum("\u3040" <= unit <= "\u30ff" for unit in units)
    han = sum(map(_is_unspaced, units)) - kana
    return len(units) - kana - han + kana / _KANA_PER_WORD + han / _HAN_PER_WORD


def _is_unspaced(unit: str) -> bool:
    return len(unit) == 1 and unit >= "\u3005"


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def _matches(patterns: Sequence[str], text: str) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
