"""Language-agnostic pools: read, check translations against their originals, leave culture-bound translations out, prune."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.engine.step import Stage, StageRun, row_count, rows_of
from pipeline.errors import InputError
from pipeline.knowledge.records import jsonl_rows, parquet_rows
from pipeline.pools.screen import culture_bound
from pipeline.pools.translation import translation_fault
from pipeline.recipe import Agnostic, Recipe
from pipeline.rows.sample import (
    SAMPLE_SCHEMA,
    Decision,
    Dropped,
    Message,
    Sample,
    Source,
    content_hash,
    drop,
    sample_from_row,
    sample_id,
)

# Question and answer columns of the pools that UltraLink uses (MetaMathQA, Magicoder) and their like.
_PAIRS = (
    ("query", "response"),
    ("question", "answer"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("problem", "solution"),
)
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def pool_stage(recipe: Recipe, task: str) -> Stage:
    """The rows of one pool that may stay: in a wanted language, a faithful translation, not culture-bound in translation."""
    pool = recipe.agnostic[task]  # type: ignore[index]  # the keys are literals
    path = recipe.path(pool.path)
    config = asdict(pool) | {"path": Path(pool.path).name, "budget": _wanted(pool), "task": task}
    return Stage(
        name=f"pool-{task}",
        version=3,
        run=functools.partial(_read_pool, pool=pool, path=path, task=task),
        config=config,
        files=(path,),
        schema=SAMPLE_SCHEMA,
    )


def _read_pool(run: StageRun, *, pool: Agnostic, path: Path, task: str) -> None:
    wanted = set(_wanted(pool))
    originals = _originals(pool, path, task)
    kept = 0
    for done, row in enumerate(_samples(pool, path, task), 1):
        run.progress(run.stage.name, done, None)
        if isinstance(row, Dropped):
            run.drop(row)
            continue
        outcome = _judge(row, originals.get(row.group_id), wanted, pool.screen)
        if isinstance(outcome, Dropped):
            run.drop(outcome)
        else:
            run.keep(outcome)
            kept += 1
    if not kept:
        reasons = ", ".join(f"{reason} {n}" for reason, n in run.reasons.items()) or "it is empty"
        if set(run.reasons) == {"row_without_messages"}:
            reasons += f"; a row needs a column 'messages', or a pair such as {_PAIRS[1][0]!r} and {_PAIRS[1][1]!r}"
        raise InputError(f"{path}: gives no row for {task!r}: {reasons}")


def _wanted(pool: Agnostic) -> list[str]:
    """The languages of which something is to be kept; how much is the last stage's affair."""
    return sorted(language for language, budget in pool.budget.items() if budget)


def _originals(pool: Agnostic, path: Path, task: str) -> dict[str, Sample]:
    """The English row of every group that has rows in other languages: what translations are checked against."""
    translated = {row.group_id for row in _samples(pool, path, task) if isinstance(row, Sample) and row.language != "en"}
    english = (row for row in _samples(pool, path, task) if isinstance(row, Sample) and row.language == "en")
    return {row.group_id: row for row in english if row.group_id in translated}


def _judge(row: Sample, original: Sample | None, wanted: set[str], screen: bool) -> Sample | Dropped:
    if row.language not in wanted:
        return drop(row, "language_not_wanted")
    decisions = list(row.decisions)
    if row.language == "en":
        if screen and (criterion := culture_bound(row)):
            decisions.append(
                Decision(f"pool-{row.task}", f"culture-bound ({criterion}): kept in English, its translations are left out")
            )
    elif original is not None:
        if screen and (criterion := culture_bound(original)):
            return drop(row, "culture_bound", partner_id=original.id, detail=criterion)
        if fault := translation_fault(original, row):
            return drop(row, fault[0], partner_id=original.id, detail=fault[1])
        decisions.append(Decision(f"pool-{row.task}", f"a faithful translation of {original.id}"))
    return replace(row, decisions=tuple(decisions))


def _samples(pool: Agnostic, path: Path, task: str) -> Iterator[Sample | Dropped]:
    name = pool.source or path.stem
    for number, raw in _raw_rows(path):
        row_id = str(raw.get("id") or number)
        messages = _messages(raw)
        language = str(raw.get("language") or "en")
        if messages is None:
            keys = ", ".join(sorted(raw)) or "no key"
            yield Dropped(
                id=content_hash(name, row_id),
                reason="row_without_messages",
                task=task,
                detail=f"{path.name}: row {row_id} has {keys}",
            )
            continue
        yield Sample(
            id=sample_id(language, task, messages, [f"{name}:{row_id}"]),
            language=language,
            task=task,
            messages=messages,
            mode="pool",
            group_id=f"{name}:{raw.get('group') or row_id}",
            source=Source(name=name, title=row_id, url=str(raw.get("url") or ""), licence=pool.licence),
            parent_ids=(f"{name}:{row_id}",),
            decisions=(Decision(f"pool-{task}", f"read from {path.name}, row {row_id}"),),
        )


def _raw_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".parquet" or path.is_dir():
        return enumerate(parquet_rows(path, required=()))
    return jsonl_rows(path)


def _messages(raw: dict[str, Any]) -> tuple[Message, ...] | None:
    """The turns of a row in any of the usual layouts, or None."""
    turns = raw.get("messages") or raw.get("conversations") or raw.get("data")
    if isinstance(turns, list) and turns:
        messages = [_message(number, turn) for number, turn in enumerate(turns)]
        return tuple(message for message in messages if message) if all(messages) else None
    for question, answer in _PAIRS:
        if isinstance(raw.get(question), str) and isinstance(raw.get(answer), str):
            more = raw.get("input")  # what an Alpaca row's instruction is about
            asked = f"{raw[question]}\n\n{more}" if isinstance(more, str) and more.strip() else raw[question]
            return Message("user", asked), Message("assistant", raw[answer])
    return None


def _message(number: int, turn: Any) -> Message | None:
    """One turn as `{role, content}`, `{from, value}` or, user and assistant by turns, as a text."""
    if isinstance(turn, str):
        return Message(("user", "assistant")[number % 2], turn)
    if not isinstance(turn, dict):
        return None
    role, content = _ROLES.get(str(turn.get("role", turn.get("from")))), turn.get("content", turn.get("value"))
    return Message(role, content) if role and isinstance(content, str) else None


def prune_stage(recipe: Recipe, inputs: Stage) -> Stage:
    """Keep the budget per language × task of the language-agnostic rows; the rest passes through.

    Uniform: the rows lowest by seeded hash stay. No selector is known to beat that dependably (arXiv 2410.09335).
    """
    budgets: dict[str, dict[str, Any]] = {task: dict(pool.budget) for task, pool in sorted(recipe.agnostic.items())}
    return Stage(
        name="prune",
        version=1,
        run=functools.partial(_prune, budgets=budgets, seed=recipe.seed),
        config={"budgets": budgets, "seed": recipe.seed},
        inputs=(inputs,),
        schema=SAMPLE_SCHEMA,
    )


def _prune(run: StageRun, *, budgets: dict[str, dict[str, Any]], seed: int) -> None:
    keys: dict[tuple[str, str], list[str]] = {}
    for row in rows_of(run.inputs[0]):
        if row["task"] in budgets:
            keys.setdefault((row["language"], row["task"]), []).append(content_hash(seed, row["id"]))
    limits = {key: _limit(sorted(hashes), budgets[key[1]].get(key[0], 0)) for key, hashes in keys.items()}
    total = row_count(run.inputs[0])
    for done, row in enumerate(rows_of(run.inputs[0]), 1):
        run.progress(run.stage.name, done, total)
        sample, key = sample_from_row(row), (row["language"], row["task"])
        limit = limits.get(key)
        if limit is not None and content_hash(seed, sample.id) > limit:
            run.drop(drop(sample, "over_budget", detail=f"budget {budgets[key[1]].get(key[0], 0)} of {len(keys[key])} rows"))
        else:
            run.keep(sample)


def _limit(hashes: list[str], budget: int | str) -> str | None:
    """The highest hash that stays; None when all do."""
    if budget == "all" or int(budget) >= len(hashes):
        return None
    return hashes[int(budget) - 1] if int(budget) else ""
