"""The budget per language × task of the language-agnostic rows; the rest passes through."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

from pipeline.engine.step import Context, Decide, Decisions, Drop, Step
from pipeline.files import content_hash
from pipeline.recipe import Recipe
from pipeline.rows.sample import SAMPLE_SCHEMA
from pipeline.rows.tables import TextTable

Budgets = dict[str, dict[str, Any]]
"""By task and language: a number of rows, or `all`."""


def prune_step(recipe: Recipe, inputs: Step) -> Step:
    """Keep as many rows as the recipe says.

    Uniform: the rows lowest by seeded hash stay. No selector is known to beat that dependably (arXiv 2410.09335).
    """
    budgets: Budgets = {task: dict(pool.budget) for task, pool in sorted(recipe.agnostic.items())}
    return Step(
        name="prune",
        version=2,
        does=Decide(functools.partial(decide_budget, budgets=budgets, seed=recipe.seed), by_part=False),
        config={"budgets": budgets, "seed": recipe.seed},
        inputs=(inputs,),
        schema=SAMPLE_SCHEMA,
    )


def decide_budget(table: TextTable, context: Context, *, budgets: Budgets, seed: int) -> Decisions:
    """Drops what is over budget. Memory: some 150 bytes a row of a task with a budget that is no `all`."""
    drawn: dict[tuple[str, str], list[tuple[str, int]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    number = 0
    for batch in table.batches(["id", "language", "task"]):
        for id_, language, task in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if task in budgets:
                counts[language, task] += 1
                if budgets[task].get(language, 0) != "all":
                    drawn.setdefault((language, task), []).append((content_hash(seed, id_), number))
            number += 1
    drops: list[Drop] = []
    for (language, task), rows in sorted(drawn.items()):
        budget = budgets[task].get(language, 0)
        detail = f"budget {budget} of {counts[language, task]} rows"
        drops += ((row, "over_budget", "", None, detail) for _, row in sorted(rows)[budget:])
    return Decisions.of(drops)
