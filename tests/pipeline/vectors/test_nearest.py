"""Nearest neighbours: what a full matrix of cosines says, and nearly that where there are too many for one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.vectors import nearest as module
from pipeline.vectors.nearest import cosines_of, nearest


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def scattered(rows: int, seed: int, dimensions: int = 32) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(rows, dimensions)))


def in_full(queries: np.ndarray, targets: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = queries.astype(np.float64) @ targets.astype(np.float64).T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(cosines, rows, axis=1)


@pytest.fixture
def few_are_many(monkeypatch):
    monkeypatch.setattr(module, "EXACT", 100)
    monkeypatch.setattr(module, "_CLUSTER", 20)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 30), st.integers(0, 30), st.integers(1, 8))
def test_few_are_compared_in_full(seed, queries, targets, k):
    asked, given_ = scattered(queries, seed), scattered(targets, seed + 1)

    rows, cosines = nearest(asked, given_, k)

    expected_rows, expected = in_full(asked, given_, k)
    assert rows.shape == cosines.shape == (queries, min(k, targets))
    assert np.array_equal(rows, expected_rows)
    assert cosines == pytest.approx(expected, abs=1e-5)


def test_more_queries_than_fit_at_once_make_no_difference(monkeypatch):
    asked, given_ = scattered(50, 1), scattered(40, 2)
    whole = nearest(asked, given_, 4)
    monkeypatch.setattr(module, "_QUERIES", 7)

    parts = nearest(asked, given_, 4)

    assert np.array_equal(whole[0], parts[0])
    assert whole[1] == pytest.approx(parts[1], abs=1e-6)


def test_a_row_is_its_own_nearest_and_equal_ones_come_by_number():
    vectors = scattered(5, 3)[[0, 1, 2, 3, 4, 2]]

    rows, cosines = nearest(vectors, vectors, 2)

    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4, 2]
    assert rows[2].tolist() == rows[5].tolist() == [2, 5]
    assert cosines[2, 0] == cosines[2, 1]


def test_of_many_most_of_the_nearest_are_found_and_always_the_same(few_are_many):
    draw = np.random.default_rng(4)
    topics = draw.normal(size=(60, 32))
    targets = unit(topics[draw.integers(0, 60, 1500)] + 1.2 * draw.normal(size=(1500, 32)))
    queries = unit(topics[draw.integers(0, 60, 300)] + 1.2 * draw.normal(size=(300, 32)))

    rows, cosines = nearest(queries, targets, 4)

    expected, _ = in_full(queries, targets, 4)
    found = np.mean([len(set(ours) & set(true)) / 4 for ours, true in zip(rows.tolist(), expected.tolist(), strict=True)])
    assert found > 0.95
    assert all(len(set(own)) == 4 for own in rows.tolist())
    assert (np.diff(cosines, axis=1) <= 0).all()
    true_cosines = np.einsum("ij,ikj->ik", queries.astype(np.float64), targets[rows].astype(np.float64))
    assert cosines == pytest.approx(true_cosines, abs=1e-5)
    again = nearest(queries, targets, 4)
    assert np.array_equal(rows, again[0]) and np.array_equal(cosines, again[1])


@pytest.mark.parametrize("equal", [2000, 1950, 1000])
def test_a_crowd_of_equal_targets_is_found_by_what_is_near_to_it(few_are_many, equal):
    crowd = scattered(1, 1)
    targets = np.concatenate([np.repeat(crowd, equal, axis=0), scattered(2000 - equal, 51)])
    queries = unit(crowd + 0.05 * scattered(20, 99).astype(np.float32))

    rows, cosines = nearest(queries, targets, 6)

    assert (rows >= 0).all() and (rows < equal).all()
    assert all(len(set(own)) == 6 for own in rows.tolist())
    assert cosines.min() > 0.99


def test_cosines_of_pairs_do_not_depend_on_the_other_pairs():
    vectors = scattered(3000, 7, dimensions=512)
    left, right = np.arange(3000), np.arange(3000)[::-1].copy()

    together = cosines_of(vectors, left, right)

    alone = [cosines_of(vectors, left[n : n + 1], right[n : n + 1])[0] for n in range(0, 3000, 37)]
    assert np.array_equal(together[::37], np.array(alone, dtype=np.float32))
    expected = np.einsum("ij,ij->i", vectors[left].astype(np.float64), vectors[right].astype(np.float64))
    assert together == pytest.approx(expected, abs=1e-5)
    assert len(cosines_of(vectors, left[:0], right[:0])) == 0
