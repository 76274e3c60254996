from hypothesis import given
from hypothesis import strategies as st

from pipeline.release.splits import VALIDATION_SHARE, validation_groups

ROWS = st.lists(
    st.tuples(st.integers(0, 12).map(str), st.sampled_from(["en", "fr"]), st.sampled_from(["math", "code"])), max_size=80
)


def strata(rows):
    return {(language, task) for _, language, task in rows}


def groups_of(rows, stratum):
    return {group for group, language, task in rows if (language, task) == stratum}


@given(ROWS, st.integers(0, 99))
def test_the_order_of_the_rows_does_not_matter(rows, seed):
    assert validation_groups(rows, seed) == validation_groups(list(reversed(rows)), seed)


@given(ROWS)
def test_every_stratum_has_something_left_to_train_on(rows):
    held = validation_groups(rows, 7)

    assert all(groups_of(rows, stratum) - held for stratum in strata(rows))


def test_a_group_in_several_strata_is_not_taken_from_the_one_that_has_no_other():
    rows = [("a", "fr", "math"), *[(group, "en", "math") for group in "abcdefgh"]]

    assert all("a" not in validation_groups(rows, seed) for seed in range(50))


@given(st.lists(st.integers(0, 40).map(str), min_size=2).filter(lambda groups: len(set(groups)) > 1), st.integers(0, 99))
def test_one_stratum_holds_out_a_twentieth_and_hardly_more(groups, seed):
    rows = [(group, "en", "math") for group in groups]

    held = validation_groups(rows, seed)
    count = sum(group in held for group in groups)

    wanted = max(1, round(VALIDATION_SHARE * len(rows)))
    largest = max(groups.count(group) for group in held)
    assert wanted <= count < wanted + largest or len(set(groups) - held) == 1


def test_strata_with_groups_of_their_own_all_hold_something_out():
    rows = [
        (f"{language}{task}{n}", language, task) for language in ("en", "fr", "zh") for task in ("math", "code") for n in range(20)
    ]

    held = validation_groups(rows, 7)

    assert {(language, task) for group, language, task in rows if group in held} == strata(rows)
    assert len(held) == 6


def test_translations_share_their_place():
    rows = [(f"g{n}", language, "math") for n in range(40) for language in ("en", "fr", "zh")]

    assert len(validation_groups(rows, 7)) == 2


def test_another_seed_holds_out_other_groups():
    rows = [(f"g{n}", "en", "math") for n in range(200)]

    assert validation_groups(rows, 1) != validation_groups(rows, 2)


def test_no_row_is_no_group():
    assert validation_groups([], 7) == set()
