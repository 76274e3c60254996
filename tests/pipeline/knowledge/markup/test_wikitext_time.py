"""No page takes time out of proportion to its length: what is superlinear is ours to mend, or is refused as damaged."""

import time

import pytest

from pipeline.knowledge.dump import namespaces
from pipeline.knowledge.markup import prose
from pipeline.knowledge.markup.wikitext import WikitextCleaner
from pipeline.languages import load_language

LENGTH = 50_000
MOST_S = 4.0
"""Processor time for `LENGTH` characters. The slowest linear case takes 1.3 s, a quadratic one ten seconds to many minutes."""
CLEANER = WikitextCleaner(load_language("en"), namespaces(load_language("en")))


def time_of(page: str) -> float:
    began = time.process_time()
    if not CLEANER.is_damaged(page):
        CLEANER.sections(page)
    return time.process_time() - began


MARKS = """
-{ -{a| -{zh -{-{a}- }- {{ {{a| {{{ [[ [[a| {| ¶{| ¶{|¶ ¶|- <ref <ref> <ref·name= <!-- <!-· '' ''' ¶'''aa =
¶==a &lt; & [http:// [http://a· [http://a·[[b]]· [http://a·<b>¶</b>· [//a· http://a· ¶* ¶#*:; # ¶;a: ( （ (see·
,· · ¶· __TOC__ __A < <a <a· <p> <div> <b> <math> <table> <nowiki> <noinclude> <ref>a<b> <div><b> <b></i>
]][[a| }}{{a| {{a|<!--}}--> {{a|<nowiki>}}</nowiki> {{a|[[b}}]] {-{{}- ·<!--·--> ¶*·a: a:<br> । ). Abcd.·
""".split()


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_again_and_again_takes_time_in_proportion(mark):
    mark = mark.replace("¶", "\n").replace("·", " ")
    page = mark * (LENGTH // len(mark))

    assert time_of(page) < MOST_S
    assert time_of(f"The land is flat. {page} y. Abc.") < MOST_S


@pytest.mark.parametrize(
    ("before", "mark", "after"),
    [
        ("'''aa'''", " ", "x"),
        ("(", prose.HOLE, "x"),
        ("({{x}}", " ", "x"),
        ("(", "{{x}}", "x"),
        ("x", "।", "y"),
        ("-{", "zh", ":x}-"),
        ("-{zh", " ", "x}-"),
        ("{{x}}", "\n* a:", ""),
        ("{{lang", "|a", "}}"),
        ("{{convert|1", "|to|1", "|km}}"),
        ("<math>", "}{", "</math>"),
        ("<div ", "a", "=b>x</div>"),
        ("{{" * 12_000, "x", "}}" * 12_000),
        ("-{a" * 9_000, "x", "}-" * 9_000),
        ("[[a|" * 9_000, "x", "]]" * 9_000),
        ("<b>" * 7_000, "x", "</b>" * 7_000),
        ("[[a]]" * 200 + "{{a|" * 190, "x ", ""),
    ],
)
def test_a_long_run_within_markup_takes_time_in_proportion(before, mark, after):
    page = before + mark * ((LENGTH - len(before + after)) // len(mark)) + after

    assert time_of(page) < MOST_S


@pytest.mark.parametrize("mark", ["{{a|", "[[a|", "<div>", "<b></i>", "\n{|\n", "[http://a b ", "{{{", "<a "])
def test_a_page_is_damaged_by_hundreds_of_marks_but_not_by_some(mark):
    assert CLEANER.is_damaged("Flat. " + mark * 300 + " More.")
    assert not CLEANER.is_damaged("Flat. " + mark * 100 + " More.")


@pytest.mark.parametrize(
    "honest",
    [
        "[[File:a.jpg|thumb|See [[b]].]]",
        "<ref>[http://a b]</ref> [http://a b] [[c]]",
        "<br><li>a<hr>",
        "<source>a<b> vector<int> {{</source>",
        "\n{|\n| {{a|\n{|\n|}}}\n|}",
        "[0, 1) ",
        "<p>a</p>",
        "-{zh:a}-",
        "{{a|{{{b|}}}}}",
        "<ref>",
    ],
)
def test_a_page_of_hundreds_of_closed_marks_is_whole(honest):
    assert not CLEANER.is_damaged(honest * 400)
