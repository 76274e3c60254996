import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.knowledge.dump import namespaces
from pipeline.knowledge.markup.wikitext import WikitextCleaner
from pipeline.languages import load_language

CLEANER = WikitextCleaner(load_language("zh"), namespaces(load_language("zh")))


def shown_text(page: str) -> str:
    return "\n\n".join(section.text for section in CLEANER.sections(page))


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a -{b-{c}-d}- e", "a bcd e"),
        ("-{zh-hans:甲-{乙}-; zh-hant:丙}-", "甲乙"),
        ("a -{b -{c}- d", "a -{b c d"),
        ("a }- b", "a }- b"),
        ("-{" * 11 + "a" + "}-" * 11, "-{a}-"),
    ],
)
def test_variants_within_variants_are_resolved_and_unclosed_ones_stay(markup, text):
    assert shown_text(markup) == text


PIECES = st.sampled_from(["甲", "a", " ", "|", ";", ":", "zh-hans:", "zh-tw:", "zh:", "T|", "H;A|", "-", "{", "}", "\n"])


@given(st.lists(st.lists(PIECES, max_size=6).map("".join), max_size=8))
def test_flat_variants_are_read_as_by_the_pattern(texts):
    """Against the reading of one expression, which is what they were resolved with, where nothing is nested or left open."""
    pieces = [re.sub(r"-\{|\}-|[{}-]+$|^[{}-]+", "", text) for text in texts]
    page = "x".join(f"-{{{piece}}}-" if number % 2 else piece for number, piece in enumerate(pieces))

    def resolve(match: re.Match[str]) -> str:
        flag, bar, body = match[1].rpartition("|")
        if bar and set(flag.split(";")) & {"T", "H", "-"}:
            return ""
        readings = dict(re.findall(r"(?<![\w-])(zh[\w-]*)\s*:\s*([^;]*)", body))
        chosen = [readings[key] for key in ("zh-hans", "zh-cn", "zh-sg") if key in readings]
        return [*chosen, *readings.values(), body][0].strip()

    assert shown_text(page) == shown_text(re.sub(r"-\{(.*?)\}-", resolve, page, flags=re.DOTALL))


@pytest.mark.parametrize("markup", ["-{", "-{a|", "-{zh", "-{-{a}- ", "}-", "-{zh-cn:a;"])
def test_variants_that_are_never_closed_take_time_in_proportion(markup):
    began = time.process_time()
    CLEANER.sections(markup * (120_000 // len(markup)))

    assert time.process_time() - began < 4  # half a second or less; minutes when each looks for its end
