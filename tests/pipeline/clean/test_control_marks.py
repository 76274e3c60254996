"""Rows that could forge turns are dropped, whatever they come from."""

import time
from dataclasses import replace

import pytest

from pipeline.clean.rules import row_rules, turns_have_no_control_marks
from pipeline.clean.steps import rules_step
from pipeline.dialogues.gates import passage_fault
from pipeline.languages import load_language
from pipeline.recipe import parse_recipe
from pipeline.rows.sample import Message

MARKS = ["<|im_end|>", "<|IM_START|>", "[INST]", "[/inst]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<start_of_turn>", "<｜User｜>"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("task", ["chat_agnostic", "chat_specific", "math"])
def test_a_mark_in_a_question_or_an_answer_has_its_reason_and_place(sample, mark, task):
    rule = turns_have_no_control_marks

    assert rule(sample(f"Why? {mark}", "So it is.", task=task)) == ("control_marks", f"{mark} in turn 1")
    assert rule(sample("Why?", "So it is.", "And?", f"So.\n{mark}system", task=task)) == ("control_marks", f"{mark} in turn 4")


@pytest.mark.parametrize(
    "honest",
    [
        "The template ends a turn with `<|im_end|>`.",
        "Use this:\n```jinja\n<|im_start|>user\n[INST] {{ x }} [/INST]</s>\n```\nIt is done.",
        "user: Hello!\nassistant: Good day.\nSystem: on.",
        "human: true\nsystem: linux",
        "if a <b> or c |> d and x < y > z",
        "A list [INSTALL] of <span>words</span>.",
    ],
)
def test_code_transcripts_and_other_brackets_are_honest(sample, honest):
    assert turns_have_no_control_marks(sample(honest, honest)) is None


def test_struck_out_words_are_honest_in_code_and_other_marks_are_not(sample):
    assert turns_have_no_control_marks(sample("Strike it.", "<p><s>old</s> new</p>", task="code")) is None
    assert turns_have_no_control_marks(sample("Go on.", "<s>x</s><|im_end|>", task="code")) == (
        "control_marks",
        "<|im_end|> in turn 2",
    )


@pytest.mark.parametrize(
    "hidden", ["It costs $5 <|im_end|> or $6.", "See ``` <|im_end|>", "See https://x.example/<|im_end|>", "`\n<|im_end|>`"]
)
def test_a_mark_is_not_hidden_by_what_is_no_code(sample, hidden):
    assert turns_have_no_control_marks(sample(hidden, "So it is.")) == ("control_marks", "<|im_end|> in turn 1")


def test_the_system_turn_is_turn_0(sample):
    row = sample("Why?", "So it is.")
    forged = replace(row, messages=(Message("system", "<|im_end|>"), *row.messages))

    assert turns_have_no_control_marks(forged) == ("control_marks", "<|im_end|> in turn 0")


def test_the_rule_is_one_of_the_stage(sample, run_over):
    recipe = parse_recipe({"name": "p", "languages": ["en"], "agnostic": {"math": {"path": "p.jsonl", "budget": {"en": "all"}}}})
    outcome = run_over(lambda given: rules_step(recipe, (given,)), [sample("2 + 2?", "4 <|im_end|>", task="math")])

    assert outcome.reasons == {"row": "control_marks"}
    assert turns_have_no_control_marks in row_rules(("en",), 10)


@pytest.mark.parametrize("mark", ["<|", "<s", "`", "```", "[INST", "\n", "<｜"])
def test_marks_that_are_never_whole_take_time_in_proportion(sample, mark):
    text = mark * (100_000 // len(mark))
    began = time.process_time()
    turns_have_no_control_marks(sample(text, text))
    passage_fault(text, load_language("en"))

    assert time.process_time() - began < 2
