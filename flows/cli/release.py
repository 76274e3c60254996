"""Commands over what is finished: `explain`, `export`, `report`, and `doctor` over the installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from flows.cli.plain_errors import WorkFailure, plain_errors
from pipeline import InputError


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "layout",
    required=True,
    type=click.Choice(["hf", "ultralink"]),
    help="hf: a DatasetDict on disk; ultralink: {language}_{task}.jsonl.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
@plain_errors
def export(dataset: Path, layout: str, out: Path) -> None:
    """Write a finished DATASET in another layout."""
    from pipeline.release import export as run_export
    from pipeline.release import open_dataset

    for name, rows in run_export(open_dataset(dataset), layout, out).items():
        click.echo(f"{name}: {rows} rows")


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--adapter", type=click.Path(path_type=Path), help="Show the training of this adapter too.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the page goes.  [default: DATASET/report.html]")
@plain_errors
def report(dataset: Path, adapter: Path | None, out: Path | None) -> None:
    """Draw the report of a finished DATASET: one HTML page that needs no network."""
    page = out or dataset / "report.html"
    write_report(dataset, adapter, page)
    click.echo(page)


def write_report(dataset: Path, adapter: Path | None, page: Path) -> None:
    """The report of a dataset, and of an adapter's training where one is given, as one HTML file."""
    from pipeline.files import write_text
    from pipeline.release import open_dataset
    from pipeline.report import dataset_report

    if page.is_dir():
        raise InputError(f"{page}: is a folder; expected a file for the page, such as {page / 'report.html'}")
    html = dataset_report(open_dataset(dataset), None if adapter is None else _read_training(adapter))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, html)


def _read_training(adapter: Path) -> dict[str, Any]:
    try:
        training = json.loads((adapter / "training.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{adapter}: has no readable training.json; is it an adapter that `glotloom train` finished?") from error
    if not isinstance(training, dict) or training.get("format") != 2:
        raise InputError(f"{adapter / 'training.json'}: is not the record of a MALoRA training")
    return training


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("row_id")
@plain_errors
def explain(dataset: Path, row_id: str) -> None:
    """Say where a row came from and what each stage decided, for kept and dropped rows alike.

    ROW_ID is an id of a row, passage or page of DATASET, or the beginning of one.
    """
    from pipeline.release import explain as run_explain
    from pipeline.release import open_dataset

    click.echo(run_explain(open_dataset(dataset), row_id))


@click.command()
@plain_errors
def doctor() -> None:
    """Show the versions of what glotloom works with, which optional parts are missing and how to get them."""
    from flows.doctor import examine

    healthy = True
    for line, fine in examine():
        click.echo(line)
        healthy &= fine
    if not healthy:
        raise WorkFailure("something that glotloom needs is missing or too new; the lines above say how to mend it")
