"""Token estimates per script: lengths in characters mean different things in different scripts. And a tokenizer's own counts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.text.scripts import ARABIC, CYRILLIC

# Tokens per character of a modern multilingual tokenizer, measured per language (en .23, fr es .27, de .28, ru .32, uk .47,
# ar .46, zh ja .56) and brought down to scripts here; the rest of the world's scripts are near .5.
_TOKENS_PER_CHARACTER = {"latin": 0.26, "cyrillic": 0.33, "arabic": 0.46, "cjk": 0.56, "other": 0.5}

_CLASSES = {
    "latin": re.compile(r"[\u0000-\u024f\u1e00-\u1eff\u2000-\u206f]"),
    "cyrillic": re.compile(f"[{CYRILLIC}]"),
    "arabic": re.compile(f"[{ARABIC}]"),
    "cjk": re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"),
}


def estimate_tokens(text: str) -> int:
    """About how many tokens a multilingual tokenizer makes of the text; at least 1 unless it is empty."""
    if not text:
        return 0
    counts = {name: len(pattern.findall(text)) for name, pattern in _CLASSES.items()}
    counts["other"] = len(text) - sum(counts.values())
    return max(1, round(sum(_TOKENS_PER_CHARACTER[name] * n for name, n in counts.items())))


def estimate_all_tokens(texts: pa.Array) -> npt.NDArray[np.int64]:
    """`estimate_tokens` of each of the texts, at a twentieth of the cost."""
    texts = texts.cast(pa.large_string()).fill_null("")
    lengths = pc.utf8_length(texts).to_numpy()
    points = np.frombuffer("".join(texts.to_pylist()).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = len(_TOKENS_PER_CHARACTER)
    owner = np.repeat(np.arange(len(texts)) * kinds, lengths)
    counts = np.bincount(owner + _class_of_points()[points], minlength=len(texts) * kinds).reshape(-1, kinds)
    total = sum((weight * counts[:, number] for number, weight in enumerate(_TOKENS_PER_CHARACTER.values())), np.zeros(len(texts)))
    found: npt.NDArray[np.int64] = np.where(lengths > 0, np.maximum(1, np.rint(total)), 0).astype(np.int64)
    return found


@functools.cache
def _class_of_points() -> npt.NDArray[np.uint8]:
    names = list(_TOKENS_PER_CHARACTER)
    every = "".join(map(chr, range(0x110000)))
    classes = np.full(0x110000, names.index("other"), dtype=np.uint8)
    for name, pattern in _CLASSES.items():
        classes[[ord(character) for character in pattern.findall(every)]] = names.index(name)
    return classes


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` that the path is, or that it holds; InputError where there is none."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"tokenizer {path}: is no tokenizer.json, nor a folder with one")
    return file


@functools.cache
def token_counter(file: str) -> Callable[[str], int]:
    """How many tokens the tokenizer of a `tokenizer.json` makes of a text, without special ones; the estimate for `""`."""
    if not file:
        return estimate_tokens
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # it raises nothing narrower
        raise InputError(f"tokenizer {file}: cannot be read: {error}") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
