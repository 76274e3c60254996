"""The steps that clean: what each does, in which version, with which configuration."""

from __future__ import annotations

import functools
from typing import Any

from pipeline.clean.contamination import decide_contamination
from pipeline.clean.counterparts import PRECISION, decide_counterparts
from pipeline.clean.duplicates import decide_duplicates
from pipeline.clean.evaluation import NGRAM
from pipeline.clean.own_rules import own_rules
from pipeline.clean.rules import decide_by_rules
from pipeline.clean.shingles import SHINGLE, SLOTS, Bands
from pipeline.engine.step import Decide, Step
from pipeline.files import content_hash
from pipeline.languages import load_language
from pipeline.recipe import Recipe
from pipeline.rows.sample import SAMPLE_SCHEMA
from pipeline.text.identify import BACKEND
from pipeline.vectors.embeddings import MAX_TOKENS, check_installed, model_name


def rules_step(recipe: Recipe, inputs: tuple[Step, ...]) -> Step:
    """All rules over every row of all sources, in the order of the recipe."""
    config: dict[str, Any] = {
        "languages": recipe.languages,
        "min_answer_characters": recipe.clean.min_answer_characters,
        "identifier": BACKEND,
        "refusals": {code: content_hash(load_language(code).rules.refusal) for code in recipe.languages},
    }
    own = tuple((recipe.path(file), name) for file, _, name in (text.rpartition(":") for text in recipe.clean.rules))
    files = tuple(dict.fromkeys(path for path, _ in own))
    own_rules(own)  # what does not load is told now
    if own:
        config["own"] = [(files.index(path), name) for path, name in own]
    decide = functools.partial(
        decide_by_rules, languages=recipe.languages, min_answer_characters=recipe.clean.min_answer_characters, own=own
    )
    return _step("rules", 6, Decide(decide, by_part=True), config, inputs=inputs, files=files)


def duplicates_step(recipe: Recipe, inputs: Step) -> Step:
    """Of rows that say the same, or nearly, the one that was read first stays."""
    threshold = recipe.clean.near_duplicate_threshold
    bands = Bands.at(threshold)
    config = {"threshold": threshold, "shingle": SHINGLE, "slots": SLOTS, "bands": [bands.count, bands.rows]}
    decide = functools.partial(decide_duplicates, threshold=threshold)
    return _step("duplicates", 1, Decide(decide, by_part=False), config, inputs=(inputs,))


def decontaminate_step(recipe: Recipe, inputs: Step) -> Step:
    """Drop what shares `NGRAM` words with an item of the recipe's evaluation sets, and translations if the recipe says so."""
    paths = tuple(recipe.path(text) for text in recipe.clean.evaluation_sets)
    translations = recipe.clean.evaluation_translations and bool(paths)
    if translations:
        check_installed()
    config = {
        "sets": [path.name for path in paths],
        "ngram": NGRAM,
        "translations": [model_name(), MAX_TOKENS] if translations else None,
    }
    decide = functools.partial(decide_contamination, paths=paths, translations=translations)
    return _step("decontaminate", 5, Decide(decide, by_part=True), config, inputs=(inputs,), files=paths)


def parallel_step(inputs: Step) -> Step:
    """Unite the groups of rows that say the same. InputError where the embeddings are not installed."""
    check_installed()
    config = {"embeddings": [model_name(), MAX_TOKENS], "precision": PRECISION}
    return _step("parallel", 2, Decide(decide_counterparts, by_part=False), config, inputs=(inputs,))


def _step(name: str, version: int, does: Decide, config: dict[str, Any], **rest: Any) -> Step:
    return Step(name=name, version=version, does=does, config=config, schema=SAMPLE_SCHEMA, **rest)
