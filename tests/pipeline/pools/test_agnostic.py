import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import rows_of, step_folder
from pipeline.engine.run import run_steps
from pipeline.errors import InputError
from pipeline.pools.prune import prune_step
from pipeline.pools.steps import pool_steps
from pipeline.recipe import parse_recipe
from pipeline.rows.sample import sample_from_row


def recipe(path, budget, task="math", **pool):
    table = {"path": str(path), "budget": budget, **pool}
    return parse_recipe({"name": "p", "languages": ["en", "fr", "zh"], "agnostic": {task: table}})


def row(question, answer, **rest):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **rest}


@pytest.fixture
def read(tmp_path):
    """Rows through the two steps of a pool: the samples, the drops of both, and the account of both as one."""

    def read(rows, budget=None, **pool):
        path = tmp_path / "pool.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
        steps = pool_steps(recipe(path, budget or {"en": "all", "fr": "all", "zh": "all"}, **pool), "math")
        reports = []
        run_steps(steps, tmp_path / "work", Processes(1), on_report=reports.append, rows_per_part=2)
        first, last = (step_folder(step, tmp_path / "work") for step in steps)
        assert reports[0].rows_out == reports[1].rows_in
        dropped = [row for folder in (first, last) for row in rows_of(folder, "dropped")]
        return [sample_from_row(r) for r in rows_of(last)], dropped, reports[0]

    return read


@pytest.mark.parametrize(
    "raw",
    [
        row("2 + 2?", "4"),
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"data": ["2 + 2?", "4"]},
        {"messages": [{"role": "user", "content": "2 + 2?", "name": None}, {"role": "assistant", "content": "4"}], "data": None},
        {"query": "2 + 2?", "response": "4"},
        {"question": "2 + 2?", "answer": "4"},
        {"instruction": "2 + 2?", "output": "4"},
        {"instruction": "2 + 2?", "response": "4"},
        {"problem": "2 + 2?", "solution": "4"},
        {"instruction": "2 + 2?", "input": "", "output": "4"},
    ],
)
def test_the_usual_layouts_are_understood(read, raw):
    (sample,), _, _ = read([raw])

    assert [(m.role, m.content) for m in sample.messages] == [("user", "2 + 2?"), ("assistant", "4")]
    assert (sample.language, sample.task, sample.mode) == ("en", "math", "pool")


def test_the_input_of_an_instruction_is_part_of_the_question(read):
    (sample,), _, _ = read([{"instruction": "Translate.", "input": "Good day.", "output": "Bonjour."}])

    assert sample.messages[0].content == "Translate.\n\nGood day."


@pytest.mark.parametrize(
    "raw",
    [
        {"text": "2 + 2"},
        {"messages": []},
        {"messages": "2 + 2?"},
        {"messages": [{"role": "judge", "content": "x"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": 4}, {"role": "assistant", "content": None}]},
        {"data": []},
        {"data": [["2 + 2?"], "4"]},
        {"question": "2 + 2?", "answer": 4},
        {},
    ],
)
def test_a_row_of_another_layout_leaves_with_a_reason_that_names_it(read, raw):
    _, (dropped,), report = read([row("1 + 1?", "2"), raw | {"id": "odd-1"}])

    assert (dropped["reason"], report.rows_in) == ("row_without_messages", 2)
    assert "pool.jsonl: row odd-1" in dropped["detail"]


def test_a_pool_of_which_nothing_is_left_is_refused_with_the_reasons(read):
    with pytest.raises(InputError, match=r"pool\.jsonl: gives no row for 'math': language_not_wanted 1"):
        read([row("2 + 2?", "4", language="fr")], {"en": "all"})


def test_an_empty_pool_is_refused(read):
    with pytest.raises(InputError, match=r"pool\.jsonl: gives no row for 'math': it is empty"):
        read([])


def test_rows_come_from_parquet_too(tmp_path):
    pq.write_table(pa.table({"question": ["2 + 2?"], "answer": ["4"]}), tmp_path / "pool.parquet")
    steps = pool_steps(recipe(tmp_path / "pool.parquet", {"en": "all"}), "math")
    reports = []

    run_steps(steps, tmp_path / "work", Processes(1), on_report=reports.append, rows_per_part=2)

    assert [report.rows_out for report in reports] == [1, 1]


def test_languages_without_a_budget_leave(read):
    rows = [row("2 + 2?", "4", language=code) for code in ("en", "fr", "de")]

    kept, dropped, _ = read(rows, {"en": "all", "fr": 0})

    assert [sample.language for sample in kept] == ["en"]
    assert [(d["language"], d["reason"]) for d in dropped] == [("fr", "language_not_wanted"), ("de", "language_not_wanted")]


def test_a_language_that_comes_to_be_wanted_makes_the_check_run_again_and_not_the_reading(tmp_path):
    (tmp_path / "pool.jsonl").write_text(json.dumps(row("2 + 2?", "4")))
    both = [pool_steps(recipe(tmp_path / "pool.jsonl", {"en": 3, "fr": fr}), "math") for fr in (0, 5, 7, "all")]
    run_steps(both[0], tmp_path, Processes(1), rows_per_part=2)

    assert [len({step_folder(steps[n], tmp_path) for steps in both}) for n in (0, 1)] == [1, 2]


def test_a_translation_is_checked_against_its_english_row(read):
    rows = [
        row("What is 2 + 3?", "It is 5.\n#### 5", id="a", group="a"),
        row("Combien font 2 + 3 ?", "Cela fait 5.\n#### 5", id="a-fr", group="a", language="fr"),
        row("2加3等于几？", "等于6。\n#### 6", id="a-zh", group="a", language="zh"),
    ]
    kept, (dropped,), _ = read(rows)

    assert [sample.source.title for sample in kept] == ["a", "a-fr"]
    assert (dropped["source"]["title"], dropped["reason"]) == ("a-zh", "translation_result_differs")
    assert dropped["partner_id"] == kept[0].id
    assert "a faithful translation of " + kept[0].id in kept[1].decisions[-1].decision


CULTURE_BOUND = [
    row("Tell me how people in Boston greet.", "They say hello.", id="b", group="b"),
    row("Dis-moi comment on se salue à Boston.", "On dit bonjour.", id="b-fr", group="b", language="fr"),
]


def test_a_culture_bound_row_stays_in_english_and_its_translations_leave(read):
    kept, (dropped,), _ = read(CULTURE_BOUND)

    assert [sample.source.title for sample in kept] == ["b"]
    assert "culture-bound (proper_name)" in kept[0].decisions[-1].decision
    assert (dropped["source"]["title"], dropped["reason"], dropped["detail"]) == ("b-fr", "culture_bound", "proper_name")


def test_the_screen_can_be_turned_off(read):
    assert len(read(CULTURE_BOUND, screen=False)[0]) == 2


def test_a_translation_before_its_original_is_checked_too(read):
    kept, dropped, _ = read(list(reversed(CULTURE_BOUND)))

    assert (len(kept), len(dropped)) == (1, 1)


def test_a_row_says_where_it_was_read_and_translations_share_a_group(read):
    kept, _, _ = read(
        [row("2 + 2?", "4", id="a", group="g"), row("2 + 2 ?", "4", id="b", group="g", language="fr")], source="my pool"
    )

    assert {sample.group_id for sample in kept} == {"my pool:g"}
    assert [sample.parent_ids for sample in kept] == [("my pool:a",), ("my pool:b",)]
    assert kept[0].decisions[0].decision == "read from pool.jsonl, row a"


BUDGETS = st.dictionaries(st.sampled_from(["en", "fr"]), st.integers(0, 9) | st.just("all"), max_size=2)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["en", "fr"]), max_size=14), BUDGETS)
def test_the_budget_of_each_language_is_kept_and_never_overrun(tmp_path_factory, sample, run_over, languages, budget):
    rows = [sample("2 + 2?", f"{n}", language=code, task="math", title=f"{n}") for n, code in enumerate(languages)]
    outcome = run_over(lambda given_rows: prune_step(recipe("pool.jsonl", budget), given_rows), rows)

    for code in ("en", "fr"):
        there = languages.count(code)
        allowed = budget.get(code, 0)
        assert [s.language for s in outcome.kept].count(code) == (there if allowed == "all" else min(there, allowed))
    assert set(outcome.report.dropped) <= {"over_budget"}
    assert outcome.report.rows_in == len(rows)


def test_rows_of_a_task_without_a_pool_pass_the_budget(sample, run_over):
    rows = [sample("Why?", "Because.", task="chat_specific"), sample("2 + 2?", "4", task="math")]
    outcome = run_over(lambda given_rows: prune_step(recipe("pool.jsonl", {"en": 0}), given_rows), rows)

    assert [s.task for s in outcome.kept] == ["chat_specific"]


def test_which_rows_stay_within_the_budget_does_not_depend_on_their_order(sample, run_over):
    rows = [sample("2 + 2?", f"{n}", task="math", title=f"{n}") for n in range(20)]

    def kept(order):
        return {s.id for s in run_over(lambda given_rows: prune_step(recipe("p.jsonl", {"en": 7}), given_rows), order).kept}

    assert kept(rows) == kept(list(reversed(rows)))
