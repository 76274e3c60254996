"""The worked examples of CONTRIBUTING.md work."""

import re
from pathlib import Path

from pipeline.clean.steps import _step
from pipeline.engine.step import Decide

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")


def example(name: str) -> dict[str, object]:
    """The names that the Python block with `def NAME` defines."""
    blocks = [re.sub(r"(?m)^   ", "", block) for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)]
    (code,) = [block for block in blocks if f"def {name}(" in block]
    names: dict[str, object] = {}
    exec(f"from pipeline.clean.rules import _answers\nfrom pipeline.rows.sample import Sample\n{code}", names)
    return names


def test_the_step_drops_what_it_says_and_nothing_else(sample, run_over):
    decide = example("decide_balance")["decide_balance"]
    rows = [sample("Why is that so?", "So."), sample("Why?", "Because it has to be."), sample("Why so?", "Because.")]

    outcome = run_over(lambda given: _step("balance", 1, Decide(decide, by_part=True), {}, inputs=(given,)), rows)

    assert [row.id for row in outcome.kept] == [row.id for row in rows[1:]]
    assert [(row["reason"], row["detail"]) for row in outcome.dropped] == [
        ("question_outweighs_answer", "15 characters, 3 in the answer")
    ]


def test_the_rule_finds_an_apology(sample):
    rule = example("answers_do_not_apologise")["answers_do_not_apologise"]

    assert rule(sample("Why?", "Sorry, no idea.")) == ("answer_apologises", "Sorry, no idea.")
    assert rule(sample("Why?", "It is so.")) is None
