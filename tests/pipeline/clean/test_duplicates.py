"""Exact and near-duplicates as one: what each row loses to always stays."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean import duplicates as module
from pipeline.clean.duplicates import Duplicates, find_duplicates
from pipeline.clean.exact import normalise
from pipeline.clean.shingles import Bands
from pipeline.clean.steps import duplicates_step
from pipeline.engine.step import Step
from pipeline.recipe import parse_recipe

SURE = Bands(count=32, rows=4)  # finds all but one in ten million pairs of .8


def duplicates(threshold: float = 0.8) -> Callable[[Step], Step]:
    """Builds the step on another one."""
    recipe = parse_recipe(
        {
            "name": "p",
            "languages": ["en"],
            "agnostic": {"math": {"path": "p.jsonl", "budget": {"en": "all"}}},
            "clean": {"near_duplicate_threshold": threshold},
        }
    )
    return lambda given_rows: duplicates_step(recipe, given_rows)


def naive_jaccard(one: str, other: str) -> float:
    """Of the sets of windows of 5 characters; a shorter text is one window."""
    a, b = ({text[n : n + 5] for n in range(len(text) - 4)} or {text} for text in (one.lower(), other.lower()))
    return len(a & b) / len(a | b)


class Naive(NamedTuple):
    """The fate of one row: what it loses to, as what, and how alike they are."""

    partner: int
    exact: bool
    score: float


def naive_duplicates(texts: list[str], rank: list[int], threshold: float, known: int) -> dict[int, Naive]:
    """Row by row in the order of rank, each with all that stay; equal texts share the fate of the first of them."""
    fates: dict[int, Naive] = {}
    first: dict[str, int] = {}
    stay: list[int] = []
    for row in sorted(range(len(texts)), key=rank.__getitem__):
        form = normalise(texts[row], "zh")
        if (winner := first.setdefault(form, row)) != row:
            fate = fates.get(winner)
            exact = Naive(winner, True, 1.0)
            fates[row] = Naive(fate.partner, False, naive_jaccard(texts[row], texts[fate.partner])) if fate else exact
            continue
        alike = [(naive_jaccard(texts[row], texts[other]), -place, other) for place, other in enumerate(stay)]
        best = max(alike, default=(0.0, 0, row))
        if row >= known and best[0] >= threshold:
            fates[row] = Naive(best[2], False, best[0])
        else:
            stay.append(row)
    return {row: fate for row, fate in fates.items() if row >= known}


def fates(found: Duplicates) -> dict[int, Naive]:
    columns = (found.partner.tolist(), found.exact.tolist(), found.score.tolist())
    return {row: Naive(*rest) for row, *rest in zip(found.row.tolist(), *columns, strict=True)}


def rewritten(draw: random.Random, text: str) -> str:
    """The same text after `normalise`, or nearly the same before it."""
    changes: list[Callable[[str], str]] = [
        str,
        str.upper,
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace("昆", "崑"),
        lambda text: text + " ",
        lambda text: text + "!",
        lambda text: text + "?!",
        lambda text: "y" * 12 + text[12:],
    ]
    for _ in range(draw.choice([0, 1, 2])):
        text = draw.choice(changes)(text)
    return text


@settings(max_examples=60)
@given(st.integers(0, 100_000), st.integers(0, 24), st.integers(0, 5), st.integers(1, 9), st.sampled_from([1, 2]))
def test_the_fate_of_every_row_is_that_of_comparing_all_with_all(tmp_path_factory, seed, count, known, cut, threads):
    draw = random.Random(seed)
    families = ["".join(draw.choices("abcdefgh 昆字", k=draw.choice([2, 40, 150]))) for _ in range(3)]
    texts = [rewritten(draw, draw.choice(families)) for _ in range(count)]
    known = min(known, count)
    rank = [*draw.sample(range(known), known), *draw.sample(range(known, count), count - known)]
    arrays = [pa.array(texts[n : n + cut], pa.string()) for n in range(0, count, cut)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Bands, "at", staticmethod(lambda threshold: SURE))
        found = find_duplicates(
            lambda: arrays,
            count,
            0.8,
            lambda lengths: np.array(rank, np.int64),
            tmp_path_factory.mktemp("work"),
            known=known,
            threads=threads,
        )

    assert found.row.tolist() == sorted(found.row.tolist())
    assert set(found.partner.tolist()).isdisjoint(found.row.tolist())
    assert fates(found) == naive_duplicates(texts, rank, 0.8, known)


def long_text(seed: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnop ", k=300))


def test_what_equals_a_row_that_is_dropped_goes_with_it_to_a_row_that_stays(sample, run_over):
    texts = {"stays": long_text(1), "near": long_text(1) + "!", "equal to near": long_text(1).upper() + "!", "other": long_text(2)}
    rows = [sample(text, title=title) for title, text in texts.items()]

    outcome = run_over(duplicates(), rows)

    assert [row.source.title for row in outcome.kept] == ["stays", "other"]
    assert outcome.reasons == {"near": "near_duplicate", "equal to near": "near_duplicate"}
    assert {row["partner_id"] for row in outcome.dropped} == {rows[0].id}
    assert {row["detail"] for row in outcome.dropped} == {"Jaccard 0.997"}


@settings(max_examples=25)
@given(st.integers(0, 100_000), st.integers(1, 30))
def test_the_partner_of_a_dropped_row_is_a_row_that_stays(sample, run_over, seed, rows_per_part):
    draw = random.Random(seed)
    rows = [sample(rewritten(draw, long_text(draw.randrange(3))), title=f"{n}") for n in range(20)]

    outcome = run_over(duplicates(), rows, rows_per_part)

    kept = {row.id for row in outcome.kept}
    assert {row["partner_id"] for row in outcome.dropped} <= kept
    assert len(kept) + len(outcome.dropped) == 20


def test_the_first_row_stays_and_the_others_name_it(sample, run_over):
    rows = [sample("Why?", "So.", title=title) for title in ("first", "second", "third")]

    outcome = run_over(duplicates(), [sample("Other?", "So."), *rows])

    assert [row.source.title for row in outcome.kept] == ["row", "first"]
    assert [(row["reason"], row["partner_id"], row["detail"]) for row in outcome.dropped] == [
        ("exact_duplicate", rows[0].id, "")
    ] * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a b", "c"), ("a", "b c")),
        (("a",), ("a", "")),
        (("", ""), ("",)),
    ],
)
def test_where_one_turn_ends_and_the_next_begins_does_not_matter(sample, run_over, one, other):
    outcome = run_over(duplicates(), [sample(*one, title="one"), sample(*other, title="other")])

    assert outcome.reasons == {"other": "exact_duplicate"}


@pytest.mark.parametrize(("one", "other"), [(("a", "b"), ("ab",)), (("2 + 2?", "4"), ("2 + 3?", "4"))])
def test_different_words_are_different_rows(sample, run_over, one, other):
    assert len(run_over(duplicates(), [sample(*one), sample(*other, title="other")]).kept) == 2


def test_neither_language_nor_task_tell_rows_apart(sample, run_over):
    row = sample("2 + 2?", "4", task="math")

    outcome = run_over(duplicates(), [row, replace(row, id="fr", language="fr"), replace(row, id="code", task="code")])

    assert [(own["id"], own["reason"], own["partner_id"]) for own in outcome.dropped] == [
        ("fr", "exact_duplicate", row.id),
        ("code", "exact_duplicate", row.id),
    ]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["", "a", "A ", "字", "字 ", "ж", "ﬁ", "fi", "x" * 3000, "长" * 3000, "👍", "1"]), max_size=12))
def test_duplicates_of_any_length_and_script_are_found_and_nothing_else_is_lost(sample, run_over, texts):
    rows = [sample(text, text, language="zh", title=f"{number}") for number, text in enumerate(texts)]

    outcome = run_over(duplicates(1.0), rows)

    seen: set[str] = set()
    expected = [t for t in texts if normalise(t, "zh") not in seen and not seen.add(normalise(t, "zh"))]
    assert [row.messages[0].content for row in outcome.kept] == expected
    assert outcome.report.rows_in == len(rows)
    assert outcome.report.rows_in == outcome.report.rows_used + sum(outcome.report.dropped.values())


def test_no_row_is_no_problem(run_over):
    assert run_over(duplicates(), []).report.rows_in == 0
