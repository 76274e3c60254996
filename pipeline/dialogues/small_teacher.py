"""Asking a very small English model (SmolLM2-135M): one sentence at a time, by example, with the question word given.

Asked with the prompts for able models it writes "What is the answer to the question?". It can copy a pattern, though: shown
five sentences with their questions it asks about the sixth, and shown a few lines with an answer it answers in nearly their
words. So each attempt takes one sentence of the passage, the question words that this sentence can answer, and lets pass
only what the sentence bears out word by word.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from pipeline.dialogues.evidence import Evidence, alike, content_words, ordered_share
from pipeline.dialogues.prompts import Ask, Attempt, Kind
from pipeline.files import content_hash
from pipeline.languages import Language
from pipeline.rows.sample import Message, Passage
from pipeline.text.sentences import sentences

MAX_ATTEMPTS = {"question": 6, "depth": 3, "width": 3}
"""Questions asked for one turn before it is given up."""
FOCUS_WORDS = (8, 36)
"""Shorter sentences hold nothing to ask for, in longer ones the model loses itself."""
MIN_ORDERED_SHARE = 0.8
"""Of an answer's rare words, found in the same order in the sentence it was asked about."""

MIN_CARRIED_SHARE = 0.6
"""Of the sentence's rare words, found in the answer: half a truth can mislead ("solved in India", and first of all at home)."""

_QUESTION_TASK = "You turn a sentence into a question."
_ANSWER_TASK = "You answer a question with the words of the text."
_EXAMPLES = (
    (
        "Igloo",
        "The blocks of snow hold trapped air, which keeps the inside of an igloo warm.",
        "Why does an igloo stay warm inside?",
        "An igloo stays warm inside because the blocks of snow hold trapped air.",
    ),
    (
        "Saxophone",
        "The Belgian instrument maker Adolphe Sax invented the saxophone in the early 1840s.",
        "Who invented the saxophone?",
        "The Belgian instrument maker Adolphe Sax invented the saxophone in the early 1840s.",
    ),
    (
        "Paella",
        "Paella is cooked in a wide, shallow pan over an open fire of orange branches.",
        "How is paella cooked?",
        "Paella is cooked in a wide, shallow pan over an open fire of orange branches.",
    ),
    (
        "Great Wall",
        "Most of the wall that visitors see today was built under the Ming dynasty.",
        "When was most of the Great Wall built?",
        "Most of the Great Wall was built under the Ming dynasty.",
    ),
    (
        "Kimono",
        "A kimono is wrapped around the body with the left side over the right and tied with a wide sash, the obi.",
        "What is used to tie a kimono?",
        "A kimono is tied with a wide sash, the obi.",
    ),
)

_UNANCHORED = re.compile(
    r"^(?:(?:and|but|so|yet|then|also|instead|however|today|there|here|in turn|such|both|each|all|one|some|many|most|others?|"
    r"another|several|few|the (?:first|second|third|other|latter|former|same|two|three)) ?\b|"
    r"(?:it|he|she|they|we|this|that|these|those|its|his|her|their|among (?:them|these|its)|as (?:these|this))\b)",
    re.IGNORECASE,
)
"""Openings that lean on a sentence before."""
_GENERIC = frozenset({"name", "kind", "type", "term", "word"})
"""What a question may hold beyond its sentence."""
_PRONOUN = re.compile(r"\b(?:it|he|she|they|him|them|his|her|their|its|this|these|those|there)\b", re.IGNORECASE)
_IRREGULAR = {
    forms.split()[0]: forms.split()[1:]
    for forms in (
        "bring brought|write wrote written|make made|take took taken|give gave given|hold held|begin began begun|sing sang sung|"
        "wear wore worn|win won|lead led|build built|keep kept|tell told|become became|come came|grow grew grown|speak spoke|"
        "teach taught|think thought|find found|lose lost|leave left|meet met|draw drew drawn|see saw seen|choose chose chosen"
    ).split("|")
}
"""Base form to the past forms that share too few letters with it."""
_TRADE = re.compile(r"\b(?:\w{3,}(?:er|or|ist|ian|ess)|poet|king|queen|saint|monk|nun|judge|god|cook)\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|no|never|without|neither|nor|none|hardly|rather than)\b|n[’']t\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Opening:
    """A question word (as a GBNF sequence) and what a sentence must hold to answer it."""

    grammar: str
    answer: re.Pattern[str]


_BE = '("is "|"are "|"was "|"were ")'
_VERB = '("a" [^r] | "i" [^s] | "w" [^ae] | [b-hj-vx-z])'
"""The first letters of any verb but is, was, were."""
_AUXILIARY = '("is "|"are "|"was "|"were "|"do "|"does "|"did ")'
_MONTH = "January|February|March|April|June|July|August|September|October|November|December"

_OPENINGS = (
    _Opening(
        f'"Why " {_AUXILIARY}',
        re.compile(r"\b(?:because|so that|in order to|owing to|due to|since (?:a|the|they|it)\b(?! \d))", re.I),
    ),
    _Opening(
        f'"When " {_AUXILIARY}',
        re.compile(rf"\b1\d\d\ds?\b|\b20\d\d\b|\bcentury\b|\b(?:\d\d?|in) (?:{_MONTH})\b|\bevery (?:year|summer)\b"),
    ),
    _Opening(
        f'"Where " {_AUXILIARY}',
        re.compile(rf"\b(?:in|at|near|from|across|throughout) (?:the )?(?:\w+ (?:of|and) )?(?!{_MONTH}|Christmas)[A-Z]\w+"),
    ),
    _Opening(f'"Who " {_VERB}', re.compile(r"(?<!^)\b[A-Z][a-z]+")),
    _Opening(f'"What " {_BE}', re.compile("")),
    _Opening(f'"How " {_AUXILIARY}', re.compile(r"\b(?:by|with|from|using|through|into|in (?!\d|[A-Z]|the \d))\b")),
)


class SmallTeacherPrompts:
    """Attempts sentence by sentence; a follow-up in depth stays in its section, one in width goes to another."""

    version = content_hash(_QUESTION_TASK, _ANSWER_TASK, _EXAMPLES, [opening.grammar for opening in _OPENINGS], MAX_ATTEMPTS)

    def __init__(self, language: Language) -> None:
        self._function_words = frozenset(language.rules.function_words)

    def attempts(self, passage: Passage, kind: Kind, turns: Sequence[Message], draw: Random) -> Iterator[Attempt]:
        title = re.sub(r"\s*\(.*?\)\s*$", "", passage.title)
        focuses = self._focuses(passage, kind, turns)
        draw.shuffle(focuses)
        subject = content_words(title, self._function_words)
        focuses.sort(key=lambda focus: not _shares_word(content_words(focus, self._function_words), subject))
        if kind == "question":
            focuses.sort(key=lambda focus: _definition(title, focus) is None)
        left = MAX_ATTEMPTS[kind]
        for focus in focuses:
            openings = [opening for opening in _OPENINGS if opening.answer.search(focus)]
            draw.shuffle(openings)
            if said := _definition(title, focus):
                openings.insert(0, _Opening(f'"What {said["verb"]} {(said["article"] or "").lower()}"', re.compile("")))
            for opening in openings[:2]:
                if left == 0:
                    return
                left -= 1
                gates = _Gates(title, focus, opening, self._function_words, first=not turns)
                yield Attempt(
                    question=_question_ask(title, focus, opening),
                    answer_to=functools.partial(_answer_ask, focus),
                    question_fault=gates.question_fault,
                    answer_fault=gates.answer_fault,
                )

    def _focuses(self, passage: Passage, kind: Kind, turns: Sequence[Message]) -> list[str]:
        said = [turn.content for turn in turns if turn.role == "assistant"]
        sections = [sentences(section.text) for section in passage.sections]
        here = self._section_of(said[-1], sections) if said else None
        found = []
        for number, section in enumerate(sections):
            if kind != "question" and (number == here) != (kind == "depth"):
                continue
            for sentence in section:
                told = any(self._borne_out(sentence, answer) >= 0.5 for answer in said)
                if not told and _is_askable(sentence):
                    found.append(sentence)
        return found

    def _section_of(self, answer: str, sections: Sequence[Sequence[str]]) -> int:
        shares = [max((self._borne_out(answer, s) for s in section), default=0.0) for section in sections]
        return shares.index(max(shares))

    def _borne_out(self, text: str, by: str) -> float:
        words = content_words(text, self._function_words)
        return ordered_share(words, content_words(by, self._function_words))


def _answer_ask(focus: str, question: str) -> Ask:
    messages = [Message("system", _ANSWER_TASK)]
    for _, text, example, answer in _EXAMPLES:
        messages += [Message("user", f"{text}\n\n{example}"), Message("assistant", answer)]
    messages.append(Message("user", f"{focus}\n\n{question}"))
    return Ask(messages=tuple(messages), max_tokens=160, parameters={"grammar": _ANSWER_GRAMMAR})


def _question_ask(title: str, focus: str, opening: _Opening) -> Ask:
    messages = [Message("system", _QUESTION_TASK)]
    for subject, text, question, _ in _EXAMPLES:
        messages += [Message("user", f"{subject}: {text}"), Message("assistant", question)]
    messages.append(Message("user", f"{title}: {focus}"))
    grammar = f'root ::= {opening.grammar} [^?\\n]{{8,110}} "?"'
    return Ask(messages=tuple(messages), max_tokens=64, parameters={"grammar": grammar})


_ANSWER_GRAMMAR = "root ::= [A-Z] [^?\\n]{20,320}"
"""One paragraph, and an end to it: without a bound it goes round in circles until the limit."""


def _definition(name: str, sentence: str) -> re.Match[str] | None:
    """The opening of a sentence that answers "What is NAME?": "A setter is a …", "Adire, a cloth of Nigeria, is the …".

    Not when NAME may be a person, who is no "what": no article before it, and capitals in it or somebody's trade after it.
    """
    says = (
        rf"^(?P<article>(?:an?|the) )?{re.escape(name)}(?:, [^,]+,| \([^()]+\))? (?P<verb>is|are|was|were) (?:an?|the|one|any|all) "
    )
    said = re.search(says, sentence, re.IGNORECASE)
    if said is None or said["article"]:
        return said
    person = re.search(r"\b[A-Z]", name[1:]) or _TRADE.search(" ".join(sentence[said.end() :].split()[:8]))
    return None if person else said


def _is_askable(sentence: str) -> bool:
    low, high = FOCUS_WORDS
    return low <= len(sentence.split()) <= high and not _UNANCHORED.search(sentence)


def _shares_word(one: Sequence[str], other: Sequence[str]) -> bool:
    return any(alike(word, known) for word in one for known in other)


@dataclass(frozen=True)
class _Gates:
    """What a question and its answer owe to the sentence that they come from."""

    title: str
    focus: str
    opening: _Opening
    function_words: frozenset[str]
    first: bool

    def question_fault(self, question: str) -> str | None:
        words = content_words(question, self.function_words)
        subject = content_words(self.title, self.function_words)
        if _PRONOUN.search(question) or re.match(r"Who (?:is|are|was|were) ", question):
            return "question_dangling"
        if self.first and sum(_shares_word([word], words) for word in subject) < 0.66 * len(subject):
            return "question_without_subject"
        if not words or any(not self._knows(word) for word in words):
            return "question_beyond_sentence"
        plain = re.fullmatch(r"What (is|are|was|were) ((?:an?|the) )?([^,]+?)\?", question)
        if plain is None or len(plain[3].split()) > 4:
            return None
        said = _definition(plain[3], self.focus)
        same = said and (said["verb"], (said["article"] or "").lower()) == (plain[1], plain[2] or "")
        return None if same else "question_beyond_sentence"

    def _knows(self, word: str) -> bool:
        """The sentence has the word in some form, be it irregular."""
        known = content_words(f"{self.title}. {self.focus}", self.function_words)
        return word in _GENERIC or any(alike(word, other) or other in _IRREGULAR.get(word, ()) for other in known)

    def answer_fault(self, question: str, answer: str) -> str | None:
        if _UNANCHORED.search(answer):
            return "answer_dangling"
        asked_for = self.opening.answer.finditer(answer)
        if self.opening.answer.pattern and all(found.group() in question for found in asked_for):
            return "answer_off_question"
        if (who := re.match(r"Who (\w+)", question)) and not re.search(rf"[A-Z]\w+,? {who[1]}\b|\bby (?:\w+ ){{0,3}}[A-Z]", answer):
            return "answer_off_question"
        if (what := re.match(r"What (is|are|was|were) ", question)) and not re.search(rf"\b{what[1]}\b", answer):
            return "answer_off_question"
        context = content_words(f"{question} {self.title}", self.function_words)
        if not all(self._is_said(sentence, question, context) for sentence in sentences(answer)):
            return "answer_beyond_sentence"
        told = Evidence(answer, self.function_words)
        about = content_words(self.focus, self.function_words)[:1]  # "the roofs of it are tiles" is not "it is tiles"
        complete = all(map(told.holds, about)) and told.share(self.focus) >= MIN_CARRIED_SHARE
        return None if complete else "answer_leaves_out"

    def _is_said(self, sentence: str, question: str, context: Sequence[str]) -> bool:
        words = content_words(sentence, self.function_words)
        known = content_words(self.focus, self.function_words)
        borne_out = all(any(alike(word, other) for other in (*known, *context)) for word in words)
        if question.startswith("Who "):
            known = known * 2  # "the book was compiled by White" may begin with its end: "White compiled the book"
        same_sign = len(_NEGATION.findall(sentence)) == len(_NEGATION.findall(self.focus))
        return borne_out and same_sign and ordered_share(words, known) >= MIN_ORDERED_SHARE
