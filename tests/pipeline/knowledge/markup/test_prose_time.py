"""Text without markup takes time in proportion to its length, and long numbers are no error."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.knowledge.dump import namespaces
from pipeline.knowledge.markup import prose
from pipeline.knowledge.markup.wikitext import WikitextCleaner
from pipeline.knowledge.records import plain_sections
from pipeline.languages import load_language

MOST_S = 4.0
"""Processor time; linear cases take a tenth of it."""


@pytest.mark.parametrize(
    ("before", "mark", "after"),
    [
        *(
            (before, space, after)
            for before in ("", "x", "(", "'''aa'''")
            for space in " \t\u00a0"
            for after in ("", "x", "\nx", ".x")
        ),
        ("(", prose.HOLE, "x"),
        ("x", "।", "y"),
        ("", f"{prose.BULLET}a:\n", ""),
        ("", f"a:{prose.LINE}", ""),
    ],
)
def test_a_long_run_takes_time_in_proportion(before, mark, after):
    began = time.process_time()
    prose.tidy(before + mark * (50_000 // len(mark)) + after)

    assert time.process_time() - began < MOST_S


@pytest.mark.parametrize(("before", "mark", "after"), [("", "=", "x"), ("==a", "=", "b=="), ("== ", " ", "x"), ("# a", " ", "b")])
def test_a_line_that_is_nearly_a_heading_takes_time_in_proportion(before, mark, after):
    began = time.process_time()
    plain_sections(before + mark * 50_000 + after)

    assert time.process_time() - began < MOST_S


LINES = st.text(alphabet="=# \ta", max_size=12).map(lambda line: f"x{line}" if not line.strip("=# \t") else line)


@given(LINES)
def test_headings_are_read_as_by_the_pattern(line):
    heading = re.match(r"^(?:==+\s*(.+?)\s*==+|#{1,4}\s+(.+?))\s*$", line)

    assert [s.heading for s in plain_sections(f"{line}\nz")] == [(heading[1] or heading[2]) if heading else ""]


PIECES = st.sampled_from(
    ["Flat land", "甲", ". ", "。", "।", ":", "：", " ", "\n", prose.BULLET, prose.LINE, prose.INDENT, "(", "|", ")"]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_what_announces_something_that_is_gone_goes_as_sentence_by_sentence(text):
    """Against the reference, which takes the last sentence away as long as it announces something."""

    def without_last_sentence(paragraph: str) -> str:
        *lines, last = paragraph.split("\n")
        return "\n".join([*lines, "".join(prose._sentences(last)[:-1])]).rstrip()

    for paragraph in prose._paragraphs(prose._cleaned(text)):
        expected = paragraph
        while expected.endswith((":", "：")):
            expected = without_last_sentence(expected)
        assert prose._without_announcements(paragraph) == expected


SPACED = st.text(alphabet="a1.,:।?()（） \t\n'" + prose.HOLE, max_size=24) | st.sampled_from(
    ["'''aa''' :\n\n b", "'''aa'''  \n \n: b"]
)


@given(SPACED)
def test_runs_are_read_as_by_the_plain_patterns(text):
    """Against the patterns as one would write them, which try a run from every place in it."""
    hole = prose.HOLE
    inside = r"(?:[\s,;:，；、：،؛/–—-]|\b(?:e\.g\.|i\.e\.|see|cf\.))*"
    for pattern, plain, kept in (
        (prose._EMPTY_BRACKETS, rf"[ \u00a0]*[(（]{inside}[)）]", ""),
        (prose._HOLED_BRACKETS, rf"[ \u00a0]*[(（][^()（）\n]*{hole}[^()（）\n]*[)）]", ""),
        (prose._SPACE_BEFORE_STOP, r"[ \t]+([,.)\]，。；：、）،؛؟।](?!\d))", r"\1"),
        (prose._BOLD_LINE, r"^'''(?!')([^'\n]{2,80}?)'''\s*([.:：]?)\s*$", r"<\1\2>"),
    ):
        kept_here = kept
        assert pattern.sub(kept_here, text) == re.sub(plain, kept_here, text, flags=re.MULTILINE)


CLEANERS = {code: WikitextCleaner(load_language(code), namespaces(load_language(code))) for code in ("en", "es")}


@pytest.mark.parametrize(
    ("language", "markup"),
    [("en", "{{convert|%s|km}}"), ("en", "{{as of|2011|%s}}"), ("es", "{{fecha|1|%s}}"), ("en", "[[a&#%s;]]")],
)
def test_a_number_too_long_for_python_is_no_error(language, markup):
    assert CLEANERS[language].sections(f"Flat. {markup % ('1' * 5000)}")
