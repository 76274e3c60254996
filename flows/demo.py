"""The demo: the whole road on the sample data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.cli.release import write_report
from flows.cli.train import loss_line
from flows.progress import ProgressBar
from flows.recipes import find_recipe
from pipeline import build
from pipeline.errors import InputError

RECIPE = "ultralink_mini"
_OURS = {"dataset", "adapter", "report.html"}


def run_demo(out: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Build, train and report into `out`, re-using what is finished; yields lines to print."""
    strangers = sorted(p.name for p in out.iterdir() if p.name not in _OURS and not p.name.startswith(".")) if out.is_dir() else []
    if strangers:
        raise InputError(f"{out}: holds something else ({strangers[0]}); choose an empty folder")
    recipe = find_recipe(RECIPE, overrides)
    started = time.monotonic()
    with ProgressBar() as progress:
        dataset = build(recipe, out / "dataset", progress=progress, on_report=progress.report)
    rows = dataset.count("train") + dataset.count("validation")
    languages = len(recipe.languages)
    yield f"dataset: {rows} rows in {languages} languages, {dataset.left} things left, each with a reason{_took(started)}"
    started = time.monotonic()
    from malora import TrainingConfig, train_adapter

    with ProgressBar("steps") as progress:
        record = train_adapter(
            TrainingConfig(**recipe.training), dataset.path, out / "adapter", progress=progress, replace=True
        ).record
    yield f"adapter: {loss_line(record)}{_took(started)}"
    write_report(dataset.path, out / "adapter", out / "report.html")
    yield f"report:  {out / 'report.html'}"


def _took(started: float) -> str:
    return f" ({time.monotonic() - started:.0f} s)"
