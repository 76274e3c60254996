"""Turns dialogues into token ids of which only the assistant's are learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from malora.data import Row
from malora.errors import InputError

Span = tuple[int, int]

# For a tokenizer that brings no chat template of its own.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{{ (eos_token or '') + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class EncodedRow:
    """One dialogue as tokens. ``learned[i]`` is true where token i is to be predicted (an answer's)."""

    id: str
    language: str
    task: str
    tokens: NDArray[np.int32]  # (length,)
    learned: NDArray[np.bool_]  # (length,)

    @property
    def stratum(self) -> str:
        return f"{self.language}_{self.task}"


@dataclass(frozen=True)
class Encoded:
    """The rows that have something to learn, and what became of the others."""

    rows: list[EncodedRow]
    truncated: int  # rows cut at max_tokens, those without labels among them
    without_labels: list[str]  # ids of rows of which no answer token is left


def encode(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Encoded:
    """Tokenises and cuts each row after ``max_tokens`` tokens; a row without a learned token is named, not used."""
    kept: list[EncodedRow] = []
    without: list[str] = []
    truncated = 0
    for chunk in _chunks(rows, 256):
        rendered = [render(row, tokenizer) for row in chunk]
        for row, (all_tokens, all_learned) in zip(chunk, tokenise(rendered, tokenizer), strict=True):
            truncated += len(all_tokens) > max_tokens
            tokens, learned = all_tokens[:max_tokens], all_learned[:max_tokens]
            if learned[1:].any():  # nothing predicts the first token
                kept.append(EncodedRow(row.id, row.language, row.task, tokens, learned))
            else:
                without.append(row.id)
    return Encoded(kept, truncated, without)


def render(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]]:
    """The dialogue as the model reads it, and the character spans that the assistant wrote.

    A template's ``{% generation %}`` marks are not needed: an answer is what the text up to and with it has more than
    the text before it with the opening of an answer (``add_generation_prompt``). This holds for any template whose text
    only grows with the dialogue; one that rewrites earlier turns is refused.
    """
    text = _apply(row, row.messages, tokenizer)
    spans: list[Span] = []
    for index, turn in enumerate(row.messages):
        if turn["role"] != "assistant" or not turn["content"].strip():
            continue
        after = _apply(row, row.messages[: index + 1], tokenizer)
        if index:
            before = _apply(row, row.messages[:index], tokenizer, opened=True)
        else:  # nothing stands before it but what the template puts there
            before = after[: max(0, after.find(turn["content"].strip()))]
        if not (text.startswith(after) and after.startswith(before)):
            raise InputError(
                f"row {row.id}: the chat template of {tokenizer.name_or_path} rewrites earlier turns, so answers "
                "cannot be told from questions; give the tokenizer a template that only appends"
            )
        spans.append((len(before), len(after.rstrip())))
    return text, spans


def _apply(row: Row, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, opened: bool = False) -> str:
    template = None if tokenizer.chat_template else DEFAULT_TEMPLATE
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=opened)
    except TemplateError as error:
        raise InputError(f"row {row.id}: the chat template of {tokenizer.name_or_path} refuses it: {error}") from None
    return str(text)


def prompt_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """The dialogue up to its first answer, opened for that answer."""
    first = next(i for i, turn in enumerate(row.messages) if turn["role"] == "assistant")
    return _apply(row, row.messages[:first], tokenizer, opened=True)


def tokenise(
    rendered: list[tuple[str, list[Span]]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Tokens and their learned marks. A token is learned when it begins inside an assistant's span."""
    if not tokenizer.is_fast:
        for text, spans in rendered:
            yield _tokenise_by_pieces(text, spans, tokenizer)
        return
    batch: Any = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
    for ids, offsets, (_, spans) in zip(batch["input_ids"], batch["offset_mapping"], rendered, strict=True):
        begins = np.array([begin for begin, _ in offsets], dtype=np.int64)
        learned = np.zeros(len(ids), dtype=np.bool_)
        for begin, end in spans:
            learned |= (begins >= begin) & (begins < end)
        yield np.array(ids, dtype=np.int32), learned


def _tokenise_by_pieces(
    text: str, spans: list[Span], tokenizer: PreTrainedTokenizerBase
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """For tokenizers that cannot tell offsets: the text is cut at the spans, as a prompt is cut at inference."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    tokens: list[int] = []
    learned: list[bool] = []
    for number, (begin, end) in enumerate(pairwise(edges)):
        piece = tokenizer.encode(text[begin:end], add_special_tokens=False) if end > begin else []
        tokens += piece
        learned += [number % 2 == 1] * len(piece)
    return np.array(tokens, dtype=np.int32), np.array(learned, dtype=np.bool_)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
