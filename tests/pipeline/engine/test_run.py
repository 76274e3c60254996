"""A plan being run: in which order its steps are done, and what happens to the others where one fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import executors
from pipeline.engine.executors import ExecutorOptions, open_executor
from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import finished, rows_of, step_folder
from pipeline.engine.run import run_step, run_steps, waves
from pipeline.engine.step import Context, Make, Outcome, Step, StepReport
from pipeline.errors import InputError, WorkError
from pipeline.rows.sample import SAMPLE_SCHEMA


def step_of(
    name: str,
    make: Callable[[Context], Iterable[Outcome]] = lambda context: (),
    inputs: tuple[Step, ...] = (),
    teacher: str | None = None,
) -> Step:
    does = Make(lambda rows, context: make(context), by_part=False)
    return Step(name=name, version=1, does=does, config={}, schema=SAMPLE_SCHEMA, inputs=inputs, teacher=teacher)


def names(steps: Iterable[Iterable[Step]]) -> list[list[str]]:
    return [[step.name for step in wave] for wave in steps]


@st.composite
def plans(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    for number in range(draw(st.integers(0, 9))):
        inputs = draw(st.lists(st.sampled_from(steps), max_size=3, unique_by=id)) if steps else []
        steps.append(step_of(f"{number}", inputs=tuple(inputs), teacher=draw(st.sampled_from([None, None, "main"]))))
    return draw(st.permutations(steps))


@given(plans())
def test_steps_that_ask_a_teacher_come_last_and_together(steps):
    done: set[str] = set()
    for wave in waves(steps):
        ready = [step for step in steps if step.name not in done and all(parent.name in done for parent in step.inputs)]
        asks = [step.teacher is not None for step in ready]
        assert [step.name for step in wave] == [step.name for step, ask in zip(ready, asks, strict=True) if ask == all(asks)]
        done |= {step.name for step in wave}
    assert done == {step.name for step in steps}


def test_pools_are_read_and_checked_before_a_teacher_is_asked():
    passages = [step_of(f"passages-{code}") for code in ("en", "fr")]
    read = step_of("read-math")
    pool = step_of("pool-math", inputs=(read,))
    dialogues = [step_of(f"grounded-{own.name}", inputs=(own,), teacher="main") for own in passages]
    rules = step_of("rules", inputs=(*dialogues, pool))

    assert names(waves([*passages, read, pool, *dialogues, rules])) == [
        ["passages-en", "passages-fr", "read-math"],
        ["pool-math"],
        ["grounded-passages-en", "grounded-passages-fr"],
        ["rules"],
    ]


def run(steps: list[Step], work: Path, stop: Callable[[], None] = lambda: None) -> list[StepReport]:
    reports: list[StepReport] = []
    run_steps(steps, work, Processes(1), on_report=reports.append, rows_per_part=3, stop_asking=lambda event: stop())
    return reports


def test_accounts_come_as_steps_are_finished_and_again_where_they_were(tmp_path):
    first, second = step_of("first"), step_of("second")
    last = step_of("last", inputs=(second,))

    reports = run([first, second, last], tmp_path)

    assert [report.stage for report in reports] == ["first", "second", "last"]
    assert run([first, second, last], tmp_path) == reports


@pytest.mark.parametrize("error", [InputError, WorkError, KeyboardInterrupt])
def test_what_was_finished_before_a_step_failed_stays(tmp_path, sample, error):
    def fail(context):
        raise error("the second fails")

    first = step_of("first", lambda context: [sample("a?", "b.")])
    with pytest.raises(error, match="the second fails"):
        run([first, step_of("second", fail), step_of("third")], tmp_path)

    assert finished(step_folder(first, tmp_path)) is not None
    assert not step_folder(step_of("third"), tmp_path).exists()


class Teacher:
    """Steps wait for it until it is stopped, which ends them as `stop_asking` does."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.asked = threading.Barrier(2)
        self.ended: list[str] = []

    def wait(self, context: Context) -> Iterable[Outcome]:
        self.asked.wait(10)
        if not self.stopped.wait(10):
            self.ended.append("nobody stopped it")
            return ()
        self.ended.append("stopped")
        raise WorkError("stopped: another step failed, or the build was interrupted")

    def fail(self, context: Context) -> Iterable[Outcome]:
        self.asked.wait(10)
        raise WorkError("the teacher refuses the key")


@pytest.mark.parametrize("fails", [0, 1])
def test_where_one_of_two_that_ask_fails_the_other_is_stopped_and_the_error_is_the_first_ones(tmp_path, fails):
    teacher = Teacher()
    makes = [teacher.wait, teacher.wait]
    makes[fails] = teacher.fail
    steps = [step_of(f"grounded-{n}", make, teacher="main") for n, make in enumerate(makes)]

    started = time.monotonic()
    with pytest.raises(WorkError, match="the teacher refuses the key"):
        run(steps, tmp_path, teacher.stopped.set)

    assert teacher.ended == ["stopped"]
    assert time.monotonic() - started < 5


def test_interrupted_while_teachers_are_asked_all_are_stopped(tmp_path):
    teacher = Teacher()

    def interrupt() -> None:
        time.sleep(0.1)  # both are under way, and what started them waits
        os.kill(os.getpid(), signal.SIGINT)

    teacher.asked = threading.Barrier(2, interrupt)
    steps = [step_of(f"grounded-{n}", teacher.wait, teacher="main") for n in range(2)]

    with pytest.raises(KeyboardInterrupt):
        run(steps, tmp_path, teacher.stopped.set)

    assert teacher.ended == ["stopped"] * 2


def test_steps_that_ask_run_at_the_same_time_and_what_each_finished_is_told_in_their_order(tmp_path, sample):
    asked = threading.Barrier(3)

    def ask(context):
        asked.wait(10)
        return [sample("a?", "b.", title=context.name)]

    steps = [step_of(f"grounded-{n}", ask, teacher="main") for n in range(3)]
    reports = run(steps, tmp_path)

    assert [report.stage for report in reports] == ["grounded-0", "grounded-1", "grounded-2"]
    assert [row["source"]["title"] for step in steps for row in rows_of(step_folder(step, tmp_path))] == [s.name for s in steps]


def test_what_one_finished_while_another_failed_is_not_asked_again(tmp_path, sample):
    calls = []
    ready = threading.Event()

    def ask(context):
        calls.append(context.name)
        yield sample("a?", "b.")

    def fail(context):
        until = time.monotonic() + 10
        while finished(step_folder(good, tmp_path)) is None and time.monotonic() < until:
            time.sleep(0.01)
        if not ready.is_set():
            raise WorkError("gone away")
        return ()

    good, bad = step_of("good", ask, teacher="main"), step_of("bad", fail, teacher="main")
    with pytest.raises(WorkError, match="gone away"):
        run([good, bad], tmp_path)
    ready.set()
    run([good, bad], tmp_path)

    assert calls == ["good"]


# Executors


def test_an_executor_that_is_opened_again_while_it_is_open_is_the_same_one():
    options = ExecutorOptions(workers=1)
    with open_executor(options) as outer:
        with open_executor(ExecutorOptions(workers=1)) as inner, open_executor(ExecutorOptions(kind="inline")) as other:
            assert inner is outer and other is not outer
        with open_executor(options) as again:
            assert again is outer
    assert not executors._OPEN


def test_after_an_error_nothing_of_an_executor_is_left_open():
    with pytest.raises(ZeroDivisionError), open_executor(ExecutorOptions(workers=1)):
        raise ZeroDivisionError

    assert not executors._OPEN


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "threads"}, r"executor = 'threads': expected one of inline, processes, ray"),
        ({"workers": 0}, r"workers = 0: expected at least 1"),
        ({"kind": "inline", "workers": 2}, r"workers = 2: the executor inline is one process; take processes"),
        ({"ray_address": "auto"}, r"ray_address = 'auto': has no effect with the executor processes; take ray"),
    ],
)
def test_an_executor_that_cannot_be_is_refused(options, problem):
    with pytest.raises(InputError, match=problem):
        ExecutorOptions(**options)


def test_who_asks_a_teacher_is_run_here_and_given_the_executors_workers_to_spread_over(tmp_path):
    seen = []

    def make(context):
        seen.append((os.getpid(), threading.current_thread().name, list(context.spread(len, ["a", "bc"]))))
        return ()

    run_step(step_of("grounded", make, teacher="main"), tmp_path, Processes(1), 3)

    assert seen == [(os.getpid(), threading.current_thread().name, [1, 2])]
