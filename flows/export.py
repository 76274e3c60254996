"""The export of a finished dataset as a Prefect flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.build import place
from pipeline import InputError, WorkError
from pipeline.release import export, open_dataset


@flow(name="export-dataset", persist_result=False)
def export_dataset(dataset: str, format: Literal["hf", "ultralink"], out: str) -> dict[str, int] | State[Any]:
    """Write a finished dataset in another layout; returns the rows of each file or split.

    Args:
        dataset: A dataset folder that a build finished.
        format: hf, a DatasetDict on disk, or ultralink, {language}_{task}.jsonl.
        out: A new folder; ~ is the home of the worker's user.
    """
    try:
        source, target = place(dataset, "dataset"), place(out, "out")
        rows = write_layout(str(source), format, str(target))
    except (InputError, WorkError) as error:
        return Failed(message=str(error), data=error)
    table = "\n".join(f"| {name} | {count} |" for name, count in rows.items())
    markdown = f"`{target.resolve()}`\n\n| part | rows |\n|---|--:|\n{table}\n"
    create_markdown_artifact(key="export", description=f"{source.name} as {format}", markdown=markdown)
    return rows


@task(name="export", task_run_name="export-{layout}", cache_policy=NO_CACHE, persist_result=False)
def write_layout(dataset: str, layout: str, out: str) -> dict[str, int]:
    """One layout of a dataset into a new folder; returns the rows of each file or split."""
    rows = export(open_dataset(Path(dataset)), layout, Path(out))
    get_run_logger().info("%s: %d rows in %d parts", out, sum(rows.values()), len(rows))
    return rows
