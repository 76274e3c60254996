"""Runs a plan: what was finished before is re-used, what does not wait for each other is done at once.

Parts of all steps that are ready go to the executor together; then what is done over everything at once, step by step, with all
cores of a machine; last, when nothing else can be done, the steps that ask a teacher, all at the same time.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.engine.executors import Executor
from pipeline.engine.parts import MANIFEST, Part, TaskReport, finished, parts, step_folder, write_manifest
from pipeline.engine.step import Make, OnProgress, Progress, Step, StepReport, silent
from pipeline.engine.tasks import WHOLE, Task, account, apply_part, do_all, do_part, forget_decisions, read_account
from pipeline.errors import InputError, WorkError
from pipeline.files import stamp, write_json

WORTH_SPREADING = 1 << 19
"""Bytes: some 1,500 conversations, compressed, of which the rules take a second. Processes take as long to start."""
OnReport = Callable[[StepReport], None]
"""Called with the account of each step in the order of the plan; of steps that ask a teacher once all of them are finished."""


def run_steps(
    steps: Sequence[Step],
    work: Path,
    executor: Executor,
    *,
    progress: Progress = silent,
    on_report: OnReport | None = None,
    rows_per_part: int,
    stop_asking: Callable[[threading.Event], None] = threading.Event.set,
) -> None:
    """Run the steps, whose inputs are among them, in `work`.

    Killed at any moment, the same call goes on: tasks that were finished stay. Raises what a step raises; WorkError when the disk
    is full. Where a step that asks a teacher fails, `stop_asking` sets the event that it is given and ends what waits under it.
    """
    tell = on_report or (lambda report: None)
    stop = threading.Event()
    for wave in waves(steps):
        if wave[0].teacher is None:
            _run_quietly(wave, work, executor, progress, tell, rows_per_part, stop)
        else:
            runs = [partial(run_step, step, work, executor, rows_per_part, progress, stop) for step in wave]
            _run_at_once(runs, tell, partial(stop_asking, stop))


def waves(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps that do not wait for each other, wave by wave; those that ask a teacher are a wave of their own, as late as can be."""
    done: set[str] = set()
    waiting = list(steps)
    while waiting:
        ready = [step for step in waiting if all(parent.name in done for parent in step.inputs)]
        wave = [step for step in ready if step.teacher is None] or ready
        yield wave
        done |= {step.name for step in wave}
        waiting = [step for step in waiting if step.name not in done]


def run_step(
    step: Step,
    work: Path,
    executor: Executor,
    rows_per_part: int,
    progress: Progress = silent,
    stop: threading.Event | None = None,
) -> StepReport:
    """Run one step unless it was finished before; its inputs must be finished. Once `stop` is set no teacher is asked more."""
    stop = stop or threading.Event()
    run = _Run(step, work, progress, rows_per_part)
    if run.finished is None:
        run.do_whole(executor, stop)
        run.take_all(_spread(executor, run.tasks))
    return run.report()


def _run_quietly(
    steps: Sequence[Step],
    work: Path,
    executor: Executor,
    progress: Progress,
    tell: OnReport,
    rows_per_part: int,
    stop: threading.Event,
) -> None:
    """Steps that ask no teacher; what is done part by part goes to the executor together."""
    runs = [_Run(step, work, progress, rows_per_part) for step in steps]
    by_part = [run for run in runs if run.finished is None and run.step.does.by_part]
    results = _spread(executor, [task for run in by_part for task in run.tasks])
    try:
        for run in runs:
            if run.finished is None:
                run.do_whole(executor, stop)
                run.take_all(results if run.step.does.by_part else _spread(executor, run.tasks))
            tell(run.report())
    except BaseException:
        for run in runs:
            run.forget_if_empty()
        raise


def _run_at_once(runs: Sequence[Callable[[], StepReport]], tell: OnReport, stop: Callable[[], None]) -> None:
    """Each in a thread; where one fails, or this one is interrupted, the others are stopped."""
    with ThreadPoolExecutor(len(runs), thread_name_prefix="step") as threads:
        futures = [threads.submit(run) for run in runs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future for future in futures if future.done() and future.exception()), None)
            if failed is not None:
                failed.result()
        except BaseException:
            stop()
            raise
        for future in futures:
            tell(future.result())


def _spread(executor: Executor, tasks: Sequence[Task]) -> Iterator[TaskReport]:
    """Over the executor's workers, but for work that is done before they have started."""
    little = sum(_size(task) for task in tasks) < WORTH_SPREADING
    return map(_do, tasks) if little else executor.map(_do, tasks)


def _size(task: Task) -> int:
    """In bytes on the disk."""
    return sum(source.size() for source in task.sources) + sum(path.stat().st_size for path in task.parts)


def _do(task: Task) -> TaskReport:
    """A task of one part, wherever it runs."""
    return do_part(task) if isinstance(task.step.does, Make) or task.step.does.by_part else apply_part(task)


class _Run:
    """One step being run: its folder, its tasks, what they reported so far."""

    def __init__(self, step: Step, work: Path, progress: Progress, rows_per_part: int) -> None:
        self.step, self.work = step, work
        self._sent = replace(step, inputs=(), refuse=None)  # what a task has to know of it
        self.folder = step_folder(step, work)
        self.finished = finished(self.folder)
        self.tasks: list[Task] = []
        self._reports: list[TaskReport] = []
        self._progress: OnProgress = partial(progress, step.name)
        self._rows_per_part = rows_per_part
        if self.finished is not None:
            return
        self._started = time.monotonic()
        self._stamps = [(path, stamp(path)) for path in step.files]
        with _told(step, self.folder):
            if (self.folder / MANIFEST).exists():  # of other code, damaged, or to be tried again
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.inputs = [path for parent in step.inputs for path in parts(step_folder(parent, work))]
            self.tasks = list(self._of_parts())
            self._forget_half_done()
        self._rows = sum(Part(path).count() for path in self.inputs) if step.inputs else None

    def _of_parts(self) -> Iterator[Task]:
        does, task = self.step.does, partial(Task, self._sent, self.folder, self.work, rows_per_part=self._rows_per_part)
        if isinstance(does, Make):
            if does.by_part:
                sources = does.cut(self._rows_per_part) if does.cut else [Part(path) for path in self.inputs]
                yield from (task(number, (source,)) for number, source in enumerate(sources))
            return
        begin = 0
        for number, path in enumerate(self.inputs):
            yield task(number, parts=(path,), begin=begin)
            begin += Part(path).count()

    def _forget_half_done(self) -> None:
        """Files that no finished task names."""
        known = set()
        for task in (self._of_all(), *self.tasks):
            if report := read_account(task):
                known |= {account(self.folder, task.number).name, *report.files}
        for path in self.folder.iterdir():
            if path.name not in known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _of_all(self) -> Task:
        """The task of what is done over everything at once."""
        task = partial(Task, self._sent, self.folder, self.work, WHOLE, rows_per_part=self._rows_per_part)
        if isinstance(self.step.does, Make):
            return task(sources=tuple(map(Part, self.inputs)))
        return task(parts=tuple(self.inputs))

    def forget_if_empty(self) -> None:
        """After an error elsewhere: a step of which nothing is done leaves no trace."""
        with suppress(OSError):
            self.folder.rmdir()

    def do_whole(self, executor: Executor, stop: threading.Event) -> None:
        """What is done over everything at once."""
        if self.step.does.by_part:
            return
        task = self._of_all()
        self._progress(0, self._rows)
        with _told(self.step, self.folder):
            self._whole = read_account(task)
            if self._whole is None and self.step.teacher:  # from here: its client is shared by all who ask it
                self._whole = do_all(task, executor.map, 1, self._progress, stop)
            elif self._whole is None:
                self._whole = executor.alone(do_all, task, self._progress)

    _whole: TaskReport | None = None

    def take_all(self, results: Iterator[TaskReport]) -> None:
        """The reports of the tasks of parts, as they come; what comes after them is another step's."""
        done = 0
        tell = self._progress if self.step.does.by_part else lambda done, total: None  # to apply decisions takes no time
        tell(done, self._rows)
        with _told(self.step, self.folder):
            while len(self._reports) < len(self.tasks):
                self._reports.append(report := next(results))
                done += report.rows_used + sum(report.dropped.values())
                tell(done, self._rows)

    def _givers(self) -> list[TaskReport]:
        """The reports of the tasks that gave rows: of what decides over all rows those of the parts."""
        return [self._whole] if self._whole is not None and isinstance(self.step.does, Make) else self._reports

    def report(self) -> StepReport:
        """The account of the step; what was not finished before is then."""
        if self.finished is not None:
            return self.finished
        reports = [*self._reports, *([self._whole] if self._whole else [])]
        dropped: Counter[str] = sum((Counter(report.dropped) for report in reports), Counter())
        counters: Counter[str] = sum((Counter(report.counters) for report in reports), Counter())
        facts = {name: value for report in reports for name, value in report.facts.items()}
        used = sum(report.rows_used for report in reports)
        account_of_all = StepReport(
            stage=self.step.name,
            unit_in=self.step.unit_in,
            unit_out=self.step.unit_out,
            rows_in=used + dropped.total(),
            rows_used=used,
            rows_out=sum(report.rows_out for report in reports),
            dropped=dict(sorted(dropped.items())),
            counters=dict(sorted((counters | facts).items())),
        )
        with _told(self.step, self.folder):
            if changed := [path for path, was in self._stamps if stamp(path) != was]:
                raise InputError(f"{changed[0]}: changed while it was read; run again")
            if self.step.refuse and (wrong := self.step.refuse(account_of_all)):
                raise InputError(wrong)
            self._forget_half_done()  # of workers that were killed
            forget_decisions(self.folder)
            usage = next((report.usage for report in reports if report.usage), {})
            timings = {"seconds": round(time.monotonic() - self._started, 3)} | ({"usage": usage} if usage else {})
            write_json(self.folder / "timings.json", timings)
            files = {name: own for report in self._givers() for name, own in report.files.items()}
            write_manifest(self.folder, account_of_all, files, any(report.run_again for report in reports))
        self.finished = account_of_all
        return account_of_all


@contextmanager
def _told(step: Step, folder: Path) -> Iterator[None]:
    """Of refused input nothing stays; a full disk is told as WorkError."""
    try:
        yield
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        raise WorkError(f"stage {step.name}: {error.filename or folder}: {error.strerror or error}") from error
