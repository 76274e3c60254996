"""What the report's page shows, gathered from a dataset folder and, where there is one, a training's record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2

from pipeline.engine.step import StepReport
from pipeline.languages import load_language
from pipeline.release.folder import SPLITS, DatasetFolder
from pipeline.report import charts
from pipeline.rows.sample import TASKS

_EXAMPLES = 3
_HEAT_MODULES = 6


def dataset_report(dataset: DatasetFolder, training: dict[str, Any] | None = None) -> str:
    """The whole page as HTML with nothing outside it; every text of a row is escaped by the template.

    `training` is the content of an adapter's `training.json`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["shade"] = charts.shade
    return environment.get_template("page.html.j2").render(
        name=dataset.manifest["recipe"]["name"],
        seed=dataset.manifest["recipe"]["seed"],
        fingerprint=dataset.manifest["fingerprint"],
        languages={code: load_language(code) for code in dataset.manifest["recipe"]["languages"]},
        tasks=[task for task in TASKS if any(c["task"] == task for c in dataset.manifest["configs"].values())],
        configs=dataset.manifest["configs"],
        total={split: dataset.count(split) for split in SPLITS},
        stages=list(_funnel(dataset)),
        reasons=_reasons(dataset.reports),
        examples={config: list(_examples(dataset, config)) for config in sorted(dataset.configs, key=_in_recipe_order(dataset))},
        training=_training(training) if training else None,
    )


def _in_recipe_order(dataset: DatasetFolder) -> Callable[[str], tuple[int, int]]:
    """Languages as the recipe names them, then tasks, the culture-bound one first."""
    languages, configs = dataset.manifest["recipe"]["languages"], dataset.manifest["configs"]
    return lambda config: (languages.index(configs[config]["language"]), TASKS.index(configs[config]["task"]))


def _funnel(dataset: DatasetFolder) -> Iterator[dict[str, Any]]:
    seconds = _timings(dataset.path)
    for report in dataset.reports:
        yield {
            "name": report.stage,
            "report": report,
            "left": sum(report.dropped.values()),
            "used_share": report.rows_used / report.rows_in if report.rows_in else 1.0,
            "seconds": seconds.get(report.stage),
        }


def _timings(path: Path) -> dict[str, float]:
    file = path / "timings.json"
    timings: dict[str, float] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return timings


def _reasons(reports: list[StepReport]) -> list[tuple[str, str, int]]:
    """`(reason, stages, count)`, most frequent first."""
    counts: Counter[str] = Counter()
    stages: dict[str, list[str]] = {}
    for report in reports:
        for reason, count in report.dropped.items():
            counts[reason] += count
            stages.setdefault(reason, []).append(report.stage)
    return [(reason, ", ".join(stages[reason]), n) for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _examples(dataset: DatasetFolder, config: str) -> Iterator[dict[str, Any]]:
    """The first rows by id, of as many ways of making as there are: an id is a hash, so this is a fair draw."""
    by_mode: dict[str, list[dict[str, Any]]] = {}
    for row in dataset.rows(config, "train"):
        rows = by_mode.setdefault(row["mode"], [])
        if len(rows) < _EXAMPLES:
            rows.append(row)
    taken = 0
    for rank in range(_EXAMPLES):
        for rows in by_mode.values():
            if rank < len(rows) and taken < _EXAMPLES:
                taken += 1
                yield rows[rank]


def _training(record: dict[str, Any]) -> dict[str, Any]:
    history = record["loss"]
    curve = charts.line([p["step"] for p in history], [p["loss"] for p in history]) if len(history) > 1 else None
    share = record["routing"]["share"]
    modules = charts.most_divided(share, _HEAT_MODULES) if share and len(share[0]) > 1 else []
    heat = [{"module": record["routing"]["modules"][i], "share": share[i]} for i in modules]
    return (
        {"baseline": None}
        | record
        | {"curve": curve, "heat": heat, "most": max((max(map(max, h["share"])) for h in heat), default=1.0)}
    )
