"""One client for steps that ask at the same time: what is shared, what is not, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.executors.processes import Processes
from pipeline.engine.run import run_steps
from pipeline.engine.step import Make, Step
from pipeline.errors import InputError, WorkError
from pipeline.recipe import Teacher
from pipeline.rows.sample import SAMPLE_SCHEMA, Message
from pipeline.teacher import BudgetError, TeacherClient, shared_teacher, stop_asking
from pipeline.teacher import shared as module
from pipeline.teacher.batch import in_order


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    assert module._REGISTRY.open == {}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("teacher ")]


@pytest.fixture
def teacher(teacher_server: Any) -> Callable[..., Teacher]:
    return lambda **rest: Teacher(kind="openai", base_url=teacher_server.url, model="m", **{"max_concurrency": 3} | rest)


def questions(client: TeacherClient, words: Sequence[str], slots: int = 3) -> AsyncIterator[tuple[str, str]]:
    """Each word asked for, as a step asks; the words with their answers."""

    async def ask(word: str) -> str:
        return (await client.ask([Message("user", word)])).text

    return in_order(words, ask, slots=slots, count=len(words), worth=lambda outcome: 1)


def ask_all(
    teacher: Teacher,
    ledger: Path,
    words: Sequence[str],
    together: threading.Barrier | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """What one step does: the usage of its own, once all is answered."""
    with shared_teacher("main", teacher, ledger, stop) as asking:
        if together is not None:
            together.wait(10)
        assert [word for word, _ in asking.take(questions(asking.client, words))] == list(words)
        return asdict(asking.client.usage)


def both(function: Callable[[int], Any]) -> list[Future[Any]]:
    """In two threads, to their ends."""
    with ThreadPoolExecutor(2) as threads:
        return [threads.submit(function, number) for number in range(2)]


def test_two_that_ask_share_the_slots_and_keep_their_usage_apart(tmp_path, teacher, teacher_server):
    teacher_server.delay_s = 0.02
    together = threading.Barrier(2)
    counts = (20, 12)

    runs = both(lambda n: ask_all(teacher(), tmp_path / "a.sqlite", [f"{n}-{k}" for k in range(counts[n])], together))

    assert [run.result()["requests"] for run in runs] == list(counts)
    assert [run.result()["completion_tokens"] for run in runs] == [7 * count for count in counts]
    assert len(teacher_server.requests) == sum(counts)
    assert teacher_server.most_at_once == 3


def test_what_both_ask_is_asked_once_at_the_most_by_each_and_later_by_none(tmp_path, teacher, teacher_server):
    words = [f"{n}" for n in range(10)]
    together = threading.Barrier(2)
    both(lambda n: ask_all(teacher(), tmp_path / "a.sqlite", words, together))
    asked = len(teacher_server.requests)

    usage = ask_all(teacher(), tmp_path / "a.sqlite", words)

    assert 10 <= asked <= 20 == 10 + usage["cached"]
    assert len(teacher_server.requests) == asked


def test_both_share_the_budget_and_both_are_told_that_it_is_spent(tmp_path, teacher, teacher_server):
    """An answer costs 7 at a price of a million a million; the budget is spent with the tenth."""
    teacher_server.delay_s = 0.01
    dear = teacher(completion_price=1e6, budget=70.0)
    together = threading.Barrier(2)

    runs = both(lambda n: ask_all(dear, tmp_path / "a.sqlite", [f"{n}-{k}" for k in range(40)], together))

    for run in runs:
        with pytest.raises(BudgetError, match="the budget of 70 is spent"):
            run.result()
    assert 10 <= len(teacher_server.requests) <= 10 + 3  # what was under way


def test_the_last_one_closes_and_not_the_first(tmp_path, teacher):
    with shared_teacher("main", teacher(), tmp_path / "a.sqlite") as outer:
        with shared_teacher("main", teacher(), tmp_path / "a.sqlite") as inner:
            assert inner.client is not outer.client and len(module._REGISTRY.open) == 1
        assert [answer for _, answer in outer.take(questions(outer.client, ["still?"]))] == ["A good answer."]
    assert module._REGISTRY.open == {}


def test_another_teacher_or_another_ledger_is_another_client(tmp_path, teacher):
    with (
        shared_teacher("main", teacher(), tmp_path / "a.sqlite"),
        shared_teacher("main", teacher(temperature=0.5), tmp_path / "a.sqlite"),
        shared_teacher("main", teacher(), tmp_path / "b.sqlite"),
        shared_teacher("other", teacher(), tmp_path / "a.sqlite"),
    ):
        assert len(module._REGISTRY.open) == 4


def test_a_step_that_takes_no_more_asks_no_more(tmp_path, teacher, teacher_server):
    teacher_server.delay_s = 0.02
    with shared_teacher("main", teacher(), tmp_path / "a.sqlite") as asking:
        outcomes = asking.take(questions(asking.client, [f"{n}" for n in range(500)]))
        assert next(outcomes)[0] == "0"
        outcomes.close()
        asked = len(teacher_server.requests)
        time.sleep(0.2)
        assert len(teacher_server.requests) <= asked + 3  # what was on its way


def test_what_fails_in_the_clients_loop_surfaces_where_it_is_waited_for(tmp_path, teacher):
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    with shared_teacher("main", teacher(), tmp_path / "a.sqlite") as asking:
        outcomes = asking.take(failing())
        assert next(outcomes) == 1
        with pytest.raises(ZeroDivisionError):
            next(outcomes)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"base_url": None}, r"teachers\.main\.base_url is missing"),
        ({"api_key_env": "GLOTLOOM_NO_SUCH_KEY"}, r"names GLOTLOOM_NO_SUCH_KEY, which is not set"),
    ],
)
def test_an_error_while_opening_leaves_nothing_open(tmp_path, change, problem):
    wrong = Teacher(**{"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"} | change)

    with pytest.raises(InputError, match=problem), shared_teacher("main", wrong, tmp_path / "a.sqlite"):
        pass


def test_a_ledger_that_cannot_be_opened_leaves_nothing_open(tmp_path, teacher):
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 500)

    with pytest.raises((InputError, WorkError), match=r"a\.sqlite"), shared_teacher("main", teacher(), tmp_path / "a.sqlite"):
        pass


def test_an_error_of_a_step_closes_its_share(tmp_path, teacher):
    with pytest.raises(ZeroDivisionError), shared_teacher("main", teacher(), tmp_path / "a.sqlite"):
        raise ZeroDivisionError


def test_stopped_both_are_told_within_a_second_and_what_was_answered_is_kept(tmp_path, teacher, teacher_server):
    def soon_slow(request: dict[str, Any]) -> str:
        if len(teacher_server.requests) >= 5:
            teacher_server.delay_s = 60.0
        return "A good answer."

    teacher_server.answer = soon_slow
    together, stop = threading.Barrier(2), threading.Event()
    with ThreadPoolExecutor(2) as threads:
        runs = [
            threads.submit(ask_all, teacher(), tmp_path / "a.sqlite", [f"{n}-{k}" for k in range(20)], together, stop)
            for n in range(2)
        ]
        until = time.monotonic() + 10
        while teacher_server.delay_s < 60 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        stopped = time.monotonic()
        stop_asking(stop)
        for run in runs:
            with pytest.raises(WorkError, match="stopped: another step failed, or the build was interrupted"):
                run.result(timeout=10)
        assert time.monotonic() - stopped < 1
    assert module._REGISTRY.open == {}

    teacher_server.delay_s = 0.0
    teacher_server.answer = lambda request: "A good answer."
    usage = [ask_all(teacher(), tmp_path / "a.sqlite", [f"{n}-{k}" for k in range(20)]) for n in range(2)]
    assert sum(own["cached"] for own in usage) >= 4


def test_stopped_while_all_answers_are_there_and_one_is_looked_at_nothing_more_is_asked(tmp_path, teacher, teacher_server):
    looking, stopped, stop = threading.Event(), threading.Event(), threading.Event()

    def look(asking: Any) -> None:
        for _ in asking.take(questions(asking.client, [f"{n}" for n in range(300)])):
            looking.set()
            assert stopped.wait(10)

    def ask() -> None:
        with shared_teacher("main", teacher(), tmp_path / "a.sqlite", stop) as asking:
            look(asking)

    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(ask)
        assert looking.wait(10)
        time.sleep(0.5)  # as much as is asked ahead has been answered
        asked = len(teacher_server.requests)
        stop_asking(stop)
        stopped.set()
        with pytest.raises(WorkError, match="stopped"):
            run.result(timeout=20)
    assert len(teacher_server.requests) <= asked + 3


def test_a_step_that_was_about_to_ask_when_another_failed_asks_nothing(tmp_path, teacher, teacher_server):
    failed = threading.Event()

    def late(rows: Any, context: Any) -> Iterator[Any]:
        assert failed.wait(10)
        time.sleep(0.3)  # reads its passages, say
        ask_all(teacher(), tmp_path / "a.sqlite", [f"{n}" for n in range(300)], stop=context.stop)
        yield from ()

    def fail(rows: Any, context: Any) -> Iterator[Any]:
        failed.set()
        raise WorkError("the other teacher went away")

    steps = [
        Step(name=name, version=1, does=Make(make, by_part=False), config={}, schema=SAMPLE_SCHEMA, teacher=name)
        for name, make in (("late", late), ("fails", fail))
    ]
    with pytest.raises(WorkError, match="the other teacher went away"):
        run_steps(steps, tmp_path / "work", Processes(1), rows_per_part=10, stop_asking=stop_asking)

    assert len(teacher_server.requests) <= 3


def test_after_a_stop_the_next_build_asks_again(tmp_path, teacher):
    stop_asking(threading.Event())

    assert ask_all(teacher(), tmp_path / "a.sqlite", ["a", "b"])["requests"] == 2


def test_interrupted_while_it_waits_a_step_takes_back_what_it_asked(tmp_path, teacher, teacher_server):
    teacher_server.delay_s = 60.0
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    started = time.monotonic()

    with pytest.raises(KeyboardInterrupt):
        ask_all(teacher(), tmp_path / "a.sqlite", ["a", "b"])

    assert time.monotonic() - started < 5
