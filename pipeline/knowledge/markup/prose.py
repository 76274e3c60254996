"""From rendered wikitext, whose structure is in private marks, to paragraphs that a reader would sign.

The marks are characters of the private use area, one each for a list item, an indent, a formula and so on; the text that
comes in has none of its own, and none goes out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

NUMBER, BULLET, INDENT, TERM = "\ue000", "\ue001", "\ue002", "\ue003"  # what a line begins with: `#`, `*`, `:`, `;`
HOLE = "\ue004"  # something was here that is not known
GONE = "\ue005"  # a table or the like was here, on lines of its own
LINE = "\ue006"  # a line end that counts: <br>, verse
FAULT = "\ue007"  # markup that did not parse
_FORMULA_OPENS, _FORMULA_ENDS = "\ue008", "\ue009"
_FORMULA = re.compile(f"{_FORMULA_OPENS}(.*?){_FORMULA_ENDS}", re.DOTALL)
_FORMULA_PLACE = re.compile("[\U000f0000-\U000ffffd]")
_PRIVATE = re.compile("[\ue000-\ue009\U000f0000-\U000ffffd]")

_INVISIBLE = re.compile("[\u200b\u200e\u200f\u2060\ufeff\u00ad]")
_MAGIC_WORD = re.compile(r"__[A-ZА-ЯЁÀ-Þ一-龥]+__")
_BOLD_LINE = re.compile(r"^'''(?!')([^'\n]{2,80}?)'''(?:\s*+([.:：])\s*$|\s*$)", re.MULTILINE)
_QUOTE_MARKUP = re.compile(r"'{2,}")
_STRAY_COMMENT = re.compile(r"<!-[^<>\n]*>|<!--|-->")
_STRAY_TAG = re.compile(
    r"</?(?:br|hr|p|div|span|font|center|small|big|sub|sup|nowiki|noinclude|includeonly|onlyinclude|code|tt|blockquote|poem|"
    r"gallery|center|cite|abbr|u|s|i|b|em|strong|table|t[rdh]|li|ul|ol|d[ltd])\b[^<>\n]*>",
    re.IGNORECASE,
)
_FAULTS = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?(?:ref|math|gallery)\b[^<>\n]*>?|\bthumb\|", re.IGNORECASE)
_DEBRIS = re.compile(r"^\s*(?:\||!\s|!!)")

# "alphabets.[3]": copied from a page as it is shown, a reference and no markup.
_PASTED_REFERENCE = re.compile(r"(?<=[.,;:!?”\"»。，！？])(?:\[\d{1,3}\])+(?=\s|$)")
# A run of spaces, stops or holes is tried from its beginning alone: from every place in it takes forever on a long one.
_EMPTY_BRACKETS = re.compile(r"(?<![ \u00a0])[ \u00a0]*+[(（](?:[\s,;:，；、：،؛/–—-]|\b(?:e\.g\.|i\.e\.|see|cf\.))*[)）]")
_HOLED_BRACKETS = re.compile(rf"(?<![ \u00a0])[ \u00a0]*+[(（][^()（）\n{HOLE}]*+{HOLE}[^()（）\n]*+[)）]")
_AFTER_BRACKET = re.compile(r"([(（])[\s,;,；、]+")
_SPACE_BEFORE_STOP = re.compile(r"(?<![ \t])[ \t]++([,.)\]，。；：、）،؛؟।](?!\d))")
_REPEATED_STOP = re.compile(r"([,;，；、،؛])(?:\s*[,;，；、،؛])+")
# A mark that adds nothing: grown on to the word before it, or between two sentences, or before the first.
_SILENT_HOLE = re.compile(
    rf"(?<=[^\s(\[（「『“«\"$£€¥{HOLE}]){HOLE}+(?=[\s.,;:!?)\]，。；：、）،؛؟।」』”»\"]|$)|(?<=[.!?…]\s){HOLE}+(?=\s*[^\W\d_a-zа-яё]|\s*$)|^{HOLE}+\s*(?=[“\"«(]?[^\W\d_a-zа-яё])"
)
# Where one sentence surely ends: a word of four letters, so that no abbreviation counts, a stop, a capital.
_SENTENCE_END = re.compile(
    r"(?:[^\W\d_]{4}|\d\d|[)\]”»\"’])[.!?…]+[\"”»’)\]]*\s+(?=[¿¡«“\"(]?(?:[^\W\d_a-zа-яёà-ÿ]|\d))|(?<![।॥؟])[।॥؟]++\s+|[。！？]+[”」』）]*"
)
_WORDS = re.compile(rf"[^\s{LINE}.,;:–—-]")
_LINE_MARKS = re.compile(f"[{NUMBER}{BULLET}{INDENT}{TERM}]")
_FIGURES = re.compile(r"[0-9+\-−–=()]+")
_ORDINAL = re.compile(r"(?:st|nd|rd|th|er|re|ère|e|es|d|nde|ème|èmes|o|os|a|as|ª|º|me|mes|lle|r|le|tm|®|™|\W*)", re.IGNORECASE)
_SUPERSCRIPTS = str.maketrans("0123456789+-−–=()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁼⁽⁾")
_SUBSCRIPTS = str.maketrans("0123456789+-−–=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₋₌₍₎")
_LETTER = re.compile(r"[^\W\d_]|[\U000f0000-\U000ffffd]")
_LIST_ITEM = re.compile(r"- |\d+\. ")
_ANNOUNCES = (":", "：")


@dataclass(frozen=True)
class _Line:
    """One line of a block; `kind` is `plain`, `verse`, `item`, `more` (of an item), `indent` or `term`."""

    kind: str
    text: str


def unmarked(text: str) -> str:
    """The text without any private character that would be taken for a mark."""
    return _PRIVATE.sub("", text)


def formula(latex: str) -> str:
    """A formula as `$…$`, safe from all that is done to prose; double braces are set apart, which says the same in LaTeX."""
    latex = " ".join(latex.split())
    while "{{" in latex or "}}" in latex:
        latex = latex.replace("{{", "{ {").replace("}}", "} }")
    return f"{_FORMULA_OPENS}${latex}${_FORMULA_ENDS}" if latex else ""


def raised(text: str) -> str:
    """A superscript in one line: `10¹⁸`, `H⁺`, `2^n`, but `19th`."""
    if _FIGURES.fullmatch(text):
        return text.translate(_SUPERSCRIPTS)
    if _ORDINAL.fullmatch(text.strip()):
        return text.strip()
    return f"^{text}" if text.isalnum() else f"^({text})"


def lowered(text: str) -> str:
    """A subscript in one line: `H₂O`; what is not a figure stays as it is."""
    return text.translate(_SUBSCRIPTS) if _FIGURES.fullmatch(text) else text


def tidy(text: str) -> str:
    """Paragraphs separated by one empty line, list items by a line end; sentences with a hole and what announces nothing go."""
    formulas: list[str] = []

    def keep(match: re.Match[str]) -> str:
        formulas.append(match[1])
        return chr(0xF0000 + len(formulas) - 1)

    text = _FORMULA.sub(keep, text)
    paragraphs = _announcing_something(_paragraphs(_cleaned(text)))
    prose = "\n\n".join(p for p in paragraphs if _LETTER.search(p))
    prose = _FORMULA_PLACE.sub(lambda match: formulas[ord(match[0]) - 0xF0000], prose)
    return _PRIVATE.sub("", prose)


def tidy_heading(text: str) -> str:
    """One line, without markup and marks."""
    text = _QUOTE_MARKUP.sub("", _FORMULA.sub(r"\1", text))
    return " ".join(_PRIVATE.sub("", _STRAY_TAG.sub("", text)).split())


def _cleaned(text: str) -> str:
    text = _PASTED_REFERENCE.sub("", _INVISIBLE.sub("", _MAGIC_WORD.sub("", text)).replace("\u00a0", " "))
    text = _STRAY_TAG.sub("", _STRAY_COMMENT.sub("", text))
    text = _QUOTE_MARKUP.sub("", _BOLD_LINE.sub(rf"{TERM}\1\2", text))
    text = _FAULTS.sub(FAULT, text)
    for _ in range(3):  # brackets in brackets
        text = _HOLED_BRACKETS.sub("", _EMPTY_BRACKETS.sub("", text))
    return _SPACE_BEFORE_STOP.sub(r"\1", _REPEATED_STOP.sub(r"\1", _AFTER_BRACKET.sub(r"\1", text)))


def _paragraphs(text: str) -> list[str]:
    """Joined blocks in order; `GONE` stands for itself, and a lone term keeps its mark."""
    result: list[str] = []
    block: list[_Line] = []
    number = 0
    for raw in [*text.split("\n"), ""]:
        line, number = _line(raw, number)
        if line is not None and line.text != GONE:
            block.extend(_verses(line))
            continue
        if block:
            result.append(_join(block))
            block = []
        if line is not None:
            result.append(GONE)
    return result


def _line(raw: str, number: int) -> tuple[_Line | None, int]:
    """The line and the count of the numbered list it is in; None for an empty one."""
    marks = re.match(rf"[ \t{NUMBER}{BULLET}{INDENT}{TERM}]*", raw)
    run = re.sub(r"[ \t]", "", marks[0]) if marks else ""
    body = _LINE_MARKS.sub(_definition, raw[len(marks[0]) :] if marks else raw)
    text = re.sub(r"[ \t]+", " ", _without_holes(re.sub(r"[ \t]+", " ", body))).strip()
    if GONE in text or (text == HOLE) or _DEBRIS.match(text):
        return _Line("plain", GONE), 0
    if not _WORDS.search(text):
        return None, number if run else 0
    kind = _kind(run)
    if kind == "item" and run == NUMBER:
        number += 1
        return _Line(kind, f"{number}. {text}"), number
    if kind == "item":
        return _Line(kind, f"- {text}"), number
    if kind == "plain" and raw.startswith(" "):
        kind = "verse"
    return _Line(kind, TERM + text if kind == "term" else text), number if run else 0


def _kind(run: str) -> str:
    """What a line is by the marks that it begins with; the last one decides, as in `*:`, the second line of an item."""
    if not run:
        return "plain"
    if run[-1] == INDENT:
        return "indent" if set(run) == {INDENT} else "more"
    return "term" if run[-1] == TERM else "item"


def _definition(match: re.Match[str]) -> str:
    """A mark within a line: the colon of `;term: definition`."""
    return ": " if match[0] == INDENT else ""


def _verses(line: _Line) -> list[_Line]:
    """The line split at its own line ends."""
    first, *others = (part.strip() for part in line.text.split(LINE))
    lines = [_Line(line.kind, first), *(_Line("verse", other) for other in others)]
    return [part for part in lines if part.text]


def _join(block: list[_Line]) -> str:
    out = block[0].text
    for before, line in pairwise(block):
        out += _between(before, line) + line.text.removeprefix(TERM)
    return out if len(block) == 1 else out.removeprefix(TERM)


def _between(before: _Line, line: _Line) -> str:
    """One line end in wikitext is a space to its reader, except around list items, indents and terms."""
    if line.kind in {"item", "verse"}:
        return "\n"
    if line.kind == "more":
        return " "
    if line.kind == "indent":
        return _before_indent(before, line)
    if before.kind == "indent":  # a formula stands in its sentence, a quotation by itself
        return " " if _FORMULA_PLACE.match(before.text) and line.text[0].islower() else "\n\n"
    return " " if line.kind == before.kind == "plain" else "\n\n"


def _before_indent(before: _Line, line: _Line) -> str:
    if before.kind == "term":
        return " " if before.text.endswith(_ANNOUNCES) else ": "
    return " " if before.kind == "plain" and _FORMULA_PLACE.match(line.text) else "\n"


def _without_holes(line: str) -> str:
    """The line without the sentences that miss something; a line that was nothing but a hole stays one."""
    if HOLE not in line and FAULT not in line:
        return line
    if line.strip().strip(HOLE).strip() == "":
        return HOLE if HOLE in line else ""
    line = _SILENT_HOLE.sub("", line)
    whole = "".join(sentence for sentence in _sentences(line) if HOLE not in sentence and FAULT not in sentence)
    return whole if whole.strip() else GONE


def _sentences(line: str) -> list[str]:
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(line)), len(line)]
    return [line[start:end] for start, end in pairwise(ends)]


def _announcing_something(paragraphs: list[str]) -> list[str]:
    """Without the ends that announce what is gone (`These are:` before a table), and without terms that nothing follows."""
    result: list[str] = []
    following = GONE
    for paragraph in reversed(paragraphs):
        if paragraph == GONE:  # a list after what is gone may be the one announced
            following = following if _LIST_ITEM.match(following) else GONE
            continue
        if following[0] in {GONE, TERM}:
            paragraph = "" if paragraph.startswith(TERM) else _without_announcements(paragraph)  # noqa: PLW2901
        if paragraph:
            result.append(paragraph)
            following = paragraph
    return [paragraph.removeprefix(TERM) for paragraph in reversed(result)]


def _without_announcements(paragraph: str) -> str:
    """The paragraph up to the last sentence that does not end with a colon."""
    lines = paragraph.split("\n")
    while lines and lines[-1].endswith(_ANNOUNCES):
        lines[-1] = "".join(_sentences(lines[-1])[:-1]).rstrip()
        while lines and not lines[-1].strip():
            lines.pop()
    return "\n".join(lines).rstrip()
