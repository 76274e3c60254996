"""The training as a Prefect flow.

It runs in a process of its own, in a session of its own: the flow's process stays free of torch, and whatever the
training has started dies with the run. Cancelling a run ends it within seconds; the next run resumes from the last
checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypedDict, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.build import place
from flows.recipes import find_recipe
from pipeline import InputError, WorkError

_LOG_EVERY_S = 30.0
_UPDATE_EVERY_S = 5.0
_GRACE_S = 10.0
_WRONG_INPUT = 2
"""The exit code of `glotloom` when what the user gave is wrong."""


class Losses(TypedDict):
    """What a training returns: its validation loss, None where the dataset holds no validation rows."""

    before: float | None
    after: float | None


@flow(name="train-adapter", persist_result=False)
def train_adapter(recipe: str, data: str, out: str, overrides: Sequence[str] = (), replace: bool = True) -> Losses | State[Any]:
    """Train a MALoRA adapter on a dataset, resuming what an earlier run left unfinished.

    Args:
        recipe: A TOML file or the name of a shipped recipe; its [training] table counts.
        data: A dataset folder that a build finished.
        out: The folder of the adapter; ~ is the home of the worker's user.
        overrides: KEY=VALUE each, such as training.max_steps=100.
        replace: An adapter of older data or other settings gives way once the new one is finished; otherwise it is an error.
    """
    try:
        recipe, dataset = str(Path(recipe).expanduser()), place(data, "data")
        folder = place(out, "out")
        find_recipe(recipe, overrides)
        run_training(recipe, str(dataset), str(folder), overrides, replace)
        return _show(folder)
    except (InputError, WorkError) as error:
        return Failed(message=str(error), data=error)


@task(name="training", task_run_name="training", cache_policy=NO_CACHE, persist_result=False)
def run_training(recipe: str, data: str, out: str, overrides: Sequence[str], replace: bool) -> str:
    """The training's process from its start to its end; returns the adapter's folder."""
    progress = _Progress()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with _own_session(training_command(recipe, data, out, overrides, replace), errors) as process:
            assert process.stdout is not None
            for line in process.stdout:
                progress.tell(line)
            code = process.wait()
        if code:
            raise _failure(code, errors)
    progress.close()
    return out


def training_command(recipe: str, data: str, out: str, overrides: Sequence[str], replace: bool) -> list[str]:
    """What is run: this Python's `glotloom train`, which prints its progress as JSON lines."""
    command = [sys.executable, "-m", "flows.cli", "train", recipe, "--data", data, "--out", out, "--json-progress"]
    command += ["--replace"] if replace else []
    return [*command, *(part for override in overrides for part in ("--set", override))]


@contextmanager
def _own_session(command: Sequence[str], errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that leads a group of its own; nobody of it outlives the block, whichever way that is left.

    Should this process itself be killed outright, the training ends at the next line that it cannot print.
    """
    process = subprocess.Popen(  # noqa: S603 (a list without a shell; its paths are the flow's own parameters)
        command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _failure(code: int, errors: IO[str]) -> InputError | WorkError:
    """The error of a training that ended early, in the last line that it wrote."""
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    last = lines[-1].removeprefix("glotloom: ") if lines else "nothing"
    if code < 0:
        return WorkError(f"the training was ended by {signal.Signals(-code).name}; the last that it said: {last}")
    if not lines:
        return WorkError(f"the training ended with exit code {code} and said nothing")
    return InputError(last) if code == _WRONG_INPUT else WorkError(last)


class _Progress:
    """JSON lines of the training into a log line now and then and a progress artifact, never one a step."""

    def __init__(self) -> None:
        self._logger = get_run_logger()
        self._artifact = cast("UUID", create_progress_artifact(0.0, key="training-progress", description="starting"))
        self._phase = ""
        self._logged = self._updated = 0.0

    def tell(self, line: str) -> None:
        """One line of the training's standard output."""
        try:
            event: dict[str, Any] = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError):
            self._logger.info("%s", line.rstrip())
            return
        if kind == "step":
            self._step(event)
        elif kind == "message":
            self._logger.info("%s", event.get("text", line.rstrip()))

    def _step(self, event: dict[str, Any]) -> None:
        now, done, total = time.monotonic(), event["step"], event.get("total")
        entered, self._phase = event["phase"] != self._phase, event["phase"]
        words = f"{self._phase}: {done}" + (f" of {total}" if total else "")
        if event.get("loss") is not None:
            words += f", loss {event['loss']:.4f}"
        turn = entered or done == total
        if turn or now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            self._logger.info("%s", words)
        if turn or now - self._updated >= _UPDATE_EVERY_S:
            self._updated = now
            update_progress_artifact(self._artifact, 100.0 * done / total if total else 0.0, words)

    def close(self) -> None:
        """The training has ended well."""
        update_progress_artifact(self._artifact, 100.0, "done")


def _show(folder: Path) -> Losses:
    """The validation losses as an artifact; what the flow returns."""
    path = folder / "training.json"
    try:
        record = json.loads(path.read_text("utf-8"))
        validation = record["validation"]
        before = {name: entry["loss"] for name, entry in validation["before"].items()}
        after = {name: entry["loss"] for name, entry in validation["after"].items()}
        baseline = {name: entry["loss"] for name, entry in record.get("baseline", {}).get("validation", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{path}: is not the record of a finished training: {error!r}") from error
    columns = {"before": before, "after": after} | ({"LoRA of equal size": baseline} if baseline else {})
    lines = ["| validation loss | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for name in sorted(before, key=lambda name: (name == "all", name)):
        lines.append(f"| {name} | " + " | ".join(_number(losses.get(name)) for losses in columns.values()) + " |")
    markdown = "\n".join([*lines, "", f"The adapter: `{folder.resolve()}`", ""])
    create_markdown_artifact(key="training", description="validation losses before and after", markdown=markdown)
    return Losses(before=before.get("all"), after=after.get("all"))


def _number(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.3f}"
