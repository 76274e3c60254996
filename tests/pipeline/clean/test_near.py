import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.exact import normalise
from pipeline.clean.near import near_duplicates
from pipeline.clean.shingles import Bands, band_keys, code_points, padded, set_sizes, similarity
from pipeline.clean.steps import duplicates_step
from pipeline.recipe import parse_recipe
from pipeline.rows.tables import joined_messages

TEXT = st.text(st.sampled_from("abcdeé字жю𝒳 "), max_size=30)
SURE = Bands(count=32, rows=4)  # finds all but one in ten million pairs of .8


def naive_shingles(text: str) -> set[str]:
    """The windows of 5 characters; a shorter text is one window."""
    text = text.lower()
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


def find(texts: list[str | None], tmp_path: Path, rank: list[int] | None = None, cut: int = 7, bands: Bands | None = SURE):
    """Partners and scores, with the texts cut into arrays of ``cut``."""
    arrays = [pa.array(texts[i : i + cut], pa.string()) for i in range(0, len(texts), cut)]
    return find_in(arrays, tmp_path, rank, bands)


def find_in(arrays: list[pa.Array], tmp_path: Path, rank: list[int] | None = None, bands: Bands | None = None):
    total = sum(map(len, arrays))
    bands = bands or Bands.at(0.8)
    none = np.empty((bands.count, 0), dtype=np.uint32)
    keys = list(np.concatenate([none, *(band_keys(*code_points(array), bands) for array in arrays)], axis=1))
    return near_duplicates(lambda: arrays, keys, np.array(rank or range(total), np.int64), 0.8, tmp_path)


def duplicates(threshold: float):
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


def sets_of(texts: list[str]):
    """What `similarity` takes before the pairs."""
    points, starts = padded(*code_points(pa.array(texts)))
    return points, starts, set_sizes(points, starts)


@given(st.lists(TEXT, min_size=1, max_size=8))
def test_jaccard_is_that_of_the_sets(texts):
    points, starts, sizes = sets_of(texts)

    assert sizes.tolist() == [len(naive_shingles(text)) for text in texts]
    every = [(a, b) for a in range(len(texts)) for b in range(len(texts))]
    left, right = np.array(every, np.int64).T.copy()
    assert similarity(points, starts, sizes, left, right).tolist() == [naive_jaccard(texts[a], texts[b]) for a, b in every]


def test_jaccard_of_many_pairs_is_the_same():
    texts = variants(5, 60)
    left, right = np.array(np.meshgrid(range(60), range(60)), np.int64).reshape(2, -1).repeat(20, axis=1)

    assert similarity(*sets_of(texts), left, right).tolist() == [
        naive_jaccard(texts[a], texts[b]) for a, b in zip(left, right, strict=True)
    ]


@pytest.mark.parametrize("size", [4, 5, 16_400, 70_000])
def test_sets_of_long_texts_and_of_the_shortest_have_their_size(size):
    """Tables are laid out by the length of the text, more thinly up to 65,536 characters."""
    text = "".join(random.Random(size).choices("abcdefgh 字жя", k=size))
    one, other = naive_shingles(text), naive_shingles(text[: size // 2] + "x" * 30)

    points, starts, sizes = sets_of([text, text[: size // 2] + "x" * 30])

    assert sizes.tolist() == [len(one), len(other)]
    assert (
        similarity(points, starts, sizes, np.array([0, 1]), np.array([1, 0])).tolist() == [len(one & other) / len(one | other)] * 2
    )


@given(st.lists(st.none() | st.text(max_size=12), max_size=8), st.integers(0, 8))
def test_code_points_are_those_of_the_lowered_texts(texts, first):
    points, starts = code_points(pa.array(texts, pa.string()).slice(first))

    lowered = [points[begin:end].tobytes().decode("utf-32-le") for begin, end in itertools.pairwise(starts)]
    assert lowered == ["".join(letter.lower() for letter in text or "") for text in texts[first:]]


def naive_band_keys(text: str, bands: Bands) -> list[int]:
    """One-permutation MinHash as `kernels.band_keys` describes it."""
    multipliers = [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9]
    slots: dict[int, int] = {}
    for shingle in naive_shingles(text):
        a, b, c, d, e = (list(map(ord, shingle)) + [0x110000] * 5)[:5]
        value = ((a | b << 21 | c << 42 & 2**64 - 1) * multipliers[0] + (d | e << 21) * multipliers[1]) % 2**64
        for shift, multiplier in ((32, multipliers[2]), (29, multipliers[3])):
            value = (value ^ value >> shift) * multiplier % 2**64
        value ^= value >> 32
        slots[value >> 57] = min(slots.get(value >> 57, 2**32 - 1), value >> 25 & 2**32 - 1)
    whole = []
    for slot in range(128):
        far = next(distance for distance in range(128) if (slot + distance) % 128 in slots)
        whole.append((slots[(slot + far) % 128] + far * 0x9E3779B1) % 2**32)
    keys = []
    for band in range(bands.count):
        key = 0
        for row in range(bands.rows):
            key = (key ^ whole[band * bands.rows + row]) * multipliers[row % 4] % 2**64
            key ^= key >> 31
        keys.append(key >> 32)
    return keys


@given(st.text(st.sampled_from("abcdeé字жю𝒳 "), max_size=400), st.sampled_from([0.3, 0.8, 1.0]))
def test_the_keys_are_those_of_the_formula(text, threshold):
    bands = Bands.at(threshold)

    assert band_keys(*code_points(pa.array([text])), bands)[:, 0].tolist() == naive_band_keys(text, bands)


@given(st.lists(TEXT, min_size=1, max_size=8), st.lists(TEXT, max_size=8))
def test_the_keys_of_a_text_depend_on_nothing_but_the_text(texts, others):
    bands = Bands.at(0.8)
    together = band_keys(*code_points(pa.array(others + texts)), bands)
    alone = np.concatenate([band_keys(*code_points(pa.array([text])), bands) for text in texts], axis=1)

    assert np.array_equal(together[:, len(others) :], alone)


def test_a_bands_chance_is_the_formulas():
    assert Bands.at(0.8) == Bands(count=18, rows=7)
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        bands = Bands.at(threshold)
        assert bands.count * bands.rows <= 128
        assert 1 - (1 - min(1.0, threshold + 0.02) ** bands.rows) ** bands.count >= 0.99


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 24), st.integers(1, 30))
def test_the_rows_that_stay_are_those_of_a_comparison_of_all_pairs(tmp_path_factory, seed, count, cut):
    texts = variants(seed, count)

    partner = find(texts, tmp_path_factory.mktemp("work"), cut=cut).partner

    assert np.flatnonzero(partner < 0).tolist() == naive_star(texts, 0.8)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 24))
def test_the_order_of_the_rows_does_not_matter(tmp_path_factory, seed, count):
    texts = variants(seed, count)
    order = random.Random(seed).sample(range(count), count)
    work = tmp_path_factory.mktemp("work")

    straight = find(texts, work)
    mixed = find([texts[i] for i in order], work, rank=order)

    assert straight.partner.tolist() == [
        -1 if (partner := int(mixed.partner[order.index(i)])) < 0 else order[partner] for i in range(count)
    ]


def test_what_was_done_with_a_leader_that_leaves_is_compared_with_those_that_stay(tmp_path):
    """Rows 1 to 3 are near-duplicates of one another, and row 1 of row 0 alone: 3 has to leave for 2, though 1 came first."""
    draw = random.Random(2)
    middle = "".join(draw.choices("abcdefghijklmnop", k=300))
    texts = ["Z" * 34 + middle[34:], middle, middle[:270] + "Y" * 30, middle[:268] + "Y" * 32]
    assert naive_star(texts, 0.8) == [0, 2]

    assert find(texts, tmp_path).partner.tolist() == [-1, 0, -1, 2]


def test_bucket_after_bucket_of_one_template_is_bounded_and_says_what_it_left_out(tmp_path):
    draw = random.Random(3)
    template = "".join(draw.choices("abcdefghijklmnop ", k=400))
    texts = [f"{template} {draw.random()} {draw.random()} {draw.random()} {draw.random()} {draw.random()}" for _ in range(3000)]
    copies = [text[:-2] for text in texts[:100]]

    found = find(texts + copies, tmp_path, cut=500, bands=None)

    assert (found.partner[:3000] < 0).all()
    assert (found.partner[3000:] >= 0).mean() >= 0.95
    assert found.pairs.compared < 250_000 < found.pairs.not_compared


def test_a_hundred_thousand_copies_cost_one_comparison_each(tmp_path):
    text = "The river rises in the hills and crosses the old town before it meets the sea."
    texts = [f"{text}{' ' * (number % 2)}" for number in range(100_000)]

    found = find(texts, tmp_path, cut=10_000, bands=None)

    assert (found.partner >= 0).sum() == 99_999
    assert found.pairs.compared <= 2 * 100_000 and found.pairs.not_compared == 0


def test_recall_is_what_the_bands_promise(tmp_path):
    draw = random.Random(4)
    originals = ["".join(draw.choices("abcdefghijklmnop 字жя", k=300)) for _ in range(1500)]
    copies = ["".join("#" if draw.random() < 0.011 else letter for letter in text) for text in originals]
    similar = np.array([naive_jaccard(a, b) for a, b in zip(originals, copies, strict=True)])

    left = find(originals + copies, tmp_path, bands=None, cut=1000).partner[1500:] >= 0

    assert not left[similar < 0.8].any()
    assert (similar >= 0.82).sum() > 1000
    assert left[similar >= 0.82].mean() >= 0.98


def test_shingles_that_do_not_fit_in_memory_stand_in_a_file(tmp_path, monkeypatch):
    texts = variants(7, 60)
    expected = find(texts, tmp_path)
    monkeypatch.setattr("pipeline.clean.near._IN_MEMORY", 2_000)

    found = find(texts, tmp_path)

    assert found.partner.tolist() == expected.partner.tolist() and found.score.tolist() == expected.score.tolist()
    assert not list(tmp_path.iterdir())


def test_nulls_long_rows_and_bytes_that_are_no_text_are_rows_like_others(tmp_path):
    long = "".join(random.Random(6).choices("abc ", k=3_000_000))
    texts = pa.array([b"caf\xe9 au lait", b"caf\xe9 au lait", None, b"", long.encode(), (long + "!").encode()], pa.binary())

    found = find_in([texts], tmp_path)

    assert found.partner.tolist() == [-1, 0, -1, 2, -1, 4]


def test_turns_are_joined_without_their_roles():
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    rows = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
        [],
        None,
        [{"role": "user", "content": "b"}],
    ]
    messages = pa.array([[{"role": "user", "content": "left out"}], *rows], pa.list_(turn))[1:]

    assert joined_messages(messages).to_pylist() == [b"a\n", b"", b"", b"b"]


def test_a_row_leaves_only_for_one_that_stays_and_like_enough(sample, run_over):
    rows = [sample(text, title=f"{number}") for number, text in enumerate(variants(3, 80))]

    outcome = run_over(duplicates(0.8), rows)

    kept = {row.id: row for row in outcome.kept}
    assert outcome.dropped
    for row in outcome.dropped:
        partner, own = kept[row["partner_id"]].messages[0].content, row["messages"][0]["content"]
        likeness = naive_jaccard(partner, own)
        assert likeness >= 0.8
        equal = normalise(partner, "zh") == normalise(own, "zh")
        expected = ("exact_duplicate", "") if equal else ("near_duplicate", f"Jaccard {likeness:.3f}")
        assert (row["reason"], row["detail"]) == expected
    assert {row["reason"] for row in outcome.dropped} == {"exact_duplicate", "near_duplicate"}


@pytest.mark.parametrize("texts", [["字"], ["字", "词"], ["a", "b", "ab"], ["", "a"], ["日本", "日木"], ["👍", "👎"]])
def test_a_short_or_unspaced_row_never_vanishes(sample, run_over, texts):
    rows = [sample(text, title=f"{number}") for number, text in enumerate(texts)]

    assert len(run_over(duplicates(0.8), rows).kept) == len(texts)


def test_rows_of_one_template_with_different_content_stay(sample, run_over):
    rows = [sample(f"What is the capital of {name}?", f"It is {city}.") for name, city in (("Peru", "Lima"), ("Mali", "Bamako"))]

    assert len(run_over(duplicates(0.8), rows).kept) == 2


def test_a_chain_of_small_changes_does_not_pull_its_ends_together(sample, run_over):
    long = "".join(random.Random(1).choices("abcdefghijklmnop", k=400))
    chain = [("z" * (12 * n)) + long[12 * n :] for n in range(12)]
    rows = [sample(text, title=f"{number}") for number, text in enumerate(chain)]

    outcome = run_over(duplicates(0.8), rows)

    assert [int(row.source.title) for row in outcome.kept] == naive_star(chain, 0.8)
    assert 1 < len(outcome.kept) < len(chain)


def test_case_and_role_do_not_matter(sample, run_over):
    rows = [
        sample("WHY is the sky blue at noon?", "It scatters light."),
        sample("Why is the sky blue at noon?\nit scatters light."),
    ]

    assert len(run_over(duplicates(1.0), rows).kept) == 1


def test_no_row_is_no_problem(run_over):
    assert run_over(duplicates(0.8), []).report.rows_in == 0
