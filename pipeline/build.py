"""The build: a recipe as the list of its stages, and the plain way to run them (Prefect has its own in `flows`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.clean.contamination import decontaminate_stage
from pipeline.clean.exact import exact_duplicate_stage
from pipeline.clean.near import near_duplicate_stage
from pipeline.clean.parallel_stage import parallel_stage
from pipeline.clean.rules import rules_stage
from pipeline.dialogues import dialogue_stages
from pipeline.engine.step import MANIFEST, Progress, Stage, StepReport, run_stage, silent, stage_folder
from pipeline.errors import InputError
from pipeline.files import HASHES_FOLDER, LOCK_FILE, WorkLock, write_json, write_text
from pipeline.knowledge import passage_stage
from pipeline.pools.pool import pool_stage, prune_stage
from pipeline.recipe import Recipe
from pipeline.release import DatasetFolder, open_dataset
from pipeline.release.publish import WORK_FOLDER, check_output, publish
from pipeline.report import dataset_report
from pipeline.teacher import check_keys

OnReport = Callable[[StepReport], None]
"""Called with the account of each stage once it is finished."""


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a build in an order in which each one's inputs come before it; the last one's rows are the dataset."""
    passages = {code: passage_stage(recipe, code) for code in recipe.languages if code in recipe.knowledge}
    dialogues = [stage for code, source in passages.items() for stage in dialogue_stages(recipe, code, source)]
    pools = [pool_stage(recipe, task) for task in sorted(recipe.agnostic)]
    rules = rules_stage(recipe, (*dialogues, *pools))
    exact = exact_duplicate_stage(rules)
    near = near_duplicate_stage(exact, recipe.clean.near_duplicate_threshold)
    clean = decontaminate_stage(recipe, near)
    grouped = parallel_stage(clean) if recipe.clean.parallel_groups else clean
    # Pools before dialogues: what is wrong with a file shows before a teacher is asked.
    cleaning = [rules, exact, near, clean] if grouped is clean else [rules, exact, near, clean, grouped]
    return [*passages.values(), *pools, *dialogues, *cleaning, prune_stage(recipe, grouped)]


def build(
    recipe: Recipe, out: Path, *, work: Path | None = None, progress: Progress = silent, on_report: OnReport | None = None
) -> DatasetFolder:
    """Make the dataset of a recipe in the folder `out`, re-using every stage that was finished before.

    Killed at any moment, the same call goes on and ends with the same bytes. Raises InputError where the recipe, its files
    or `out` are not what they should be (of the build only finished stages then stay), WorkError when the disk is full or a
    teacher goes away.
    """
    check_keys(recipe)
    stages = plan(recipe)
    with workspace(stages, out, work) as folder:
        for stage in stages:
            report = run_stage(stage, folder, progress)
            if on_report:
                on_report(report)
        return finish(recipe, stages, folder, out)


@contextmanager
def workspace(stages: Sequence[Stage], out: Path, work: Path | None = None) -> Iterator[Path]:
    """The folder of the unfinished stages, locked, once the output folder and the files that the stages read are checked.

    After refused input nothing stays behind but finished stages.
    """
    check_output(out)
    if work is not None and work.resolve() == out.resolve():
        raise InputError(f"--work {work}: is the output folder itself; leave it out, or name another")
    for path in (path for stage in stages for path in stage.files):
        if not path.exists():
            raise InputError(f"{path}: does not exist")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path}: is empty")
    folder = work or out / WORK_FOLDER
    with WorkLock(folder):
        try:
            yield folder
        except InputError:
            _remove_if_unused(folder, out)
            raise


def _remove_if_unused(work: Path, out: Path) -> None:
    """Only what a build puts there before its first stage is finished, and folders that are empty then."""
    if not any(work.glob(f"*/{MANIFEST}")):
        shutil.rmtree(work / HASHES_FOLDER, ignore_errors=True)
        (work / LOCK_FILE).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: something else is in it
            work.rmdir()
            out.rmdir()


def finish(recipe: Recipe, stages: Sequence[Stage], work: Path, out: Path) -> DatasetFolder:
    """Publish what the finished stages gave, and draw the report."""
    publish(recipe, stages, work, out)
    timings = {s.name: json.loads((stage_folder(s, work) / "timings.json").read_text("utf-8")) for s in stages}
    write_json(out / "timings.json", {name: own["seconds"] for name, own in timings.items()})
    write_json(out / "usage.json", {name: own["usage"] for name, own in timings.items() if "usage" in own})
    dataset = open_dataset(out)
    write_text(out / "report.html", dataset_report(dataset))
    return dataset
