"""The step that turns a knowledge source into passages: choose, clean, check, split."""

from __future__ import annotations

import functools
import heapq
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import opencc

from pipeline.engine.step import Context, Make, Raw, Step, StepReport, here
from pipeline.files import Spool, content_hash
from pipeline.knowledge.document import Document
from pipeline.knowledge.dump import read_dump
from pipeline.knowledge.multistream import DrawnPages, index_of
from pipeline.knowledge.records import read_dataset, read_jsonl, read_parquet, read_text
from pipeline.languages import Language, load_language
from pipeline.recipe import Knowledge, Recipe
from pipeline.rows.sample import PASSAGE_SCHEMA, Dropped, Passage, Section
from pipeline.text.identify import BACKEND, other_language
from pipeline.text.sentences import ELLIPSIS, STOPS, UNSPACED_STOPS
from pipeline.text.tokens import estimate_tokens, token_counter, tokenizer_file

_READERS: dict[str, Callable[..., Iterator[Document]]] = {
    "wikipedia-dump": read_dump,
    "parquet": read_parquet,
    "dataset": read_dataset,
    "jsonl": read_jsonl,
    "text": read_text,
}
# Of pages drawn by hash this many times `max_documents` are held back unparsed, since some will prove too short or too long.
_OVERSAMPLE = 8
_SENTENCE = re.compile(rf".+?(?:[{STOPS}{ELLIPSIS}]+[»”\")]*\s+|[{UNSPACED_STOPS}]+[”」』）]*|\n|$)", re.DOTALL)
_WORTH_PROCESSES = 1 << 20  # bytes of a file: less is parsed before processes have started


def passage_step(recipe: Recipe, code: str) -> Step:
    """The passages of one language."""
    knowledge = recipe.knowledge[code]
    path = recipe.path(knowledge.path)
    from_hub = knowledge.path.startswith("hub:")
    tokenizer = tokenizer_file(recipe.path(knowledge.tokenizer)) if knowledge.tokenizer else None
    config = asdict(knowledge) | {
        "path": knowledge.path if from_hub else path.name,
        "tokenizer": tokenizer.name if tokenizer else "",
        "language": code,
        "seed": recipe.seed,
        "languages": recipe.languages,
        "wikitext": content_hash(asdict(load_language(code).wikitext)),
        "identifier": BACKEND,
    }
    knowledge = replace(knowledge, tokenizer=str(tokenizer or ""))
    read = functools.partial(_passages_of, knowledge=knowledge, path=path, code=code, seed=recipe.seed, languages=recipe.languages)
    return Step(
        name=f"passages-{code}",
        version=6,
        does=Make(read, by_part=False),
        config=config,
        files=tuple(file for file in (None if from_hub else path, _index(knowledge, path), tokenizer) if file),
        schema=PASSAGE_SCHEMA,
        unit_in="pages",
        unit_out="passages",
        refuse=functools.partial(_gives_nothing, knowledge=knowledge, path=path, code=code),
    )


def _passages_of(
    rows: Iterator[Raw], context: Context, *, knowledge: Knowledge, path: Path, code: str, seed: int, languages: tuple[str, ...]
) -> Iterator[tuple[Passage, ...] | Dropped]:
    used = 0

    def enough() -> bool:
        return knowledge.max_documents is not None and used == knowledge.max_documents

    source: dict[str, Any] = {"source": knowledge.source, "licence": knowledge.licence}
    if knowledge.categories:
        source |= {"categories": knowledge.categories, "depth": knowledge.category_depth}
    if knowledge.max_documents is not None and (index := _index(knowledge, path)):
        pages = DrawnPages(path, index, load_language(code), functools.partial(_draw, seed), **source)
        sampled = _lowest(pages, knowledge.max_documents, enough, context)
    else:
        sampled = _sampled(_READERS[knowledge.kind](path, load_language(code), **source), knowledge.max_documents, seed, context)
    few = path.is_file() and path.stat().st_size < _WORTH_PROCESSES
    spread = here if few else context.spread
    prepare = functools.partial(_prepare, knowledge=knowledge, code=code, languages=languages)
    for read, prepared in enumerate(spread(prepare, sampled), 1):
        context.progress(read, None)
        if enough():
            context.pass_over("not_sampled")
        else:
            used += not isinstance(prepared, Dropped)
            yield prepared


def _gives_nothing(report: StepReport, *, knowledge: Knowledge, path: Path, code: str) -> str | None:
    if report.rows_used:
        return None
    reasons = ", ".join(f"{reason} {count}" for reason, count in report.dropped.items()) or "it holds no page"
    limits = (
        f"documents of {knowledge.min_tokens} (min_tokens) to {knowledge.max_tokens} (max_tokens) "
        f"{'' if knowledge.tokenizer else 'estimated '}tokens are taken"
    )
    return f"{path}: gives no passage for {code!r}: {reasons}; {limits}"


def _prepare(document: Document, *, knowledge: Knowledge, code: str, languages: tuple[str, ...]) -> tuple[Passage, ...] | Dropped:
    """The passages of a document, or why it has none."""
    language = load_language(code)
    sections = [] if document.skip else document.sections()
    if code == "zh" and knowledge.simplified:
        document, sections = _simplified(document, sections)
    reason, detail = _reject(document, sections, knowledge, language, languages)
    if reason:
        return Dropped(id=document.id, reason=reason, language=code, detail=detail, source=document.source)
    return tuple(_passages(document, sections, language, knowledge))


def _sampled(documents: Iterator[Document], wanted: int | None, seed: int, context: Context) -> Iterator[Document]:
    """All documents in their order, or the ones lowest by seeded hash, lowest first; what is only counted is counted here."""
    heap: list[tuple[int, int, int]] = []
    parse: Callable[[str], list[Section]] = _nothing
    with Spool[Document](context.folder / "held") as held:
        for order, document in enumerate(documents):
            parse = document.parse
            if document.pass_over:
                context.pass_over(document.skip or "skipped")
            elif wanted is None:
                yield document
            else:
                key = -_draw(seed, document.id)
                if len(heap) < wanted * _OVERSAMPLE:
                    heapq.heappush(heap, (key, -order, held.put(replace(document, parse=_nothing))))
                    continue
                context.pass_over("not_sampled")
                if (key, -order) > heap[0][:2]:
                    heapq.heapreplace(heap, (key, -order, held.put(replace(document, parse=_nothing))))
        for _, _, place in sorted(heap, key=lambda entry: (-entry[0], -entry[1])):
            yield replace(held.get(place), parse=parse)


def _lowest(pages: DrawnPages, wanted: int, enough: Callable[[], bool], context: Context) -> Iterator[Document]:
    """What `_sampled` gives, of pages that come in the order of their hashes; what is not needed is not read."""
    context.pass_over("other_namespace", pages.other_namespaces)
    read = given = 0
    for document in pages:
        read += 1
        if document.pass_over:
            context.pass_over(document.skip or "skipped")
            continue
        yield document
        given += 1
        if enough() or given == wanted * _OVERSAMPLE:
            break
    context.pass_over("not_sampled", len(pages) - read)


def _draw(seed: int, document_id: str) -> int:
    return int(content_hash(seed, document_id, digits=15), 16)


def _index(knowledge: Knowledge, path: Path) -> Path | None:
    """A multistream dump's; where categories choose, the whole dump is read anyway."""
    return index_of(path) if knowledge.kind == "wikipedia-dump" and not knowledge.categories else None


def _nothing(text: str) -> list[Section]:
    raise AssertionError("a page that is held back is not parsed")


@functools.cache
def _simplify() -> Callable[[str], str]:
    return opencc.OpenCC("t2s").convert


def _simplified(document: Document, sections: list[Section]) -> tuple[Document, list[Section]]:
    convert = _simplify()
    title = convert(document.title)
    return replace(document, title=title), [Section(convert(s.heading), convert(s.text)) for s in sections]


def _reject(
    document: Document, sections: list[Section], knowledge: Knowledge, language: Language, languages: tuple[str, ...]
) -> tuple[str | None, str]:
    if document.skip:
        return document.skip, ""
    text = "\n\n".join(section.text for section in sections)
    if not text:
        return "page_without_prose", ""
    return (
        _keyword_fault(f"{document.title}\n{text}", knowledge, simplified=language.code == "zh" and knowledge.simplified)
        or _length_fault(token_counter(knowledge.tokenizer)(text), knowledge)
        or _language_fault(text, language.code, languages)
        or (None, "")
    )


def _keyword_fault(text: str, knowledge: Knowledge, *, simplified: bool) -> tuple[str, str] | None:
    def written(word: str) -> str:
        """As the text is, whatever the recipe's characters."""
        return unicodedata.normalize("NFC", _simplify()(word) if simplified else word).casefold()

    text = unicodedata.normalize("NFC", text).casefold()
    if knowledge.keywords and not any(written(word) in text for word in knowledge.keywords):
        return "document_without_keyword", ""
    unwanted = next((word for word in knowledge.without_keywords if written(word) in text), None)
    return ("document_with_excluded_keyword", unwanted) if unwanted else None


def _length_fault(tokens: int, knowledge: Knowledge) -> tuple[str, str] | None:
    if tokens < knowledge.min_tokens:
        return "document_too_short", f"{tokens} tokens < {knowledge.min_tokens}"
    if tokens > knowledge.max_tokens:
        return "document_too_long", f"{tokens} tokens > {knowledge.max_tokens}"
    return None


def _language_fault(text: str, code: str, languages: tuple[str, ...]) -> tuple[str, str] | None:
    found = other_language(text[:4000], code, languages)
    return ("document_wrong_language", f"{found.language} {found.score:.2f}") if found else None


def _passages(document: Document, sections: list[Section], language: Language, knowledge: Knowledge) -> list[Passage]:
    return [
        Passage(
            id=f"{document.id}-{number}",
            document_id=document.id,
            language=language.code,
            title=document.title,
            sections=tuple(segment),
            source=document.source,
            position=number,
        )
        for number, segment in enumerate(segments(sections, knowledge.segment_tokens, token_counter(knowledge.tokenizer)))
    ]


def segments(sections: list[Section], segment_tokens: int, count: Callable[[str], int] = estimate_tokens) -> list[list[Section]]:
    """Split at paragraph ends into segments of at most `segment_tokens`; every paragraph is in exactly one, in order.

    A section that goes over a segment's end goes on in the next one under the same heading; a paragraph longer than a segment is
    split at a sentence end, or stands alone when it has none. A last segment of less than half the length joins the one before
    (UltraLink loses it, and loses the line that overflows).
    """
    result: list[list[tuple[str, str, int]]] = [[]]
    for section in sections:
        for paragraph in section.text.split("\n\n"):
            for piece in _pieces(paragraph, segment_tokens, count):
                tokens = count(piece)
                if result[-1] and _tokens(result[-1]) + tokens > segment_tokens:
                    result.append(_announcement(result[-1], section.heading, segment_tokens - tokens))
                result[-1].append((section.heading, piece, tokens))
    if len(result) > 1 and _tokens(result[-1]) < segment_tokens / 2:
        result[-2].extend(result.pop())
    return [_merge(segment) for segment in result if segment]


def _tokens(segment: list[tuple[str, str, int]]) -> int:
    return sum(tokens for _, _, tokens in segment)


def _announcement(segment: list[tuple[str, str, int]], heading: str, room: int) -> list[tuple[str, str, int]]:
    """The last paragraph taken off the segment where it announces what follows (`They are:`), if that has room for it."""
    last_heading, text, tokens = segment[-1]
    moves = len(segment) > 1 and last_heading == heading and text.endswith((":", "：")) and tokens <= room
    return [segment.pop()] if moves else []


def _pieces(paragraph: str, segment_tokens: int, count: Callable[[str], int]) -> list[str]:
    if count(paragraph) <= segment_tokens:
        return [paragraph]
    pieces = [""]
    for sentence in _SENTENCE.findall(paragraph):
        if pieces[-1] and count(pieces[-1] + sentence) > segment_tokens:
            pieces.append("")
        pieces[-1] += sentence
    return [piece.strip() for piece in pieces if piece.strip()]


def _merge(pieces: list[tuple[str, str, int]]) -> list[Section]:
    sections: list[tuple[str, list[str]]] = []
    for heading, piece, _ in pieces:
        if sections and sections[-1][0] == heading:
            sections[-1][1].append(piece)
        else:
            sections.append((heading, [piece]))
    return [Section(heading, "\n\n".join(texts)) for heading, texts in sections]
