"""The steps of one pool: its rows read and screened part by part, then translations checked against their originals."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.engine.step import Context, Decide, Make, Step, StepReport
from pipeline.files import content_hash
from pipeline.pools.layouts import PAIRS, messages_of
from pipeline.pools.screen import culture_bound
from pipeline.pools.translations import decide_translations
from pipeline.recipe import Agnostic, Recipe
from pipeline.rows.read import NumberedRow, slices
from pipeline.rows.sample import SAMPLE_SCHEMA, Decision, Dropped, Sample, Source, sample_id


def pool_steps(recipe: Recipe, task: str) -> tuple[Step, Step]:
    """`read-TASK` gives the rows of the pool, `pool-TASK` those that may stay: in a wanted language, faithfully translated."""
    pool = recipe.agnostic[task]  # type: ignore[index]  # the keys are literals
    path = recipe.path(pool.path)
    read = Step(
        name=f"read-{task}",
        version=1,
        does=Make(functools.partial(_samples, pool=pool, path=path, task=task), by_part=True, cut=functools.partial(slices, path)),
        config={
            "path": path.name,
            "source": pool.source,
            "licence": pool.licence,
            "screen": pool.screen,
            "task": task,
        },
        files=(path,),
        schema=SAMPLE_SCHEMA,
        refuse=functools.partial(_gives_nothing, path=path, task=task),
    )
    wanted = tuple(sorted(language for language, budget in pool.budget.items() if budget))  # how much, the last step decides
    check = Step(
        name=f"pool-{task}",
        version=4,
        does=Decide(functools.partial(decide_translations, wanted=wanted, screen=pool.screen), by_part=False),
        config={"wanted": wanted, "screen": pool.screen},
        inputs=(read,),
        schema=SAMPLE_SCHEMA,
        refuse=functools.partial(_gives_nothing, path=path, task=task),
    )
    return read, check


def _gives_nothing(report: StepReport, *, path: Path, task: str) -> str | None:
    if report.rows_out:
        return None
    reasons = ", ".join(f"{reason} {n}" for reason, n in report.dropped.items()) or "it is empty"
    if set(report.dropped) == {"row_without_messages"}:
        reasons += f"; a row needs a column 'messages', or a pair such as {PAIRS[1][0]!r} and {PAIRS[1][1]!r}"
    return f"{path}: gives no row for {task!r}: {reasons}"


def _samples(rows: Iterator[NumberedRow], context: Context, *, pool: Agnostic, path: Path, task: str) -> Iterator[Sample | Dropped]:
    name = pool.source or path.stem
    for number, raw in rows:
        row_id = _given(raw, "id", f"#{number}")
        messages = messages_of(raw)
        if messages is None:
            keys = ", ".join(sorted(raw)) or "no key"
            yield Dropped(
                id=content_hash(name, row_id),
                reason="row_without_messages",
                task=task,
                detail=f"{path.name}: row {row_id} has {keys}",
            )
            continue
        language = str(raw.get("language") or "en")
        decisions = [f"read from {path.name}, row {row_id}"]
        if pool.screen and language == "en" and (criterion := culture_bound(messages)):
            decisions.append(f"culture-bound ({criterion}): kept in English, its translations are dropped")
        yield Sample(
            id=sample_id(language, task, messages, [f"{name}:{row_id}"]),
            language=language,
            task=task,
            messages=messages,
            mode="pool",
            group_id=f"{name}:{_given(raw, 'group', row_id)}",
            source=Source(name=name, title=row_id, url=str(raw.get("url") or ""), licence=pool.licence),
            parent_ids=(f"{name}:{row_id}",),
            decisions=tuple(Decision(context.name, decision) for decision in decisions),
        )


def _given(raw: Mapping[str, Any], key: str, otherwise: str) -> str:
    """A value as text; 0 is one, nothing and an empty text are none."""
    value = raw.get(key)
    return otherwise if value is None or value == "" else str(value)
