import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.decontaminate import decontaminate_stage, evaluation_items, ngrams
from pipeline.errors import InputError
from pipeline.recipe import parse_recipe

ITEM = "Janet's ducks lay sixteen eggs per day and she eats three for breakfast every morning."


@pytest.fixture
def keep(tmp_path, sample, run_over):
    """The questions that stay beside an evaluation set of these items."""

    def keep(items: list[str], *questions: str):
        path = tmp_path / "eval.jsonl"
        path.write_text("".join(json.dumps({"question": item}) + "\n" for item in items), "utf-8")
        recipe = parse_recipe(
            {
                "name": "p",
                "languages": ["en"],
                "agnostic": {"math": {"path": "p", "budget": {"en": "all"}}},
                "clean": {"evaluation_sets": [str(path)]},
            }
        )
        rows = [sample(question, "An answer.", title=question) for question in questions]
        outcome = run_over(lambda given_rows: decontaminate_stage(recipe, given_rows), rows)
        return [row.source.title for row in outcome.kept], outcome.dropped

    return keep


@pytest.mark.parametrize(
    "question",
    [
        ITEM,
        ITEM.upper(),
        f"Solve this: {ITEM} How many are left?",
        "janet s ducks lay sixteen — eggs per day, and she eats nothing",
    ],
)
def test_ten_words_in_a_row_of_an_item_make_a_row_leave(keep, question):
    kept, (dropped,) = keep([ITEM], question)

    assert kept == []
    assert dropped["reason"] == "contaminated"
    assert dropped["detail"].startswith("eval.jsonl: 'janet s ducks lay")


@pytest.mark.parametrize(
    "question", ["Ducks lay eggs.", "Janet's ducks lay sixteen eggs per day and he eats three for breakfast every day."]
)
def test_fewer_words_in_a_row_do_not(keep, question):
    assert keep([ITEM], question)[0] == [question]


def test_a_short_item_counts_whole(keep):
    assert keep(["What is two plus two?"], "Tell me: what is two plus two?", "What is two plus three?")[0] == [
        "What is two plus three?"
    ]


def test_an_item_of_three_words_would_find_half_of_the_world(keep):
    assert keep(["What is it?"], "What is it?")[0] == ["What is it?"]


def test_chinese_is_compared_character_by_character(keep):
    item = "珍妮特的鸭子每天下十六个蛋，她早餐吃三个。"

    assert keep([item], f"请解答：{item}", "珍妮特的鸭子很可爱。")[0] == ["珍妮特的鸭子很可爱。"]


def test_answers_are_looked_at_too(tmp_path, sample, run_over):
    path = tmp_path / "eval.tsv"
    path.write_text(f"{ITEM}\t9\n")
    recipe = parse_recipe(
        {
            "name": "p",
            "languages": ["en"],
            "agnostic": {"math": {"path": "p", "budget": {"en": "all"}}},
            "clean": {"evaluation_sets": [str(path)]},
        }
    )
    outcome = run_over(lambda given_rows: decontaminate_stage(recipe, given_rows), [sample("Give me a problem.", ITEM)])

    assert outcome.report.dropped == {"contaminated": 1}


def test_without_evaluation_sets_every_row_stays(sample, run_over):
    recipe = parse_recipe({"name": "p", "languages": ["en"], "agnostic": {"math": {"path": "p", "budget": {"en": "all"}}}})
    outcome = run_over(lambda given_rows: decontaminate_stage(recipe, given_rows), [sample(ITEM, "Nine.")])

    assert len(outcome.kept) == 1


def test_items_come_from_tsv_jsonl_and_parquet(tmp_path):
    (tmp_path / "a.tsv").write_text("One?\t1\n\nTwo?\t2\n", "utf-8")
    (tmp_path / "b.jsonl").write_text('{"prompt": "One?"}\n{"question": "Two?", "answer": "2"}\n')
    pq.write_table(pa.table({"problem": ["One?", "Two?"]}), tmp_path / "c.parquet")

    assert [list(evaluation_items(tmp_path / name)) for name in ("a.tsv", "b.jsonl", "c.parquet")] == [["One?", "Two?"]] * 3


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"task": "x"}', r"a\.jsonl: row 1: has none of the keys question, prompt"),
        ("a.jsonl", b"[]", r"a\.jsonl: line 1: is not a JSON object"),
        ("a.tsv", b"caf\xe9", r"a\.tsv: cannot be read: 'utf-8'"),
        ("a.parquet", b"no", r"a\.parquet: is not Parquet"),
    ],
)
def test_a_set_that_cannot_be_read_is_refused_by_file_and_row(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=problem):
        list(evaluation_items(tmp_path / name))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=25))
def test_an_item_gives_all_its_stretches_of_ten_or_itself(words):
    stretches = {" ".join(words[i : i + 10]) for i in range(max(1, len(words) - 9))}

    assert ngrams(" ".join(words)) == stretches
