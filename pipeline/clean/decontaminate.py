"""Decontamination: rows that hold a stretch of an evaluation item leave."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.knowledge.records import jsonl_rows, parquet_rows
from pipeline.recipe import Recipe
from pipeline.sample import SAMPLE_SCHEMA, drop, sample_from_row
from pipeline.stage import Stage, StageRun, row_count, rows_of

# Consecutive units in common that make a row contaminated: words, or single characters of scripts written without spaces.
NGRAM = 10
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_]+")
_TEXT_KEYS = ("question", "prompt", "instruction", "problem", "text", "query", "input")


def decontaminate_stage(recipe: Recipe, inputs: Stage) -> Stage:
    """Drop what shares `NGRAM` consecutive units with an item of the recipe's evaluation sets; a shorter item counts whole."""
    paths = tuple(recipe.path(text) for text in recipe.clean.evaluation_sets)
    return Stage(
        name="decontaminate",
        version=1,
        run=functools.partial(_run, paths=paths),
        config={"sets": [path.name for path in paths], "ngram": NGRAM},
        files=paths,
        inputs=(inputs,),
        schema=SAMPLE_SCHEMA,
    )


def _run(run: StageRun, *, paths: tuple[Path, ...]) -> None:
    known = {gram: path.name for path in paths for item in evaluation_items(path) for gram in ngrams(item)}
    sizes = sorted({gram.count(" ") + 1 for gram in known})
    total = row_count(run.inputs[0])
    for number, row in enumerate(rows_of(run.inputs[0])):
        run.progress(run.stage.name, number + 1, total)
        sample = sample_from_row(row)
        found = next((g for m in sample.messages for g in _grams(m.content, sizes) if g in known), None)
        if found is None:
            run.keep(sample)
        else:
            run.drop(drop(sample, "contaminated", detail=f"{known[found]}: {found!r}"))


def evaluation_items(path: Path) -> Iterator[str]:
    """The questions of an evaluation set: the first column of a `.tsv`, or the usual text keys of `.jsonl` and `.parquet`."""
    if path.suffix == ".tsv":
        try:
            yield from (line.split("\t")[0] for line in path.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        return
    rows = parquet_rows(path, ()) if path.suffix == ".parquet" else (row for _, row in jsonl_rows(path))
    for number, row in enumerate(rows, 1):
        text = next((row[key] for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
        if text is None:
            raise InputError(f"{path}: row {number}: has none of the keys {', '.join(_TEXT_KEYS)}")
        yield text


def ngrams(item: str) -> set[str]:
    """What to look for of one item: its n-grams, or the whole of a shorter one (but never less than 4 units)."""
    count = len(_units(item))
    return set(_grams(item, [min(NGRAM, count)])) if count >= 4 else set()


def _units(text: str) -> list[str]:
    return _UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


def _grams(text: str, sizes: list[int]) -> Iterator[str]:
    units = _units(text)
    for size in sizes:
        for start in range(len(units) - size + 1):
            yield " ".join(units[start : start + size])
