"""Parallel groups in a build: rows that say the same in different languages get one `group_id`, so that no split parts them."""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.clean.parallel_table import LINEAGE, PRECISION, Codes, compare, members_of
from pipeline.engine.step import Stage, StageRun, parts, rows_of
from pipeline.rows.sample import SAMPLE_SCHEMA, Decision, content_hash, sample_from_row
from pipeline.rows.tables import TextTable
from pipeline.vectors.embeddings import LANGUAGES, MAX_TOKENS, check_installed, model_name


def parallel_stage(inputs: Stage) -> Stage:
    """Unite the groups of rows that say the same; every row goes on, whatever its language.

    The rows of united groups get a `group_id` made of theirs, which they keep among their `parent_ids`. Raises InputError where the
    embeddings are not installed.
    """
    check_installed()
    return Stage(
        name="parallel",
        version=1,
        run=_run,
        config={"embeddings": [model_name(), MAX_TOKENS], "precision": PRECISION},
        inputs=(inputs,),
        schema=SAMPLE_SCHEMA,
    )


def _run(run: StageRun) -> None:
    folder = run.inputs[0]
    table = TextTable(path=folder, files=tuple(parts(folder)), column="messages", schema=SAMPLE_SCHEMA)
    former = [group for batch in table.batches([LINEAGE]) for group in batch.column(0).to_pylist()]
    codes = np.array(table.languages("language"), dtype=np.str_)
    noted: dict[int, str] = {}
    linked: list[list[str]] = []
    for rows, margins in _found(run, table, codes):
        linked.append([former[row] for row in rows])
        for number, margin in zip(rows, margins, strict=True):
            if not math.isnan(margin):
                others = sorted({str(codes[other]) for other in rows if former[other] != former[number]})
                noted[number] = f"says what a row in {' and one in '.join(others)} says (margin {margin:.2f})"
    united = _united(linked)
    for number, row in enumerate(rows_of(folder)):
        run.progress(run.stage.name, number + 1, len(former))
        sample = sample_from_row(row)
        if note := noted.get(number):
            sample = replace(sample, decisions=(*sample.decisions, Decision(run.stage.name, note)))
        if group := united.get(sample.group_id):
            sample = replace(sample, group_id=group, parent_ids=(*sample.parent_ids, sample.group_id))
            run.counters["rows_regrouped"] += 1
        run.keep(sample)
    if united:
        run.counters["groups_united"] = len(united)


def _found(run: StageRun, table: TextTable, codes: Codes) -> Iterator[tuple[list[int], list[float]]]:
    """The groups of rows that say the same: their numbers, and the margin of each (NaN where only lineage put it there)."""
    chosen = set(codes.tolist()) & set(LANGUAGES)
    if beyond := int((~np.isin(codes, sorted(chosen))).sum()):
        run.counters["rows_not_comparable"] = beyond
    if len(chosen) < 2:
        return
    work = run.folder / "work"
    work.mkdir()
    found = compare(
        table,
        table.ids(),
        codes,
        chosen,
        work,
        precision=PRECISION,
        workers=len(os.sched_getaffinity(0)),
        progress=lambda phase, done, total: run.progress(run.stage.name, done, total),
    )
    shutil.rmtree(work)
    for members in members_of(found.groups.group):
        yield found.rows[members].tolist(), found.groups.score[members].tolist()


def _united(linked: Iterable[Sequence[str]]) -> dict[str, str]:
    """The new id of each group that became one with others."""
    above: dict[str, str] = {}

    def root(group: str) -> str:
        while (higher := above.setdefault(group, group)) != group:
            above[group] = group = above[higher]
        return group

    for first, *others in linked:
        for other in others:
            above[root(other)] = root(first)
    whole: dict[str, list[str]] = defaultdict(list)
    for group in sorted(above):
        whole[root(group)].append(group)
    return {group: content_hash(groups) for groups in whole.values() if len(groups) > 1 for group in groups}
