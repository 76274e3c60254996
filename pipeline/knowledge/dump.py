"""MediaWiki XML dumps, `.xml` or `.xml.bz2`, as a stream of documents."""

from __future__ import annotations

import bz2
import functools
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

import mwxml
from mwxml.errors import MalformedXML

from pipeline.errors import InputError
from pipeline.knowledge.categories import CategoryLinks, below, named
from pipeline.knowledge.document import Document
from pipeline.knowledge.markup.wikitext import WikitextCleaner
from pipeline.languages import Language
from pipeline.rows.sample import Source

_MALFORMED = (ParseError, MalformedXML, ValueError, AssertionError, AttributeError, TypeError)  # as mwxml has it
_REDIRECT = re.compile(r"^\s*#\w+\s*+:?\s*+\[\[")


def read_dump(
    path: Path, language: Language, *, source: str, licence: str, categories: tuple[str, ...] = (), depth: int = 0
) -> Iterator[Document]:
    """Every page of the dump in its order; redirects and pages outside the main namespace are skips that are only counted.

    Where `categories` are given, so are pages that stand in none of them, nor in one at most `depth` steps below; the dump is
    then read twice.

    Raises InputError naming the file when it is missing, empty, cut off, not a dump, or not UTF-8.
    """
    try:
        with open_dump(path) as file:
            if not file.read(1):
                raise InputError(f"{path}: is empty; expected a MediaWiki XML dump")
        chosen = below(categories, _category_edges(path, language), depth) if categories else None
        with open_dump(path) as file:
            yield from read_pages(path, file, language, source=source, licence=licence, chosen=chosen)
    except EOFError as error:
        raise InputError(f"{path}: is cut off (the compressed stream ends early); fetch it again") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def read_pages(
    path: Path, file: IO[bytes], language: Language, *, source: str, licence: str, chosen: frozenset[int] | None = None
) -> Iterator[Document]:
    """Every page of an open dump; `path` stands in errors, `chosen` are the categories that a page has to be in."""
    cleaner = links = None
    for site, page, revision in _pages(path, file):
        if cleaner is None or links is None:
            names = namespaces(language, site)
            cleaner, links = _cleaner(language, tuple(names.items())), CategoryLinks(names)
        document = _document(site, page, revision, cleaner, language, source, licence)
        if chosen is not None and not document.skip and chosen.isdisjoint(links.of(document.text)):
            document = replace(document, skip="outside_categories", pass_over=True)
        yield document


def _category_edges(path: Path, language: Language) -> Iterator[tuple[int, int]]:
    """Every category that has a page, with itself and with each that it stands in."""
    links = None
    with open_dump(path) as file:
        for site, page, revision in _pages(path, file):
            links = links or CategoryLinks(namespaces(language, site))
            if page.namespace == 14:
                own = named(page.title.partition(":")[2] or page.title)
                yield own, own
                yield from ((own, parent) for parent in links.of((revision.text if revision else "") or ""))


@functools.lru_cache(maxsize=4)
def _cleaner(language: Language, names: tuple[tuple[str, int], ...]) -> WikitextCleaner:
    return WikitextCleaner(language, dict(names))


def site_of(path: Path, head: bytes) -> mwxml.SiteInfo:
    """What the beginning of a dump, up to its first page, says of its site."""
    try:
        return mwxml.Dump.from_file(io.BytesIO(head + b"</mediawiki>")).site_info
    except _MALFORMED as error:
        raise InputError(f"{path}: does not begin as a MediaWiki XML dump: {error}") from error


def _pages(path: Path, file: IO[bytes]) -> Iterator[tuple[mwxml.SiteInfo, mwxml.Page, mwxml.Revision | None]]:
    """The pages and what counts of each: the one revision that a pages-articles dump holds, the last one of a history."""
    try:
        dump = mwxml.Dump.from_file(file)
        for page in dump:
            yield dump.site_info, page, next(iter(deque(page, maxlen=1)), None)
    except _MALFORMED as error:
        why = (str(error).splitlines() or ["it lacks what a dump has"])[0]
        raise InputError(f"{path}: is not a whole MediaWiki XML dump: {why}") from error


def open_dump(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed where they are."""
    with path.open("rb") as file:
        compressed = file.read(3) == b"BZh"
    if not compressed:
        return path.open("rb")
    return io.BufferedReader(bz2.open(path, "rb"), 1 << 20)  # small reads cost a tenth of the speed


# What MediaWiki understands on any wiki.
_NAMESPACES = {
    "file": 6,
    "image": 6,
    "category": 14,
    "media": -2,
    "special": -1,
    "wikipedia": 4,
    "template": 10,
    "help": 12,
    "portal": 100,
}


def namespaces(language: Language, site: mwxml.SiteInfo | None = None) -> dict[str, int]:
    """Lower-case namespace names to their numbers: the dump's own, and the older ones that it does not list."""
    names = language.wikitext
    older = dict.fromkeys(names.file, 6) | dict.fromkeys(names.category, 14) | dict.fromkeys(names.media, -2)
    listed = site.namespaces or () if site else ()
    return _NAMESPACES | older | {ns.name.lower(): ns.id for ns in listed if ns.name}


def _document(
    site: mwxml.SiteInfo,
    page: mwxml.Page,
    revision: mwxml.Revision | None,
    cleaner: WikitextCleaner,
    language: Language,
    name: str,
    licence: str,
) -> Document:
    text = (revision.text if revision else "") or ""
    source = Source(
        name=name or site.name or "",
        title=page.title,
        revision=str(revision.id) if revision else "",
        url=_url(site.base or "", page.title),
        licence=licence,
    )
    skip = _skip(page, text, cleaner, language)
    return Document(
        id=f"{site.dbname or language.code + 'wiki'}-{page.id}",
        title=page.title,
        source=source,
        text=text,
        parse=cleaner.sections,
        skip=skip,
        pass_over=skip in {"redirect", "other_namespace"},
    )


def _url(base: str, title: str) -> str:
    return base.rsplit("/", 1)[0] + "/" + quote(title.replace(" ", "_"), safe="/:(),") if "/" in base else ""


def _skip(page: mwxml.Page, text: str, cleaner: WikitextCleaner, language: Language) -> str | None:
    if page.namespace != 0:
        return "other_namespace"
    if page.redirect or _REDIRECT.match(text):
        return "redirect"
    if not text.strip():
        return "page_without_text"
    if any(re.search(pattern, page.title, re.IGNORECASE) for pattern in language.wikitext.list_titles):
        return "list_page"
    if cleaner.is_disambiguation(text):
        return "disambiguation"
    return "damaged_markup" if cleaner.is_damaged(text) else None
