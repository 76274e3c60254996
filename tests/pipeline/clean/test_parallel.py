"""Groups of rows that say the same: on vectors made for the purpose, beside what a full matrix of margins says."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.parallel import ABSENT, NEIGHBOURS, Groups, Threshold, parallel_groups
from pipeline.text.facts import Facts, facts

NOTHING = facts("")
DIMENSIONS = 64


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)


def said_in(languages: list[str], meanings: int, seed: int = 1, noise: float = 0.5, common: float = 0.0) -> np.ndarray:
    """Meanings in several languages, language after language; `common` is what all of them have in common."""
    draw = np.random.default_rng(seed)
    meant = draw.normal(size=(meanings, DIMENSIONS)) + common * draw.normal(size=DIMENSIONS)
    return unit(np.concatenate([meant + noise * draw.normal(size=meant.shape) for _ in languages]))


def unrelated(rows: int, seed: int, common: float = 1.2) -> np.ndarray:
    shared = np.random.default_rng(0).normal(size=DIMENSIONS)
    return unit(np.random.default_rng(seed).normal(size=(rows, DIMENSIONS)) + common * shared)


def group(vectors: np.ndarray, languages: list[str], stated: dict[int, Facts] | None = None, **options) -> Groups:
    return parallel_groups(vectors, languages, lambda row: (stated or {}).get(row, NOTHING), **options)


def together(groups: Groups) -> set[frozenset[int]]:
    numbers = set(groups.group.tolist()) - {-1}
    return {frozenset(np.flatnonzero(groups.group == number).tolist()) for number in numbers}


def margins_in_full(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(left, right): cosine over the mean of both sides' mean cosine to their nearest; those that are not there count as ABSENT."""
    cosines = vectors[left].astype(np.float64) @ vectors[right].astype(np.float64).T
    ahead, back = (
        (np.sort(side, axis=1)[:, -NEIGHBOURS:].sum(axis=1) + max(0, NEIGHBOURS - side.shape[1]) * ABSENT) / NEIGHBOURS
        for side in (cosines, cosines.T)
    )
    return cosines / ((ahead[:, None] + back) / 2)


def test_each_meaning_is_a_group_of_all_languages():
    languages = ["en", "fr", "zh"]

    groups = group(said_in(languages, 40), [code for code in languages for _ in range(40)])

    assert together(groups) == {frozenset({n, n + 40, n + 80}) for n in range(40)}
    assert set(groups.thresholds) == set(itertools.combinations(languages, 2))


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.5, 1.0, 1.5]))
def test_two_languages_are_paired_as_the_full_matrix_says(seed, meanings, more_left, more_right, noise):
    both = said_in(["en", "fr"], meanings, seed, noise)
    vectors = np.concatenate(
        [both[:meanings], unrelated(more_left, seed + 1, 0.5), both[meanings:], unrelated(more_right, seed + 2, 0.5)]
    )
    left, right = np.arange(meanings + more_left), np.arange(meanings + more_left, len(vectors))

    groups = group(vectors, ["en"] * len(left) + ["fr"] * len(right))

    margins = margins_in_full(vectors, left, right)
    cosines = vectors[left].astype(np.float64) @ vectors[right].astype(np.float64).T
    least = groups.thresholds["en", "fr"].margin
    best = np.where(cosines >= 0.4, margins, -1)
    mutual = (best == best.max(axis=1, keepdims=True)) & (best == best.max(axis=0)) & (best >= least - 1e-6)
    expected = {frozenset({int(left[i]), int(right[j])}) for i, j in zip(*np.nonzero(mutual), strict=True)}
    assert expected <= together(groups)
    for i, j in (sorted(pair) for pair in together(groups)):
        assert margins[i, j - len(left)] >= least - 1e-6
        assert groups.score[i] == groups.score[j] == pytest.approx(margins[i, j - len(left)], abs=1e-5)
    assert np.isnan(groups.score[groups.group < 0]).all()


def test_the_score_is_the_mean_margin_to_the_others():
    vectors = said_in(["en", "fr", "zh"], 30)
    rows = {code: np.arange(30) + 30 * n for n, code in enumerate(["en", "fr", "zh"])}

    groups = group(vectors, [code for code in rows for _ in range(30)])

    to_fr, to_zh = (np.diag(margins_in_full(vectors, rows["en"], rows[code])) for code in ("fr", "zh"))
    assert groups.score[:30] == pytest.approx((to_fr + to_zh) / 2, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_group_has_one_row_of_a_language_however_many_say_the_same(seed):
    languages = ["en", "en", "fr", "fr", "de"]
    codes = [code for code in languages for _ in range(20)]

    groups = group(said_in(languages, 20, seed, noise=0.4), codes)

    assert together(groups)
    for members in together(groups):
        assert max(Counter(codes[row] for row in members).values()) == 1 < len(members)
        assert len({row % 20 for row in members}) == 1


def test_equal_rows_of_a_language_are_not_put_together_and_one_gets_the_counterpart():
    vectors = said_in(["en", "fr"], 20)
    vectors = np.concatenate([vectors, vectors[:1]])

    groups = group(vectors, ["en"] * 20 + ["fr"] * 20 + ["en"])

    assert together(groups) == {frozenset({n, n + 20}) for n in range(20)}


def test_what_contradicts_is_never_put_together():
    stated = {n: facts(f"{n}7 kg") for n in (3, 4)} | {23: facts("99 kg"), 24: facts("47 kg"), 43: facts("37 kg")}

    groups = group(said_in(["en", "fr", "de"], 20), ["en"] * 20 + ["fr"] * 20 + ["de"] * 20, stated)

    assert groups.group[3] == groups.group[43] != groups.group[23]
    assert groups.group[4] == groups.group[24]


def test_two_rows_that_contradict_are_not_put_together_by_a_third():
    stated = {3: facts("7 apples"), 43: facts("8 Äpfel")}

    groups = group(said_in(["en", "fr", "de"], 20), ["en"] * 20 + ["fr"] * 20 + ["de"] * 20, stated)

    assert [members & {3, 23, 43} in ({3, 23}, {23, 43}) for members in together(groups) if 23 in members] == [True]


def test_the_order_of_the_rows_does_not_matter():
    languages = ["en"] * 40 + ["fr"] * 40 + ["zh"] * 40
    vectors = said_in(["en", "fr", "zh"], 40, noise=1.0)
    order = np.random.default_rng(5).permutation(120)

    straight = group(vectors, languages)
    mixed = group(vectors[order], [languages[row] for row in order])

    assert {frozenset(order[list(members)].tolist()) for members in together(mixed)} == together(straight)
    assert mixed.score == pytest.approx(straight.score[order], abs=1e-5, nan_ok=True)


def test_one_chance_match_does_not_chain_two_groups():
    codes = [code for code in ("en", "fr", "de", "es") for _ in range(40)]
    vectors = said_in(["en", "fr", "de", "es"], 40, noise=0.9).astype(np.float32)
    vectors[[0, 40]] = said_in(["en", "fr"], 1, seed=2, noise=0.2)
    vectors[[80, 120]] = said_in(["de", "es"], 1, seed=3, noise=0.2)
    french, german = vectors[40].copy(), vectors[80].copy()
    vectors[40], vectors[80] = french + 0.3 * german, german + 0.3 * french

    groups = group(unit(vectors), codes)

    assert margins_in_full(unit(vectors), np.arange(40, 80), np.arange(80, 120))[0, 0] >= groups.thresholds["de", "fr"].margin
    assert frozenset({0, 40}) in together(groups) and frozenset({80, 120}) in together(groups)


def test_rows_known_to_belong_together_do_and_have_no_score():
    vectors = said_in(["en", "fr"], 20)
    known = np.full(40, -1)
    known[[0, 25]] = 7

    groups = group(vectors, ["en"] * 20 + ["fr"] * 20, {0: facts("11 kg"), 25: facts("12 kg")}, known=known)

    assert groups.group[0] == groups.group[25]
    assert np.isnan(groups.score[[0, 25]]).all()
    assert {frozenset({n, n + 20}) for n in range(20) if n not in (0, 5)} <= together(groups)


def test_rows_known_to_belong_together_are_joined_by_one_of_another_language():
    vectors = said_in(["en", "fr", "zh"], 20)
    known = np.full(60, -1)
    known[[3, 23]] = 0
    rows = {code: np.arange(20) + 20 * n for n, code in enumerate(["en", "fr", "zh"])}

    groups = group(vectors, [code for code in rows for _ in range(20)], known=known)

    assert frozenset({3, 23, 43}) in together(groups)
    to_zh = margins_in_full(vectors, rows["en"], rows["zh"])[3, 3]
    assert groups.score[3] == pytest.approx(to_zh, abs=1e-5)
    assert groups.score[43] == pytest.approx((to_zh + margins_in_full(vectors, rows["fr"], rows["zh"])[3, 3]) / 2, abs=1e-5)


def test_many_rows_known_to_belong_together_may_share_languages():
    vectors = said_in(["en", "fr"], 3_000)
    known = np.concatenate([np.zeros(3_000, dtype=np.int64), np.zeros(3_000, dtype=np.int64)])

    groups = group(vectors, ["en"] * 3_000 + ["fr"] * 3_000, known=known)

    assert (groups.group == 0).all() and np.isnan(groups.score).all()


def test_rows_of_one_language_that_are_known_to_belong_together_are_no_group():
    vectors = said_in(["en", "fr"], 20)
    known = np.full(40, -1)
    known[[0, 1]] = 3

    groups = group(vectors, ["en"] * 20 + ["fr"] * 20, known=known)

    assert together(groups) == {frozenset({n, n + 20}) for n in range(20)}


def test_where_all_rows_have_a_counterpart_the_threshold_is_low():
    vectors = said_in(["en", "fr"], 200, noise=1.0)

    groups = group(vectors, ["en"] * 200 + ["fr"] * 200)

    found = groups.thresholds["en", "fr"]
    assert found.pairs > 150
    assert found.margin <= margins_in_full(vectors, np.arange(200), np.arange(200, 400)).diagonal().mean()
    assert found.wrong <= 0.03
    right = {frozenset({n, n + 200}) for n in range(200)}
    assert len(together(groups) & right) > 150 and len(together(groups) - right) <= 0.05 * len(together(groups))


def test_rows_that_have_nothing_to_do_with_each_other_are_hardly_ever_paired():
    vectors = np.concatenate([unrelated(300, 1), unrelated(300, 2)])

    groups = group(vectors, ["en"] * 300 + ["fr"] * 300)

    assert len(together(groups)) <= 0.03 * 300
    assert 0 <= groups.thresholds["en", "fr"].wrong <= 1


def test_counterparts_are_found_among_many_rows_that_have_none():
    related = said_in(["en", "fr"], 40, common=1.2, noise=0.4)
    vectors = np.concatenate([related[:40], unrelated(260, 11), related[40:], unrelated(260, 12)])

    groups = group(vectors, ["en"] * 300 + ["fr"] * 300)

    right = {frozenset({n, n + 300}) for n in range(40)}
    assert right <= together(groups)
    assert len(together(groups) - right) <= 0.1 * 40


def test_too_few_rows_to_fit_a_threshold_get_the_default():
    both = said_in(["en", "fr"], 3)
    vectors = np.concatenate([both[:3], unrelated(3, 11, 0), both[3:], unrelated(3, 12, 0)])

    groups = group(vectors, ["en"] * 6 + ["fr"] * 6)

    assert groups.thresholds["en", "fr"].margin == 1.2
    assert together(groups) == {frozenset({n, n + 6}) for n in range(3)}


@pytest.mark.parametrize("seed", range(5))
def test_of_few_rows_nothing_is_estimated_and_of_unrelated_ones_nothing_is_made(seed):
    few = group(unrelated(10, seed, 0.5), ["en"] * 5 + ["fr"] * 5)
    many = group(unrelated(400, seed, 0.5), ["en"] * 200 + ["fr"] * 200)

    assert few.thresholds["en", "fr"].wrong is None
    assert many.thresholds["en", "fr"] == Threshold(np.inf, 0, 0.0)
    assert together(many) == set()


@pytest.mark.parametrize(("cosine", "paired"), [(0.65, False), (0.75, True)])
def test_a_single_row_of_each_language_has_to_be_near(cosine, paired):
    vectors = np.zeros((2, 512))
    vectors[:, 0], vectors[1, 0] = 1, cosine
    vectors[1, 1] = np.sqrt(1 - cosine**2)

    assert bool(together(group(vectors.astype(np.float16), ["en", "fr"]))) == paired


def test_a_higher_precision_asks_for_no_lower_a_margin():
    related = said_in(["en", "fr"], 150, common=1.2, noise=1.0)
    vectors = np.concatenate([related[:150], unrelated(150, 11), related[150:], unrelated(150, 12)])
    codes = ["en"] * 300 + ["fr"] * 300

    margins = [group(vectors, codes, precision=precision).thresholds["en", "fr"].margin for precision in (0.5, 0.9, 0.99)]

    assert margins == sorted(margins) and margins[0] < margins[-1]


@pytest.mark.parametrize("codes", [[], ["en"], ["en", "en"]])
def test_without_a_second_language_there_is_no_group(codes):
    groups = group(said_in(["en"], 2)[: len(codes)], codes, known=np.zeros(len(codes), dtype=np.int64))

    assert groups.group.tolist() == [-1] * len(codes) and not groups.thresholds


def test_progress_is_told_by_pair_of_languages():
    told = []

    group(
        said_in(["en", "fr", "de"], 5),
        ["en"] * 5 + ["fr"] * 5 + ["de"] * 5,
        progress=lambda done, total: told.append((done, total)),
    )

    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
