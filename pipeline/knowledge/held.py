"""Documents held back on the disk until it is known which of them are wanted."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.knowledge.document import Document
from pipeline.sample import Section


class Held:
    """A file of documents of one source, in the order in which they came; it is gone at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._parse: Callable[[str], list[Section]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def put(self, document: Document) -> int:
        """Where it is found again."""
        self._parse = document.parse
        packed = zlib.compress(pickle.dumps(replace(document, parse=_nothing)), 1)
        place = self._file.tell()
        self._file.write(len(packed).to_bytes(4) + packed)
        return place

    def get(self, place: int) -> Document:
        """The document that was put there; after the first `get` nothing more may be put."""
        assert self._parse is not None
        self._file.seek(place)
        size = int.from_bytes(self._file.read(4))
        document: Document = pickle.loads(zlib.decompress(self._file.read(size)))  # noqa: S301  # written by this process
        return replace(document, parse=self._parse)


def _nothing(text: str) -> list[Section]:
    raise AssertionError("a document that is held back is not parsed")
