"""Wikitext to sections of clean prose.

What a reader of the page would not call prose goes: references, templates, tables, galleries, file and category links in
any language's namespace names, and the sections that hold only apparatus. Templates that carry words of the sentence keep
them (`templates`); what the rest leaves behind is mended in `prose`.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import mwparserfromhell
from mwparserfromhell.definitions import is_single
from mwparserfromhell.nodes import Argument, ExternalLink, Heading, HTMLEntity, Node, Tag, Template, Text, Wikilink

from pipeline.knowledge.markup.prose import (
    BULLET,
    FAULT,
    GONE,
    HOLE,
    INDENT,
    LINE,
    NUMBER,
    TERM,
    formula,
    lowered,
    raised,
    tidy,
    tidy_heading,
    unmarked,
)
from pipeline.knowledge.markup.templates import shown
from pipeline.languages import Language
from pipeline.rows.sample import Section

_DROP_TAGS = frozenset("ref references templatedata maplink mapframe section noinclude indicator templatestyles".split())
_GONE_TAGS = frozenset(
    "table gallery timeline score imagemap syntaxhighlight source hiero graph inputbox categorytree chart".split()
)
_BLOCK_TAGS = frozenset("p div blockquote center pre dl ul ol hr poem".split())
_FORMULA_TAGS = frozenset(["math", "chem", "ce"])
_LIST_MARKS = {"*": BULLET, "#": NUMBER, ":": INDENT, ";": TERM}
_HTML_LIST_MARKS = {"li": BULLET, "dd": INDENT, "dt": TERM}
_SHIFTED = {"sup": raised, "sub": lowered}
# The named arguments that templates show or are shaped by.
_NAMED = frozenset("texte text текст alt lc since bare e u ul adj".split())

# References and comments: a quarter of a page's wikitext, a third of the parser's work. What is shown as it stands is left
# alone. A reference within which another begins was never closed.
_UNSEEN = re.compile(
    r"<(?:(?P<comment>!--)|(?P<shown>nowiki|pre|source|syntaxhighlight)\b[^<>]*(?<!/)>"
    r"|ref\b[^<>]*/>|ref\b[^<>]*>[^<]*(?:<(?!/?ref\b)[^<]*)*</ref\s*>|(?P<unclosed>ref)\b[^<>]*>)",
    re.IGNORECASE,
)
_ENDS = {tag: re.compile(rf"</{tag}\s*>", re.IGNORECASE) for tag in ("nowiki", "pre", "source", "syntaxhighlight")}
_ENDS["!--"] = re.compile("-->")
_LINE_END = re.compile(r"[ \t]*\n")
_NO_CHARACTER = re.compile(r"&#[0-9]{8,};?")  # more than Unicode has, and from 4300 digits on more than Python reads
_NOTHING = "<ref/>"  # of a reference: not a comment, which would end one that was never closed

_VARIANT_MARK = re.compile(r"(-\{|\}-)")
_READING = re.compile(r"(?<![\w-])(zh[\w-]*)\s*:\s*([^;]*)")
_MOST_VARIANT_LEVELS = 10  # MediaWiki's own limit for conversion markup within conversion markup
# The parser reads on to the page's end for every mark that is never closed: a page of 160 KB takes 5 s more for two hundred.
# Into arguments `{{{` it goes down without a limit of its own.
_MOST_UNCLOSED = 200
# A mark that opens is the group, one that closes is not.
_BRACES, _BRACKETS = re.compile(r"(\{\{)|\}\}"), re.compile(r"(\[\[)|\]\]")
_TABLES = re.compile(r"(^[ \t:]*\{\|)|^[ \t]*\|\}", re.MULTILINE)
_ADDRESSES = re.compile(r"\[\[|\]\]|(\[(?:[a-z][a-z0-9+.-]*:|//))|(\])", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)\b[^<>]*(?<!/)>", re.IGNORECASE)
_LITERAL = re.compile(r"<(nowiki|pre|source|syntaxhighlight)\b[^<>]*(?<!/)>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_HALF_TAG = re.compile(r"<[a-z][^<>]*(?=<|\Z)", re.IGNORECASE)


def _without_unseen(text: str) -> str:
    """The page without comments and references.

    A comment leaves nothing, for it may stand within a link's target; one alone on its line takes the line along, one that is
    never closed the rest of the page (MediaWiki). Other tags that are never closed are faults, and no work for the parser.
    """
    pieces: list[str] = []
    taken = position = 0
    unclosed = {"ref"}  # what has no end any more, so that nobody looks for it again
    while (begin := _UNSEEN.search(text, position)) is not None:
        before, position = text[taken : begin.start()], begin.end()
        kind = (begin["comment"] or begin["shown"] or begin["unclosed"] or "").lower()
        end = _ENDS[kind].search(text, position) if kind and kind not in unclosed else None
        if end is not None:
            position = end.end()
        if not kind:
            pieces += before, _NOTHING
        elif kind == "!--":
            line, after = before.rstrip(" \t"), _LINE_END.match(text, position)
            if after and text.endswith("\n", 0, taken + len(line)):
                before, position = line, after.end()
            pieces.append(before)
            if end is None:
                return "".join(pieces)
        elif end is None:
            unclosed.add(kind)
            pieces += before, "" if kind == "nowiki" else FAULT
        else:
            continue
        taken = position
    return "".join([*pieces, text[taken:]])


class WikitextCleaner:
    """Cleans the pages of one dump; `namespaces` are its lower-case namespace names with their numbers."""

    def __init__(self, language: Language, namespaces: Mapping[str, int]) -> None:
        self._language = language
        self._namespaces = dict(namespaces)
        names = "|".join(re.escape(name) for name in sorted(language.wikitext.disambiguation, key=len, reverse=True))
        self._disambiguation = re.compile(rf"\{{\{{\s*(?:{names}|disambig(?:uation)?)\s*[|}}]", re.IGNORECASE)

    def is_disambiguation(self, text: str) -> bool:
        """Whether the page carries a disambiguation template of its language."""
        return bool(self._disambiguation.search(text))

    @staticmethod
    def is_damaged(text: str) -> bool:
        """Whether hundreds of templates, links, tables or tags are open at one place, or hundreds of tags break off."""
        seen = _LITERAL.sub("", _parsed_text(text))
        addresses = [opened for opened, closed in _ADDRESSES.findall(seen) if opened or closed]
        marks = chain((pattern.findall(seen) for pattern in (_BRACES, _BRACKETS, _TABLES)), (addresses,), _tag_marks(seen))
        return len(_HALF_TAG.findall(seen)) > _MOST_UNCLOSED or any(_most_open(opens) > _MOST_UNCLOSED for opens in marks)

    def sections(self, text: str) -> list[Section]:
        """The page's prose in order, the lead first with the heading `""`; sections without prose are left out.

        A sub-section (level 3 and deeper) goes on under its own heading, and an apparatus section takes its sub-sections along.
        """
        code = mwparserfromhell.parse(_parsed_text(text), skip_style_tags=True)
        result: list[Section] = []
        heading, level, skip_below = "", 0, 0
        buffer: list[str] = []

        def close() -> None:
            if not skip_below and (prose := tidy("".join(buffer))):
                result.append(Section(heading, prose))
            buffer.clear()

        for node in code.nodes:
            if isinstance(node, Heading):
                close()
                heading, level = tidy_heading(self._text(node.title.nodes)), node.level
                if skip_below and level <= skip_below:
                    skip_below = 0
                if not skip_below and heading.lower().rstrip(":") in self._language.wikitext.apparatus:
                    skip_below = level
            elif not skip_below:
                buffer.extend(self._render([node]))
        close()
        return result

    def _text(self, nodes: Iterable[Node]) -> str:
        return "".join(self._render(nodes))

    def _render(self, nodes: Iterable[Node]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, Text):
                yield str(node.value)
            elif isinstance(node, Wikilink):
                yield self._link(node)
            elif isinstance(node, Tag):
                yield self._tag(node)
            elif isinstance(node, Template):
                yield self._template(node)
            elif isinstance(node, ExternalLink):
                yield self._text(node.title.nodes) if node.title else ""
            elif isinstance(node, HTMLEntity):
                yield unmarked(html.unescape(str(node)))
            elif isinstance(node, Heading):  # within a tag, where it is no section's
                yield f"\n{TERM}{self._text(node.title.nodes)}\n"
            elif isinstance(node, Argument):
                yield HOLE

    def _link(self, link: Wikilink) -> str:
        title = html.unescape(_NO_CHARACTER.sub("\ufffd", str(link.title))).strip()
        prefix, colon, rest = title.lstrip(":").partition(":")
        namespace = self._namespaces.get(prefix.strip().lower().replace("_", " "))
        if colon and not title.startswith(":") and (namespace in {6, 14, -2} or _is_interwiki(prefix, link)):
            return ""
        if link.text is not None:
            return self._text(link.text.nodes)
        shown_title = rest if namespace is not None else title.lstrip(":")
        return unmarked(shown_title.split("#")[0].strip().replace("_", " ") or title.lstrip("#"))

    def _tag(self, tag: Tag) -> str:
        name = str(tag.tag).strip().lower()
        markup = str(tag.wiki_markup or "")
        if name in _DROP_TAGS:
            return ""
        if name in _GONE_TAGS:
            return f"\n{GONE}\n"
        if markup in _LIST_MARKS:
            return _LIST_MARKS[markup]
        if name in _FORMULA_TAGS:
            return formula(str(tag.contents))
        return _laid_out(name, self._text(tag.contents.nodes) if tag.contents is not None else "")

    def _template(self, template: Template) -> str:
        name = " ".join(str(template.name).lower().replace("_", " ").split())
        values: list[str] = []
        named: dict[str, str] = {}
        for parameter in template.params:
            key = str(parameter.name).strip()
            if not parameter.showkey or key.isdigit():
                values.append(self._text(parameter.value.nodes).strip())
            elif key in _NAMED:
                named[key] = self._text(parameter.value.nodes).strip()
        words = shown(name, values, named)
        return HOLE if words is None else words


def _parsed_text(text: str) -> str:
    """The page as the parser gets it."""
    return _resolve_variants(_without_unseen(unmarked(text)))


def _tag_marks(text: str) -> Iterable[list[bool]]:
    """Of every kind of tag that has to be closed, whether it is opened (or else closed), in order."""
    marks: defaultdict[str, list[bool]] = defaultdict(list)
    for slash, name in _TAG.findall(text):
        marks[name.lower()].append(not slash)
    return (opens for name, opens in marks.items() if not is_single(name))


def _most_open(opens: Iterable[object]) -> int:
    """How many marks are open at one place at most; each of `opens` is true where one opens and false where one closes."""
    most = now = 0
    for opened in opens:
        now = now + 1 if opened else max(now - 1, 0)
        most = max(most, now)
    return most


def _laid_out(tag: str, text: str) -> str:
    """The text of a tag with the line ends that the tag stands for."""
    if tag in _HTML_LIST_MARKS:
        return f"\n{_HTML_LIST_MARKS[tag]}{text.strip()}\n"
    if tag in _SHIFTED:
        return _SHIFTED[tag](text)
    if tag == "poem":
        text = LINE.join(text.strip().splitlines())
    if tag == "br":
        return LINE
    return f"\n\n{text}\n\n" if tag in _BLOCK_TAGS else text


def _is_interwiki(prefix: str, link: Wikilink) -> bool:
    """`[[fr:Titre]]` alone on its line is a link to another language, not a word of the sentence."""
    return link.text is None and bool(re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", prefix.strip()))


def _resolve_variants(text: str) -> str:
    """Chinese conversion markup `-{zh-hans:甲; zh-hant:乙}-` to its simplified reading; `-{甲}-` to what it holds.

    As in MediaWiki, markup within markup is resolved from the inside out; what is never closed or nested too deep stays as text.
    Linear in the text.
    """
    levels: list[list[str]] = [[]]  # the pieces of the page, then of every markup that is open
    for piece in _VARIANT_MARK.split(text):
        if piece == "-{" and len(levels) <= _MOST_VARIANT_LEVELS:
            levels.append([])
        elif piece == "}-" and len(levels) > 1:
            body = "".join(levels.pop())
            levels[-1].append(_reading(body))
        else:
            levels[-1].append(piece)
    return "-{".join(map("".join, levels))


def _reading(markup: str) -> str:
    """What stands between `-{` and `}-` as a reader of simplified Chinese sees it."""
    flag, bar, body = markup.rpartition("|")
    if bar and set(flag.split(";")) & {"T", "H", "-"}:  # these set a title or a rule and show nothing
        return ""
    readings = dict(_READING.findall(body))
    return next((readings[k] for k in ("zh-hans", "zh-cn", "zh-sg") if k in readings), next(iter(readings.values()), body)).strip()
