import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.near_duplicates import candidate_pairs, jaccard, near_duplicate_stage, shingles, signature

TEXT = st.text(st.sampled_from("abcdeé字жю "), max_size=30)


def naive_shingles(text: str) -> set[str]:
    """The windows of 5 characters; a shorter text is one window."""
    return {text[i : i + 5] for i in range(len(text) - 4)} if len(text) >= 5 else {text}


def naive_jaccard(one: str, other: str) -> float:
    a, b = naive_shingles(one), naive_shingles(other)
    return len(a & b) / len(a | b)


def naive_star(texts: list[str], threshold: float) -> list[int]:
    """The rows that stay when each is compared with every earlier row that stays."""
    kept: list[int] = []
    for number, text in enumerate(texts):
        if not any(naive_jaccard(texts[k], text) >= threshold for k in kept):
            kept.append(number)
    return kept


def variants(seed: int, count: int) -> list[str]:
    """Texts of a few families, each family edited more and more, so that similarities lie all around the threshold."""
    draw = random.Random(seed)
    families = ["".join(draw.choices("abcdefgh 字жя", k=draw.choice([3, 12, 60, 200]))) for _ in range(4)]
    texts = []
    for _ in range(count):
        text = list(draw.choice(families))
        for _ in range(draw.choice([0, 1, 1, 2, 3, 6])):
            text[draw.randrange(len(text))] = draw.choice("abcdefgh 字жя")
        texts.append("".join(text))
    return texts


@given(TEXT, TEXT)
def test_jaccard_is_that_of_the_sets(one, other):
    assert jaccard(shingles(one), shingles(other)) == pytest.approx(naive_jaccard(one, other))


@given(TEXT)
def test_a_text_has_as_many_shingles_as_different_windows(text):
    assert len(shingles(text)) == len(naive_shingles(text)) >= 1


@given(TEXT)
def test_every_text_has_a_whole_signature_and_meets_its_equal(text):
    signatures = np.stack([signature(shingles(text))] * 2)

    assert signatures.shape == (2, 128)
    assert candidate_pairs(signatures) == [(0, 1)]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 24))
def test_the_rows_that_stay_are_those_of_a_comparison_of_all_pairs(sample, run_over, seed, count):
    texts = variants(seed, count)
    rows = [sample(text, title=f"{number}") for number, text in enumerate(texts)]

    outcome = run_over(lambda given_rows: near_duplicate_stage(given_rows, 0.8), rows)

    assert [int(row.source.title) for row in outcome.kept] == naive_star(texts, 0.8)
    assert outcome.report.rows_in == count


def test_a_row_leaves_only_for_one_that_stays_and_like_enough(sample, run_over):
    rows = [sample(text, title=f"{number}") for number, text in enumerate(variants(3, 80))]

    outcome = run_over(lambda given_rows: near_duplicate_stage(given_rows, 0.8), rows)

    kept = {row.id: row for row in outcome.kept}
    assert outcome.dropped
    for row in outcome.dropped:
        partner = kept[row["partner_id"]].messages[0].content
        likeness = naive_jaccard(partner, row["messages"][0]["content"])
        assert likeness >= 0.8
        assert row["detail"] == f"Jaccard {likeness:.3f}"


@pytest.mark.parametrize("texts", [["字"], ["字", "词"], ["a", "b", "ab"], ["", "a"], ["日本", "日木"], ["👍", "👎"]])
def test_a_short_or_unspaced_row_never_vanishes(sample, run_over, texts):
    rows = [sample(text, title=f"{number}") for number, text in enumerate(texts)]

    assert len(run_over(lambda given_rows: near_duplicate_stage(given_rows, 0.8), rows).kept) == len(texts)


def test_rows_of_one_template_with_different_content_stay(sample, run_over):
    rows = [sample(f"What is the capital of {name}?", f"It is {city}.") for name, city in (("Peru", "Lima"), ("Mali", "Bamako"))]

    assert len(run_over(lambda given_rows: near_duplicate_stage(given_rows, 0.8), rows).kept) == 2


def test_a_chain_of_small_changes_does_not_pull_its_ends_together(sample, run_over):
    long = "".join(random.Random(1).choices("abcdefghijklmnop", k=400))
    chain = [("z" * (12 * n)) + long[12 * n :] for n in range(12)]
    rows = [sample(text, title=f"{number}") for number, text in enumerate(chain)]

    outcome = run_over(lambda given_rows: near_duplicate_stage(given_rows, 0.8), rows)

    assert [int(row.source.title) for row in outcome.kept] == naive_star(chain, 0.8)
    assert 1 < len(outcome.kept) < len(chain)


def test_case_and_role_do_not_matter(sample, run_over):
    rows = [
        sample("WHY is the sky blue at noon?", "It scatters light."),
        sample("Why is the sky blue at noon?\nit scatters light."),
    ]

    assert len(run_over(lambda given_rows: near_duplicate_stage(given_rows, 1.0), rows).kept) == 1


def test_no_row_is_no_problem(run_over):
    assert run_over(lambda given_rows: near_duplicate_stage(given_rows, 0.8), []).report.rows_in == 0
