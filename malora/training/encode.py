"""Turns dialogues into token ids of which only the assistant's are learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from malora.training.controls import Controls
from malora.training.data import Dropped, Row
from malora.training.render import Span, apply_template, places_of_row_text, question_of, render

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_]]  # the ids, and which are learned: (length,) each

UNTOLD_CONTROLS = "it writes control tokens, and the chat template or the tokenizer lets them not be told from its own"


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
    dropped: list[Dropped]  # rows that cannot be encoded safely


def encode(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Encoded:
    """Tokenises and cuts each row after ``max_tokens`` tokens; a row without a learned token is named, not used.

    The text of a row stays text: what it writes like a control token is encoded as any other text.
    """
    kept: list[EncodedRow] = []
    without: list[str] = []
    dropped: list[Dropped] = []
    truncated = 0
    controls = Controls(tokenizer)
    for chunk in _chunks(rows, 256):
        for row, tokenised in zip(chunk, _encode_chunk(chunk, tokenizer, controls), strict=True):
            if tokenised is None:
                dropped.append(Dropped(row.id, UNTOLD_CONTROLS))
                continue
            all_tokens, all_learned = tokenised
            truncated += len(all_tokens) > max_tokens
            tokens, learned = all_tokens[:max_tokens], all_learned[:max_tokens]
            if learned[1:].any():  # nothing predicts the first token
                kept.append(EncodedRow(row.id, row.language, row.task, tokens, learned))
            else:
                without.append(row.id)
    return Encoded(kept, truncated, without, dropped)


def encode_prompt(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """The tokens of the dialogue up to its first answer, opened for it; None where control tokens cannot be told."""
    messages = question_of(row)
    text = apply_template(row, messages, tokenizer, opened=True)
    controls = Controls(tokenizer)
    if controls.may_be_in(messages):
        places = places_of_row_text(row, messages, text, tokenizer, opened=True)
        if places is not None:
            encoded = controls.encode(text, [place for _, place in places], ())
            return None if encoded is None else encoded[0]
        if controls.named_in(messages):
            return None
    return list(tokenizer.encode(text, add_special_tokens=False))


def _encode_chunk(rows: list[Row], tokenizer: PreTrainedTokenizerBase, controls: Controls) -> list[Tokens | None]:
    """Each row's tokens and learned marks; None for a row whose control tokens cannot be told from the template's."""
    rendered = [render(row, tokenizer) for row in rows]
    result: list[Tokens | None] = [None] * len(rows)
    whole: list[int] = []
    for number, (row, (text, spans)) in enumerate(zip(rows, rendered, strict=True)):
        places = None
        if controls.may_be_in(row.messages):
            places = places_of_row_text(row, row.messages, text, tokenizer)
            if places is None and controls.named_in(row.messages):
                continue
        if places is None:
            whole.append(number)
            continue
        encoded = controls.encode(text, [place for _, place in places], [edge for span in spans for edge in span])
        if encoded is not None:
            result[number] = _mark(*encoded, spans)
    for number, tokens in zip(whole, tokenise([rendered[number] for number in whole], tokenizer), strict=True):
        result[number] = tokens
    return result


def tokenise(rendered: list[tuple[str, list[Span]]], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokens]:
    """Tokens and their learned marks. A token is learned when it begins inside an assistant's span."""
    if not rendered:
        return
    if not tokenizer.is_fast:
        for text, spans in rendered:
            yield _tokenise_by_pieces(text, spans, tokenizer)
        return
    batch: Any = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
    for ids, offsets, (_, spans) in zip(batch["input_ids"], batch["offset_mapping"], rendered, strict=True):
        yield _mark(ids, [begin for begin, _ in offsets], spans)


def _mark(ids: Sequence[int], characters: Sequence[int], spans: list[Span]) -> Tokens:
    """``characters``: the one that each token begins at."""
    begins = np.array(characters, dtype=np.int64)
    learned = np.zeros(len(ids), dtype=np.bool_)
    for begin, end in spans:
        learned |= (begins >= begin) & (begins < end)
    return np.array(ids, dtype=np.int32), learned


def _tokenise_by_pieces(text: str, spans: list[Span], tokenizer: PreTrainedTokenizerBase) -> Tokens:
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
