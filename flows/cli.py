"""The command `glotloom`. Exit codes: 0 done, 1 failed while working, 2 the input is wrong.

Torch and Prefect take seconds to import, so commands import what they need themselves.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from flows.clean_commands import decontaminate, dedup, identify, parallel
from flows.plain_errors import WorkFailure, plain_errors
from flows.progress import ProgressBar, usage_in_words
from flows.recipes import find_recipe, shipped_recipes
from pipeline import InputError, __version__

# What transformers and PEFT will rename concerns their callers, not the users of a command.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\b")

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank

_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, e.g. teachers.main.base_url=http://127.0.0.1:8000/v1. May be repeated.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="glotloom")
def main() -> None:
    """Build multilingual fine-tuning data and train MALoRA adapters on it.

    Start with `glotloom demo`. Then copy a shipped recipe, point it at your own sources and teacher, and run `glotloom build`
    and `glotloom train`. Every command can be killed and run again: build and train go on where they stopped.
    """


for _command in (decontaminate, dedup, identify, parallel):
    main.add_command(_command)


@main.command()
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
@_SET
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


@main.command()
@click.argument("recipe")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A dataset folder that `glotloom build` finished.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the adapter.")
@click.option(
    "--replace", is_flag=True, help="Let a finished adapter of other data or settings in OUT give way once the new one is finished."
)
@click.option("--json-progress", is_flag=True, help="Progress as JSON lines on standard output, for a supervisor.")
@_SET
@plain_errors
def train(recipe: str, data: Path, out: Path, replace: bool, json_progress: bool, overrides: Sequence[str]) -> None:
    """Train a MALoRA adapter on a dataset, as the [training] table of RECIPE says.

    OUT gets adapter_config.json, adapter_model.safetensors (PEFT loads them once `malora` is imported) and training.json with the
    losses per language and task and the use of experts. The validation split is never trained on.

    With --set training.baseline=true a plain LoRA of equal size is trained as well, on the same rows in the same order, and its
    losses are reported beside the adapter's: whether the mixture is worth its while with your data. It takes as long again.
    """
    given = find_recipe(recipe, overrides).training
    from malora import TrainingConfig, train_adapter

    config = TrainingConfig(**given)
    if json_progress:
        train_adapter(config, data, out, progress=_print_json, replace=replace)
        print(json.dumps({"event": "done", "out": str(out)}), flush=True)
        return
    with ProgressBar("steps") as progress:
        result = train_adapter(config, data, out, progress=progress, replace=replace)
    click.echo(f"{out}: {loss_line(result.record)}")


def _print_json(phase: str, step: int, total: int | None) -> None:
    print(json.dumps({"event": "step", "phase": phase, "step": step, "total": total}), flush=True)


def loss_line(record: dict[str, Any]) -> str:
    """A training's record in one line."""
    before, after = record["validation"]["before"].get("all"), record["validation"]["after"].get("all")
    trainable = record["parameters"]["trainable"]
    if not before or not after or before["loss"] is None:
        return f"{trainable:,} trained parameters; the dataset holds no validation rows"
    line = f"{trainable:,} trained parameters; validation loss {before['loss']:.3f} → {after['loss']:.3f}"
    if baseline := record.get("baseline"):
        line += f"; a LoRA of equal size (rank {baseline['r']}) {baseline['validation']['all']['loss']:.3f}"
    return line


@main.command()
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


@main.command("export-lora")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder for the LoRA.")
@click.option("--data", type=click.Path(path_type=Path), help="A dataset folder whose rows decide how much each expert counts.")
@click.option("--language", metavar="CODE", help="Only the rows of this language, such as fr.")
@click.option("--task", metavar="NAME", help="Only the rows of this task, such as chat_specific.")
@click.option(
    "--rows",
    default=256,
    show_default=True,
    type=click.IntRange(min=2),
    help="How many rows to take, validation rows first; up to a quarter of them is held out to measure.",
)
@plain_errors
def export_lora(adapter: Path, out: Path, data: Path | None, language: str | None, task: str | None, rows: int) -> None:
    """Write ADAPTER as a plain LoRA, for programs that know no MALoRA: stock PEFT, vLLM.

    In ADAPTER a router weighs the experts anew for each token. A LoRA has no router: here each expert gets one weight for all
    tokens, and with such fixed weights the experts add up to a LoRA exactly. With --data the weights are the router's own, averaged
    over the answers of some rows: best of the language and task that the LoRA is to serve, so write one for each. Without --data
    every expert counts alike.

    What fixing the weights costs is measured on rows held out from the average: the loss with the router and with fixed weights,
    and how often both expect the same next token. Where that is too much, serve ADAPTER itself with PEFT and `import malora`.

    \b
    Examples:
      glotloom export-lora adapter --out lora
      glotloom export-lora adapter --out lora-fr --data dataset --language fr
      glotloom export-lora adapter --out lora-fr-math --data dataset --language fr --task math
    """
    if data is None and (language or task):
        raise InputError(f"--{'language' if language else 'task'}: chooses among the rows of --data, which is not given")
    from malora import export_lora as write_lora
    from malora import load_adapter
    from malora.adapter.export.lora import check_out

    check_out(out)
    model, tokenizer = load_adapter(adapter)
    gates, told = None, "every expert counts alike; --data DATASET weighs them by its rows and measures what that costs"
    if data is not None:
        gates, told = _gates_of_rows(model, tokenizer, data, language, task, rows, _max_tokens(adapter))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        written = write_lora(model, out, gates)
    tuner: Any = model.base_model
    click.echo(f"{out}: a LoRA of rank {written.r} on {len(tuner.adapted_layers())} modules")
    click.echo(told)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            click.echo(f"glotloom: warning: {warning.message}", err=True)
    if (rank := next((rank for rank in SERVED_RANKS if rank >= written.r), None)) and not written.modules_to_save:
        base = written.base_model_name_or_path
        click.echo(f"serve it: vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {out.name}={out}")


def _gates_of_rows(
    model: Any, tokenizer: Any, data: Path, language: str | None, task: str | None, rows: int, max_tokens: int
) -> tuple[dict[str, list[float]], str]:
    """The mean gates over rows of a dataset, and in words what they cost on others."""
    from malora import answer_batches, gate_rows, mean_gates, routing_gap

    chosen = gate_rows(data, tokenizer, rows=rows, language=language, task=task, max_tokens=max_tokens)
    with ProgressBar() as progress:
        gates = mean_gates(model, answer_batches(chosen.gates, on_rows=partial(progress, "gates")))
        gap = routing_gap(model, answer_batches(chosen.held_out, on_rows=partial(progress, "gap")), gates)
    others = f"{len(chosen.held_out)} {'others of the training split' if chosen.trained else 'others of the validation split'}"
    return gates, f"gates of {len(chosen.gates)} rows, measured on {others}: {gap}"


def _max_tokens(adapter: Path) -> int:
    """As the adapter was trained, by whatever version; 1,024 where that is not recorded."""
    try:
        return int(json.loads((adapter / "training.json").read_text("utf-8"))["config"]["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1024


@main.command()
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


@main.command()
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


@main.command()
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


@main.command()
@click.option(
    "--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder of the dataset, adapter and report."
)
@_SET
@plain_errors
def demo(out: Path, overrides: Sequence[str]) -> None:
    """Build a five-language dataset from sample knowledge, train a MALoRA adapter on it, write a report.

    Needs no network, key, server or GPU; takes minutes on two cores, and seconds when it was done before. OUT gets dataset/,
    adapter/ and report.html.
    """
    from flows.demo import run_demo

    for line in run_demo(out, overrides):
        click.echo(line)


@main.command()
@plain_errors
def recipes() -> None:
    """List the shipped recipes with their files, to run by name or to copy and edit."""
    from importlib import resources

    for name in shipped_recipes():
        click.echo(f"{name:<16} {Path(str(resources.files('flows.recipes'))) / (name + '.toml')}")


if __name__ == "__main__":
    main(prog_name="glotloom")
