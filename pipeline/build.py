"""The build: a recipe as the list of its steps, and the plain way to run them (Prefect has its own in `flows`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.clean.steps import decontaminate_step, duplicates_step, parallel_step, rules_step
from pipeline.dialogues import dialogue_steps
from pipeline.engine.executors import Executor, ExecutorOptions, open_executor
from pipeline.engine.parts import MANIFEST, step_folder
from pipeline.engine.run import OnReport, run_steps
from pipeline.engine.step import Progress, Step, silent
from pipeline.errors import InputError, WorkError
from pipeline.files import HASHES_FOLDER, LOCK_FILE, FolderLock, WorkLock, write_json, write_text
from pipeline.knowledge import passage_step
from pipeline.pools import pool_steps, prune_step
from pipeline.recipe import Recipe
from pipeline.release import DatasetFolder, open_dataset
from pipeline.release.publish import WORK_FOLDER, check_output, publish
from pipeline.report import dataset_report
from pipeline.teacher import check_keys, stop_asking


def plan(recipe: Recipe) -> list[Step]:
    """The steps of a build in an order in which each one's inputs come before it; the last one's rows are the dataset."""
    passages = {code: passage_step(recipe, code) for code in recipe.languages if code in recipe.knowledge}
    pools = [pool_steps(recipe, task) for task in sorted(recipe.agnostic)]
    dialogues = [step for code, source in passages.items() for step in dialogue_steps(recipe, code, source)]
    rules = rules_step(recipe, (*dialogues, *(checked for _, checked in pools)))
    distinct = duplicates_step(recipe, rules)
    clean = decontaminate_step(recipe, distinct)
    grouped = [parallel_step(clean)] if recipe.clean.parallel_groups else []
    pruned = prune_step(recipe, (grouped or [clean])[0])
    # Pools before dialogues: what is wrong with a file shows before a teacher is asked.
    return [*passages.values(), *(step for pool in pools for step in pool), *dialogues, rules, distinct, clean, *grouped, pruned]


def build(
    recipe: Recipe,
    out: Path,
    *,
    work: Path | None = None,
    progress: Progress = silent,
    on_report: OnReport | None = None,
    executor: ExecutorOptions | None = None,
) -> DatasetFolder:
    """Make the dataset of a recipe in the folder `out`, re-using every step that was finished before.

    Killed at any moment, the same call goes on and ends with the same bytes; so it does on any `executor` (by default processes,
    one a core). Raises InputError where the recipe, its files or `out` are not what they should be (of the build only finished
    steps then stay), WorkError when the disk is full or a teacher goes away.
    """
    steps = plan(recipe)
    check_teachers(recipe, steps)
    with workspace(steps, out, work) as folder, open_executor(executor) as running:
        run_steps(
            steps,
            folder,
            running,
            progress=progress,
            on_report=on_report,
            rows_per_part=recipe.engine.part_rows,
            stop_asking=stop_asking,
        )
        return finish(recipe, steps, folder, out, running)


def check_teachers(recipe: Recipe, steps: Sequence[Step]) -> None:
    """InputError, before hours of work, where a teacher that a step asks has no key in its variable."""
    check_keys(recipe, {step.teacher for step in steps if step.teacher})


@contextmanager
def workspace(steps: Sequence[Step], out: Path, work: Path | None = None) -> Iterator[Path]:
    """The folder of the unfinished steps, locked, once the output folder and the files that the steps read are checked.

    After refused input nothing stays behind but finished steps.
    """
    check_output(out)
    folder = work or out / WORK_FOLDER
    if work is not None and work.absolute().is_relative_to(out.absolute()) and work.absolute() != (out / WORK_FOLDER).absolute():
        raise InputError(f"--work {work}: is the output folder itself, or in it; leave it out, or name another")
    for source in (path for step in steps for path in step.files if path.is_dir()):
        for place, option in ((out, "--out"), (folder, "--work")):
            if place.resolve().is_relative_to(source.resolve()):
                raise InputError(f"{option} {place}: lies in {source}, which is read; choose a place outside of it")
    for path in (path for step in steps for path in step.files):
        if not path.exists():
            raise InputError(f"{path}: does not exist")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path}: is empty")
    with WorkLock(folder), FolderLock(out, f"--out {out}: another build is writing it; wait for it or choose another --out"):
        try:
            yield folder
        except InputError:
            _remove_if_unused(folder, out)
            raise


def _remove_if_unused(work: Path, out: Path) -> None:
    """Only what a build puts there before its first step is finished, and folders that are empty then."""
    if not any(work.glob(f"*/{MANIFEST}")):
        shutil.rmtree(work / HASHES_FOLDER, ignore_errors=True)
        (work / LOCK_FILE).unlink(missing_ok=True)
        for place in (work, out):
            with suppress(OSError):  # not empty: something else is in it
                place.rmdir()


def finish(recipe: Recipe, steps: Sequence[Step], work: Path, out: Path, executor: Executor) -> DatasetFolder:
    """Publish what the finished steps gave, and draw the report."""
    try:
        folders = [step_folder(step, work) for step in steps]
        publish(recipe, folders, out, executor)
        timings = {step.name: _timings(folder) for step, folder in zip(steps, folders, strict=True)}
        write_json(out / "timings.json", {name: own["seconds"] for name, own in timings.items() if "seconds" in own})
        write_json(out / "usage.json", {name: own["usage"] for name, own in timings.items() if "usage" in own})
        dataset = open_dataset(out)
        write_text(out / "report.html", dataset_report(dataset))
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error
    return dataset


def _timings(folder: Path) -> dict[str, Any]:
    """Of a step; nothing where they are lost, for nothing rests on them."""
    try:
        timings: dict[str, Any] = json.loads((folder / "timings.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return timings
