"""Wikitext to sections of clean prose.

What a reader of the page would not call prose goes: references, templates, tables, galleries, file and category links in
any language's namespace names, and the sections that hold only apparatus. A few inline templates carry words of the
sentence; those keep them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import mwparserfromhell
from mwparserfromhell.nodes import Comment, ExternalLink, Heading, HTMLEntity, Node, Tag, Template, Text, Wikilink

from pipeline.languages import Language
from pipeline.sample import Section

# Templates whose last positional argument is words of the sentence, by lower-case name or its prefix before "-".
_KEEP_LAST = frozenset(
    """
    lang langue lang- nihongo transl nowrap nobr nobreak small smaller big abbr abréviation sc smallcaps formatnum
    unicode ipa язык нп5 нп3 не переведено iw ill lien illm link-interwiki lj le date-
    """.split()
)
_KEEP_FIRST = frozenset(
    ["abbr", "abréviation", "nihongo", "нп5", "нп3", "нп", "iw", "ill", "lien", "illm", "lj", "le", "nobr", "s2"]
)
_MEASURE = frozenset(["convert", "cvt", "unité", "unité/2", "unidad", "conversion"])
_DROP_TAGS = frozenset(
    """
    ref references gallery table timeline score imagemap templatedata syntaxhighlight source hiero graph mapframe
    maplink inputbox categorytree section noinclude
    """.split()
)
_LIST_MARKERS = {"li": "- ", "dd": "", "dt": ""}
_NUMBERED = "\ue000 "  # a private mark; numbered once the whole list is seen

_VARIANT = re.compile(r"-\{(.*?)\}-", re.DOTALL)
_MAGIC_WORD = re.compile(r"__[A-ZА-ЯЁ一-龥]+__")
_EMPTY_BRACKETS = re.compile(r"[ \u00a0]*[(（][\s,;:，；、：–—-]*[)）]")
_AFTER_BRACKET = re.compile(r"([(（])[\s,;，；、]+")
_SPACE_BEFORE_STOP = re.compile(r"[ \t]+([,.)\]，。；：、）])")
_QUOTE_MARKUP = re.compile(r"'{2,}")
_LIST_ITEM = re.compile(r"(- |\d+\. )")
_DEBRIS = re.compile(r"^\s*(\{\||\|\}|\|-|[|!]|\}\}|\{\{|\]\]|thumb\|)")


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

    def sections(self, text: str) -> list[Section]:
        """The page's prose in order, the lead first with the heading `""`; sections without prose are left out.

        A sub-section (level 3 and deeper) goes on under its own heading, and an apparatus section takes its sub-sections along.
        """
        code = mwparserfromhell.parse(_resolve_variants(text), skip_style_tags=True)
        result: list[Section] = []
        heading, level, skip_below = "", 0, 0
        buffer: list[str] = []

        def close() -> None:
            prose = _tidy("".join(buffer))
            if prose and not skip_below:
                result.append(Section(heading, prose))
            buffer.clear()

        for node in code.nodes:
            if isinstance(node, Heading):
                close()
                heading, level = _tidy("".join(self._render(node.title.nodes))).strip(), node.level
                if skip_below and level <= skip_below:
                    skip_below = 0
                if not skip_below and heading.lower().rstrip(":") in self._language.wikitext.apparatus:
                    skip_below = level
            else:
                buffer.extend(self._render([node]))
        close()
        return result

    def _render(self, nodes: Iterable[Node]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, Text):
                yield str(node.value)
            elif isinstance(node, Wikilink):
                yield from self._render_link(node)
            elif isinstance(node, Tag):
                yield from self._render_tag(node)
            elif isinstance(node, Template):
                yield from self._render_template(node)
            elif isinstance(node, ExternalLink):
                yield from self._render(node.title.nodes) if node.title else ()
            elif isinstance(node, HTMLEntity):
                yield node.normalize()
            elif not isinstance(node, Comment | Heading):
                continue

    def _render_link(self, link: Wikilink) -> Iterator[str]:
        title = str(link.title).strip()
        prefix, colon, rest = title.lstrip(":").partition(":")
        namespace = self._namespaces.get(prefix.strip().lower().replace("_", " "))
        if colon and not title.startswith(":") and (namespace in {6, 14, -2} or _is_interwiki(prefix, link)):
            return
        if link.text is not None:
            yield from self._render(link.text.nodes)
        else:
            yield (rest if namespace is not None else title.lstrip(":")).split("#")[0].strip() or title

    def _render_tag(self, tag: Tag) -> Iterator[str]:
        name = str(tag.tag).strip().lower()
        if name in _DROP_TAGS:
            return
        if name in _LIST_MARKERS:
            yield _NUMBERED if str(tag.wiki_markup or "") == "#" else _LIST_MARKERS[name]
        elif name in {"br", "hr"}:
            yield "\n" if name == "hr" else " "
        elif name in {"math", "chem", "ce"}:
            yield f"${str(tag.contents).strip()}$"
        elif tag.contents is not None:
            yield from self._render(tag.contents.nodes)

    def _render_template(self, template: Template) -> Iterator[str]:
        name = str(template.name).strip().lower().replace("_", " ")
        values = [p.value for p in template.params if not p.showkey]
        if not values:
            return
        if name in _MEASURE:
            yield " ".join(str(value).strip() for value in values[:2])
        elif name in _KEEP_FIRST:
            yield from self._render(values[0].nodes)
        elif name in _KEEP_LAST or name.startswith("lang-"):
            yield from self._render(values[-1].nodes)


def _is_interwiki(prefix: str, link: Wikilink) -> bool:
    """`[[fr:Titre]]` alone on its line is a link to another language, not a word of the sentence."""
    return link.text is None and bool(re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", prefix.strip()))


def _resolve_variants(text: str) -> str:
    """Chinese conversion markup `-{zh-hans:甲; zh-hant:乙}-` to its simplified reading; `-{甲}-` to what it holds."""

    def resolve(match: re.Match[str]) -> str:
        flag, bar, body = match[1].rpartition("|")
        if bar and set(flag.split(";")) & {"T", "H", "-"}:  # these set a title or a rule and show nothing
            return ""
        readings = dict(re.findall(r"(zh[\w-]*)\s*:\s*([^;]*)", body))
        return next(
            (readings[k] for k in ("zh-hans", "zh-cn", "zh-sg") if k in readings), next(iter(readings.values()), body)
        ).strip()

    return _VARIANT.sub(resolve, text)


def _tidy(text: str) -> str:
    """Paragraphs separated by one empty line, list items by a line end, no space or bracket left over by what was removed."""
    text = _QUOTE_MARKUP.sub("", _MAGIC_WORD.sub("", text)).replace("\u00a0", " ").replace("\u200b", "")
    for _ in range(2):
        text = _EMPTY_BRACKETS.sub("", text)
    text = _SPACE_BEFORE_STOP.sub(r"\1", _AFTER_BRACKET.sub(r"\1", text))
    blocks: list[list[str]] = [[]]
    number = 0
    for raw in text.split("\n"):
        line = re.sub(r"[ \t]+", " ", raw).strip()
        if line.startswith("\ue000"):
            number += 1
            line = f"{number}. {line[1:].strip()}"
        else:
            number = 0 if line else number
        if not line or line in {"-", "–"} or _DEBRIS.match(line):
            if blocks[-1]:
                blocks.append([])
        else:
            blocks[-1].append(line)
    return "\n\n".join(_join(block) for block in blocks if block)


def _join(lines: list[str]) -> str:
    """One line end in wikitext is a space to its reader, except around list items."""
    out = lines[0]
    for before, line in pairwise(lines):
        out += ("\n" if _LIST_ITEM.match(line) else "\n\n" if _LIST_ITEM.match(before) else " ") + line
    return out
