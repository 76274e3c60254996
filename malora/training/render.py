"""Writes a dialogue as its chat template does, and knows which characters are an answer's and which are the row's."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from malora.errors import InputError
from malora.training.data import Message, Row

Span = tuple[int, int]

# For a tokenizer that brings no chat template of its own.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{{ (eos_token or '') + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FEW = 4  # answers; so many are measured one by one


def render(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]]:
    """The dialogue as the model reads it, and the character spans that the assistant wrote.

    A template's ``{% generation %}`` marks are not needed: an answer is what the text up to and with it has more than
    the text before it with the opening of an answer (``add_generation_prompt``). This holds for any template whose text
    only grows with the dialogue; one that rewrites earlier turns is refused.
    """
    text = apply_template(row, row.messages, tokenizer)
    turns = [n for n, turn in enumerate(row.messages) if turn["role"] == "assistant" and turn["content"].strip()]
    spans = _spans_by_surroundings(row, text, turns, tokenizer) if len(turns) > FEW else {}
    return text, [spans[turn] if turn in spans else _answer_span(row, text, turn, tokenizer) for turn in turns]


def apply_template(row: Row, messages: list[Message], tokenizer: PreTrainedTokenizerBase, *, opened: bool = False) -> str:
    """The messages as text; ``opened`` for an answer."""
    template = None if tokenizer.chat_template else DEFAULT_TEMPLATE
    try:
        text: Any = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=opened)
    except TemplateError as error:
        raise InputError(f"row {row.id}: the chat template of {tokenizer.name_or_path} refuses it: {error}") from None
    return str(text)


def question_of(row: Row) -> list[Message]:
    """The dialogue up to its first answer."""
    return row.messages[: next(n for n, turn in enumerate(row.messages) if turn["role"] == "assistant")]


def places_of_row_text(
    row: Row, messages: list[Message], text: str, tokenizer: PreTrainedTokenizerBase, *, opened: bool = False
) -> list[tuple[int, Span]] | None:
    """(turn, where ``text`` has its content without outer white space), in the order of the text.

    The template is applied to stand-ins instead of the contents. Where putting the contents in their places gives ``text``,
    everything else in it is the template's own; None where it does not, because the template looks into the contents.
    """
    first, last = _unused_letters(text)
    contents = [turn["content"].strip() for turn in messages]
    masked = [
        {**turn, "content": turn["content"].replace(content, f"{first}{n}{last}", 1)} if content else turn
        for n, (turn, content) in enumerate(zip(messages, contents, strict=True))
    ]
    try:
        parts = re.split(f"{first}([0-9]+){last}", apply_template(row, masked, tokenizer, opened=opened))
    except InputError:
        return None
    places: list[tuple[int, Span]] = []
    length = 0
    for number, part in enumerate(parts):
        if number % 2:
            turn = int(part)
            parts[number] = contents[turn]
            places.append((turn, (length, length + len(contents[turn]))))
        length += len(parts[number])
    return places if "".join(parts) == text else None


def _unused_letters(text: str) -> tuple[str, str]:
    """Two letters of the private use area that ``text`` does not have."""
    used = set(text)
    unused = (letter for letter in map(chr, range(0xE000, 0xF900)) if letter not in used)
    return next(unused), next(unused)


def _answer_span(row: Row, text: str, turn: int, tokenizer: PreTrainedTokenizerBase) -> Span:
    after = apply_template(row, row.messages[: turn + 1], tokenizer)
    if turn:
        before = apply_template(row, row.messages[:turn], tokenizer, opened=True)
    else:  # nothing stands before it but what the template puts there
        before = after[: max(0, after.find(row.messages[turn]["content"].strip()))]
    if not (text.startswith(after) and after.startswith(before)):
        raise InputError(
            f"row {row.id}: the chat template of {tokenizer.name_or_path} rewrites earlier turns, so answers "
            "cannot be told from questions; give the tokenizer a template that only appends"
        )
    return len(before), len(after.rstrip())


def _spans_by_surroundings(row: Row, text: str, turns: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[int, Span]:
    """Spans of answers of which another with the same words of the template around it was measured.

    Measuring each answer applies the template to all turns before it, which is quadratic. Of every kind of surroundings the
    first, second, fourth, eighth … and the last answer are measured; where all begin and end as far from their contents,
    so do the others. Together that is a few times the cost of the whole text. What is not in the result is to be measured.
    """
    places = places_of_row_text(row, row.messages, text, tokenizer)
    if places is None or [turn for turn, _ in places] != [n for n, turn in enumerate(row.messages) if turn["content"].strip()]:
        return {}
    edges = [0, *(edge for _, place in places for edge in place), len(text)]
    gaps = [text[begin:end] for begin, end in list(pairwise(edges))[::2]]  # the template's words between the contents
    surroundings = {turn: (before, after) for (turn, _), (before, after) in zip(places, pairwise(gaps), strict=True)}
    at = dict(places)
    alike: dict[Any, list[int]] = {}
    for turn in turns:
        roles = tuple(member["role"] for member in row.messages[max(0, turn - 1) : turn + 2])
        alike.setdefault((surroundings[turn], roles, turn == 0), []).append(turn)
    spans: dict[int, Span] = {}
    for ((before, after), *_), members in alike.items():
        measured = {members[n - 1] for n in _powers_of_two(len(members))} | {members[-1]}
        own = {turn: _answer_span(row, text, turn, tokenizer) for turn in sorted(measured)}
        margins = {(at[turn][0] - begin, end - at[turn][1]) for turn, (begin, end) in own.items()}
        spans |= own
        opening, closing = next(iter(margins))
        if len(margins) == 1 and 0 <= opening <= len(before) and 0 <= closing <= len(after):
            spans |= {turn: (at[turn][0] - opening, at[turn][1] + closing) for turn in members if turn not in own}
    return spans


def _powers_of_two(limit: int) -> list[int]:
    return [2**n for n in range(limit.bit_length())]
