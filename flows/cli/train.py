"""Commands that train: `train`, `export-lora`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from flows.cli.options import SET
from flows.cli.plain_errors import plain_errors
from flows.progress import ProgressBar
from flows.recipes import find_recipe
from pipeline import InputError

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank


@click.command()
@click.argument("recipe")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A dataset folder that `glotloom build` finished.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the adapter.")
@click.option(
    "--replace", is_flag=True, help="Let a finished adapter of other data or settings in OUT give way once the new one is finished."
)
@click.option("--json-progress", is_flag=True, help="Progress as JSON lines on standard output, for a supervisor.")
@SET
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


@click.command("export-lora")
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
