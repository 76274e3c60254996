"""The build as a Prefect flow: one task per step, named after it, whichever executor does its parts.

A task is given a recipe, a folder and a step's name and plans again, which is cheap, so that it could run on any machine
that shares the disk. The step's manifest is the only cache: what was finished before returns at once, with or without
Prefect. Steps that ask a teacher run at the same time, in threads, and share it; the others run one after another in the main
thread, since each has all cores through the executor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import deployment as running_deployment
from prefect.runtime import task_run as running_task
from prefect.states import Failed

from flows.progress import in_words, reasons_in_words, usage_in_words
from flows.recipes import find_recipe
from pipeline import InputError, Recipe, WorkError
from pipeline.build import check_teachers, finish, plan, workspace
from pipeline.engine.executors import ExecutorOptions, open_executor
from pipeline.engine.parts import finished, step_folder
from pipeline.engine.run import run_step, waves
from pipeline.engine.step import Progress, Step
from pipeline.release import DatasetFolder, open_dataset
from pipeline.release.folder import SPLITS
from pipeline.teacher import BudgetError, stop_asking

_RETRY_DELAYS_S: list[float] = [30, 300]
_LOG_EVERY_S = 60.0


class StageCounts(TypedDict):
    """What a step's task returns."""

    stage: str
    rows_in: int
    rows_out: int
    left: int
    finished_before: bool


class BuildCounts(TypedDict):
    """What a build returns: steps, how many of them were made now, and rows."""

    stages: int
    stages_made: int
    train: int
    validation: int
    configs: int
    left: int


class Place(TypedDict):
    """What every task of one build is given."""

    recipe: str
    overrides: Sequence[str]
    work: str
    executor: ExecutorOptions
    stop: threading.Event
    """Set when a task failed or the run was cancelled: no teacher is asked more."""


@flow(name="build-dataset", persist_result=False)
def build_dataset(
    recipe: str,
    out: str,
    overrides: Sequence[str] = (),
    executor: Literal["inline", "processes", "ray"] = "processes",
    workers: int | None = None,
    ray_address: str | None = None,
) -> BuildCounts | State[Any]:
    """Build the dataset of a recipe, re-using every step that was finished before.

    Args:
        recipe: A TOML file or the name of a shipped recipe, such as ultralink_mini.
        out: The folder of the dataset, new or built by glotloom; ~ is the home of the worker's user.
        overrides: KEY=VALUE each, such as teachers.main.base_url=http://127.0.0.1:8000/v1.
        executor: Where the parts of a step are done: here, in processes of this machine, or on a Ray cluster.
        workers: How many at once; one a core unless given.
        ray_address: Of the cluster; without one Ray starts on this machine.
    """
    try:
        recipe, folder = str(Path(recipe).expanduser()), place(out, "out")
        options = ExecutorOptions(kind=executor, workers=workers, ray_address=ray_address)
        wanted = find_recipe(recipe, overrides)
        steps = plan(wanted)
        check_teachers(wanted, steps)
        with workspace(steps, folder) as work, open_executor(options):
            given = Place(recipe=recipe, overrides=overrides, work=str(work), executor=options, stop=threading.Event())
            done = [counts for wave in waves(steps) for counts in _make_wave(wave, given)]
            publish_dataset(given, str(folder))
    except (InputError, WorkError) as error:
        return Failed(message=str(error), data=error)
    return _show(open_dataset(folder), done)


def _make_wave(wave: Sequence[Step], given: Place) -> list[StageCounts]:
    """Steps that ask a teacher at the same time, others one after another."""
    if wave[0].teacher is None:
        return [_task_of(step)(given, step.name) for step in wave]
    try:
        runs = [_task_of(step).submit(given, step.name) for step in wave]
        return [run.result() for run in runs]
    except BaseException:
        stop_asking(given["stop"])
        raise


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def make_stage(given: Place, name: str) -> StageCounts:
    """Run one step of a recipe's plan unless it was finished before; its inputs must be finished."""
    logger = get_run_logger()
    wanted, folder = find_recipe(given["recipe"], given["overrides"]), Path(given["work"])
    step = _step_of(wanted, name)
    finished_before = finished(step_folder(step, folder)) is not None
    with open_executor(given["executor"]) as executor:
        report = run_step(step, folder, executor, wanted.engine.part_rows, _now_and_then(logger.info), given["stop"])
    logger.info("%s; %s", in_words(report), "finished before" if finished_before else "made now")
    if finished(step_folder(step, folder)) is None:
        _ask_again_or_go_on(logger.warning)
    return StageCounts(
        stage=name,
        rows_in=report.rows_in,
        rows_out=report.rows_out,
        left=sum(report.dropped.values()),
        finished_before=finished_before,
    )


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_dataset(given: Place, out: str) -> str:
    """Write the dataset folder and its report from the finished steps; returns the folder."""
    wanted = find_recipe(given["recipe"], given["overrides"])
    with open_executor(given["executor"]) as executor:
        return str(finish(wanted, plan(wanted), Path(given["work"]), Path(out), executor).path)


def place(text: str, parameter: str) -> Path:
    """A folder that a flow was given: ~ is a home, and a worker takes no relative path.

    A process worker runs each flow in a temporary directory and deletes it afterwards, with everything in it.
    """
    path = Path(text).expanduser()
    if running_deployment.id is not None and not path.is_absolute():
        raise InputError(f"{parameter} = {text!r}: is relative to the worker's temporary directory; start it with / or ~")
    return path


def _task_of(step: Step) -> Task[[Place, str], StageCounts]:
    """Retries only where the network is."""
    if step.teacher is None:
        return make_stage
    return make_stage.with_options(retries=len(_RETRY_DELAYS_S), retry_delay_seconds=_RETRY_DELAYS_S, retry_condition_fn=_may_help)


def _may_help(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry can help: never where the input is wrong or the money is spent."""
    return not isinstance(state.data, InputError | BudgetError)


def _ask_again_or_go_on(warn: Callable[[str], None]) -> None:
    """Some requests stayed unanswered: a retry asks only those, for every answer is kept. After the last, go on."""
    if running_task.run_count <= len(_RETRY_DELAYS_S):
        raise WorkError("the teacher left requests unanswered; what it answered is kept")
    warn("the teacher left requests unanswered; the next run asks them again")


def _step_of(recipe: Recipe, name: str) -> Step:
    for step in plan(recipe):
        if step.name == name:
            return step
    raise InputError(f"recipe {recipe.name}: has no stage {name} any more, so it was changed meanwhile; run it again")


def _now_and_then(log: Callable[..., None]) -> Progress:
    """The progress of a long stage: a line a minute."""
    logged = time.monotonic()

    def progress(stage: str, done: int, total: int | None) -> None:
        nonlocal logged
        if time.monotonic() - logged >= _LOG_EVERY_S:
            logged = time.monotonic()
            log("%s: %d%s done", stage, done, f" of {total}" if total else "")

    return progress


def _show(dataset: DatasetFolder, done: Sequence[StageCounts]) -> BuildCounts:
    """The funnel and the report as artifacts; what the flow returns."""
    name = dataset.manifest["recipe"]["name"]
    funnel = _funnel(dataset, {counts["stage"]: counts["finished_before"] for counts in done})
    create_table_artifact(key="funnel", description=f"{name}: what each stage took and gave", table=funnel)
    create_markdown_artifact(key="report", description=f"{name}: rows of each config", markdown=_report(dataset))
    return BuildCounts(
        stages=len(done),
        stages_made=sum(not counts["finished_before"] for counts in done),
        train=dataset.count("train"),
        validation=dataset.count("validation"),
        configs=len(dataset.configs),
        left=dataset.left,
    )


def _funnel(dataset: DatasetFolder, finished_before: dict[str, bool]) -> list[dict[str, Any]]:
    return [
        {
            "stage": report.stage,
            "in": f"{report.rows_in} {report.unit_in}",
            "out": f"{report.rows_out} {report.unit_out}",
            "left": sum(report.dropped.values()),
            "reasons": reasons_in_words(report),
            "made": "before" if finished_before[report.stage] else "now",
        }
        for report in dataset.reports
    ]


def _report(dataset: DatasetFolder) -> str:
    lines = [f"# {dataset.manifest['recipe']['name']}", ""]
    lines += ["| config | train | validation | tokens (estimated) |", "|---|--:|--:|--:|"]
    for name in dataset.configs:
        config = dataset.manifest["configs"][name]
        tokens = sum(config[split]["tokens"] for split in SPLITS)
        lines.append(f"| {name} | {config['train']['rows']} | {config['validation']['rows']} | {tokens} |")
    lines.append(f"| **all** | {dataset.count('train')} | {dataset.count('validation')} | |")
    lines += ["", *(f"- {line}" for line in usage_in_words(dataset.path))]
    return "\n".join([*lines, "", f"The whole report: `{(dataset.path / 'report.html').resolve()}`", ""])
