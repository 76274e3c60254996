"""Keeps the text of rows text: what only looks like one of the model's control tokens is never encoded as one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from malora.errors import InputError
from malora.training.data import Message, Row
from malora.training.render import Span, apply_template

_SIGN = re.compile(r"[^\w\s]")
_TEXT = re.compile(r"\s+|<0x[0-9A-F]{2}>")  # white space, and the bytes of letters that have no token


class Piece(NamedTuple):
    """A part of a text, from ``begin``. ``control``: the string of a control token that the template wrote."""

    begin: int
    text: str
    control: bool


class Controls:
    """The control tokens of a tokenizer and its chat template.

    They are the special tokens, and those added tokens that the template writes. White space and bytes are
    none, and of the added tokens that are not special neither are bare words: all of them are ordinary text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        written = _probe(tokenizer)
        self.ids: dict[str, int] = {}  # string -> token
        self.normalized = False
        for number, token in sorted(tokenizer.added_tokens_decoder.items()):
            special = token.special or token.content in tokenizer.all_special_tokens
            if _TEXT.fullmatch(token.content) is None and (special or (_SIGN.search(token.content) and token.content in written)):
                self.ids[token.content] = number
                self.normalized |= token.normalized
        self.pattern = _any_of(self.ids)
        self._beginnings = tuple({name[:n] for name in self.ids for n in range(1, len(name))})
        self._ends = tuple({name[n:] for name in self.ids for n in range(1, len(name))})

    def named_in(self, messages: Iterable[Message]) -> bool:
        """Whether a content holds what a control token is written as."""
        return any(self._is_named(turn["content"]) for turn in messages)

    def may_be_in(self, messages: Iterable[Message]) -> bool:
        """... or a part of it, which the template's own words beside it could complete."""
        return any(self._is_named(turn["content"]) or self._is_part(turn["content"].strip()) for turn in messages)

    def _is_named(self, content: str) -> bool:
        if self.pattern.search(content):
            return True
        return self._normalise is not None and bool(self._normal_pattern.search(self._normalise(content)))

    def _is_part(self, bare: str) -> bool:
        if not bare:
            return False
        return bare.endswith(self._beginnings) or bare.startswith(self._ends) or any(bare in name for name in self.ids)

    @cached_property
    def _normalise(self) -> Any:
        """The tokenizer's normalizer, where it comes before the search for control tokens; else None."""
        normalizer = self.tokenizer.backend_tokenizer.normalizer if self.tokenizer.is_fast and self.normalized else None
        return normalizer and normalizer.normalize_str

    @cached_property
    def _normal_pattern(self) -> re.Pattern[str]:
        return _any_of({self._normalise(name): 0 for name in self.ids})

    def pieces(self, text: str, row_text: Sequence[Span]) -> list[Piece]:
        """The text cut at the control tokens that the template wrote, those outside of ``row_text``."""
        pieces: list[Piece] = []
        done = end = 0
        for begin, following in [*row_text, (len(text), len(text))]:
            for found in self.pattern.finditer(text, end, begin):
                pieces.append(Piece(done, text[done : found.start()], False))
                pieces.append(Piece(found.start(), found[0], True))
                done = found.end()
            end = following
        return [*pieces, Piece(done, text[done:], False)]

    def encode(self, text: str, row_text: Sequence[Span], cuts: Iterable[int]) -> tuple[list[int], list[int]] | None:
        """Tokens, and the character that each begins at; None where the tokenizer cannot be kept from finding a control token.

        ``row_text``: the spans that the row wrote, in order. A tokenizer that tells no offsets encodes what lies between the
        ``cuts`` apart.
        """
        pieces = self.pieces(text, row_text)
        ids, begins = self._encode_disguised(pieces) if self.tokenizer.is_fast else self._encode_apart(pieces, sorted(cuts))
        unknown = self.tokenizer.unk_token_id  # stands for letters without a token, too
        controls = set(self.ids.values()) - {unknown}
        wanted = [self.ids[piece.text] for piece in pieces if piece.control]
        if [token for token in ids if token in controls] != [token for token in wanted if token in controls]:
            return None
        return ids, begins

    def _encode_disguised(self, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
        """By the tokenizer's double, to which only the template's control tokens look like control tokens."""
        double, names, ids = self._double
        text = "".join(names[piece.text] if piece.control else piece.text for piece in pieces)
        encoding = double.encode(text, add_special_tokens=False)
        return [ids.get(token, token) for token in encoding.ids], [begin for begin, _ in encoding.offsets]

    @cached_property
    def _double(self) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
        """The tokenizer with its control tokens renamed, the new names (each as long as the old), and its ids -> the tokenizer's.

        All else is the same, so the text is encoded in one go, without seams.
        """
        names = {name: chr(0xF0000 + n) * len(name) for n, name in enumerate(sorted(self.ids))}
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["padding"] = state["truncation"] = None
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename(state["model"], names)
        double = Tokenizer.from_str(json.dumps(state))
        ids: dict[int, int] = {}
        for number, token in self.tokenizer.added_tokens_decoder.items():
            found = double.token_to_id(names.get(token.content, token.content))
            if found is not None:
                ids[found] = number
        return double, names, ids

    def _encode_apart(self, pieces: Sequence[Piece], cuts: list[int]) -> tuple[list[int], list[int]]:
        """Piece by piece, for tokenizers that are not fast: what looks like a control token is encoded as text."""
        ids: list[int] = []
        begins: list[int] = []
        for piece in pieces:
            end = piece.begin + len(piece.text)
            looks = set() if piece.control else {edge for found in self.pattern.finditer(piece.text) for edge in found.span()}
            edges = sorted({piece.begin, end, *(cut for cut in cuts if piece.begin < cut < end), *(piece.begin + n for n in looks)})
            for left, right in pairwise(edges):
                part = piece.text[left - piece.begin : right - piece.begin]
                tokens = self._plain(part) if part in self.ids and not piece.control else self._whole(part)
                ids += tokens
                begins += [left] * len(tokens)
        return ids, begins

    def _whole(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _plain(self, text: str) -> list[int]:
        """The string of a control token as text, letter by letter if need be."""
        tokens = list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        return [token for letter in text for token in self._whole(letter)] if self.ids[text] in tokens else tokens


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """The longest of the names that a place has, as tokenizers search."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _probe(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that the template writes as it is, and what it puts together around roles."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    row = Row(id="probe", language="", task="", messages=messages)
    with contextlib.suppress(InputError):
        messages_as_text = apply_template(row, messages, tokenizer) + apply_template(row, messages[:1], tokenizer, opened=True)
        return f"{tokenizer.chat_template}\n{messages_as_text}"
    return str(tokenizer.chat_template)


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Renames tokens in a tokenizer's serialized model, so that plain text no longer leads to them."""
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(name, name): number for name, number in vocab.items()}
    elif vocab:  # Unigram: [name, score]
        model["vocab"] = [[names.get(name, name), score] for name, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        model["merges"] = [list(pair) for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
