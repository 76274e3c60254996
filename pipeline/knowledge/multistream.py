"""Multistream dumps: blocks of a hundred pages, each compressed by itself, and an index that says which page is in which.

Pages that are drawn by hash are known from the index alone, so that only their blocks are decompressed. They are the same
pages, in the same order, as drawn from the whole dump.
"""

from __future__ import annotations

import bz2
import io
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.knowledge.document import Document
from pipeline.knowledge.dump import namespaces, open_dump, read_pages, site_of
from pipeline.languages import Language

_DUMP, _INDEX = "-multistream.xml.bz2", "-multistream-index.txt"
_PAGE = re.compile(rb"<page>.*?<id>(\d+)</id>.*?</page>", re.DOTALL)


def index_of(path: Path) -> Path | None:
    """The index beside a dump (`…-multistream-index.txt`, compressed or not), None where there is none."""
    if not path.name.endswith(_DUMP):
        return None
    index = path.with_name(path.name.removesuffix(_DUMP) + _INDEX)
    return next((file for file in (index.with_name(f"{index.name}.bz2"), index) if file.is_file()), None)


class DrawnPages:
    """The pages of a dump, lowest `key(document id)` first, read when they are asked for.

    `other_namespaces` are so many pages by their titles, of which none is read; `len` is the number of the others, redirects
    included. Memory: 20 bytes a page, and some more while they are sorted.
    """

    def __init__(
        self, path: Path, index: Path, language: Language, key: Callable[[str], int], *, source: str, licence: str
    ) -> None:
        self._path, self._index = path, index
        self._language, self._source, self._licence = language, source, licence
        self._head = self._block(0)
        site = site_of(path, self._head)
        others = {name for name, number in namespaces(language, site).items() if number != 0}
        keys, self._offsets, self._ids = array("Q"), array("Q"), array("Q")
        self.other_namespaces = 0
        for offset, page, title in _lines(index):
            if title.partition(":")[0].lower() in others and ":" in title:
                self.other_namespaces += 1
                continue
            keys.append(key(f"{site.dbname or language.code + 'wiki'}-{page}"))
            self._offsets.append(offset)
            self._ids.append(page)
        self._order = np.argsort(np.frombuffer(keys, dtype=np.uint64), kind="stable") if keys else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Document]:
        for place in self._order:
            offset, number = self._offsets[place], self._ids[place]
            page = next((m[0] for m in _PAGE.finditer(self._block(offset)) if int(m[1]) == number), None)
            if page is None:
                raise InputError(
                    f"{self._index}: page {number} is not at byte {offset} of {self._path.name}; is it the index of this dump?"
                )
            dump = io.BytesIO(self._head + page + b"</mediawiki>")
            yield from read_pages(self._path, dump, self._language, source=self._source, licence=self._licence)

    def _block(self, offset: int) -> bytes:
        """One compressed stream's text."""
        decompressor, parts = bz2.BZ2Decompressor(), []
        with self._path.open("rb") as file:
            file.seek(offset)
            try:
                while not decompressor.eof and (read := file.read(1 << 16)):
                    parts.append(decompressor.decompress(read))
            except OSError as error:
                raise InputError(
                    f"{self._path}: no block begins at byte {offset}: {error}; is {self._index.name} its index?"
                ) from error
        if not decompressor.eof:
            raise InputError(f"{self._path}: is cut off in the block at byte {offset}; fetch it again")
        return b"".join(parts)


def _lines(index: Path) -> Iterator[tuple[int, int, str]]:
    """Offset of the block, number of the page, title."""
    try:
        with open_dump(index) as file:
            for number, line in enumerate(file, 1):
                try:
                    offset, page, title = line.decode("utf-8").rstrip("\n").split(":", 2)
                    yield int(offset), int(page), title
                except ValueError as error:
                    raise InputError(f"{index}: line {number}: expected offset:page:title, not {line[:60]!r}") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{index}: cannot be read: {error}") from error
