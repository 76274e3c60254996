"""Commands that build: `build`, `demo`, `recipes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from flows.cli.options import SET
from flows.cli.plain_errors import plain_errors
from flows.progress import ProgressBar, usage_in_words
from flows.recipes import find_recipe, shipped_recipes


@click.command()
@click.argument("recipe")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the dataset: new, or one that glotloom built."
)
@click.option("--work", type=click.Path(path_type=Path), help="Folder of unfinished and re-usable stages.  [default: OUT/.stages]")
@click.option(
    "--executor",
    type=click.Choice(["inline", "processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where the parts of a stage are done: in this process, in processes of this machine, or on a Ray cluster "
    "(pip install 'glotloom[ray]'; --work has to be a folder that all nodes see). The result is the same.",
)
@click.option("--workers", type=click.IntRange(min=1), help="How many at once.  [default: one a core, or all of the cluster]")
@click.option("--ray-address", metavar="ADDRESS", help="Of a running cluster, such as auto or ray://host:10001.")
@SET
@plain_errors
def build(
    recipe: str,
    out: Path,
    work: Path | None,
    executor: Literal["inline", "processes", "ray"],
    workers: int | None,
    ray_address: str | None,
    overrides: Sequence[str],
) -> None:
    """Build the dataset of RECIPE, a TOML file or the name of a shipped recipe.

    OUT can be read by datasets.load_dataset as it is; OUT/report.html shows it. What was finished before is re-used.

    \b
    Examples:
      glotloom build ultralink_mini --out mini
      glotloom build my.toml --out data --set teachers.main.base_url=http://127.0.0.1:8000/v1
    """
    from pipeline import ExecutorOptions
    from pipeline import build as run_build

    options = ExecutorOptions(kind=executor, workers=workers, ray_address=ray_address)
    with ProgressBar() as progress:
        dataset = run_build(
            find_recipe(recipe, overrides), out, work=work, progress=progress, on_report=progress.report, executor=options
        )
    click.echo(
        f"{out}: {dataset.count('train')} train and {dataset.count('validation')} validation rows "
        f"in {len(dataset.configs)} configs; {dataset.left} things left, each with a reason"
    )
    for line in usage_in_words(out, progress.made):
        click.echo(line)
    if missing := dataset.languages_without_rows:
        click.echo(
            f"glotloom: warning: no row in {', '.join(missing)}: no source, or all of it left; the report says why", err=True
        )
    click.echo(f"look at {out / 'report.html'}")


@click.command()
@click.option(
    "--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder of the dataset, adapter and report."
)
@SET
@plain_errors
def demo(out: Path, overrides: Sequence[str]) -> None:
    """Build a five-language dataset from sample knowledge, train a MALoRA adapter on it, write a report.

    Needs no network, key, server or GPU; takes minutes on two cores, and seconds when it was done before. OUT gets dataset/,
    adapter/ and report.html.
    """
    from flows.demo import run_demo

    for line in run_demo(out, overrides):
        click.echo(line)


@click.command()
@plain_errors
def recipes() -> None:
    """List the shipped recipes with their files, to run by name or to copy and edit."""
    from importlib import resources

    for name in shipped_recipes():
        click.echo(f"{name:<16} {Path(str(resources.files('flows.recipes'))) / (name + '.toml')}")
