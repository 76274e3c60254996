"""Work in other processes: the order of the work stays, and whatever ends it is told."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.engine.batches import blocks, in_threads
from pipeline.engine.executors.processes import Processes
from pipeline.errors import WorkError

KILL_ITSELF = "__import__('os').kill(__import__('os').getpid(), 9)"


@pytest.fixture(scope="module")
def two():
    with Processes(2) as processes:
        yield processes


def test_results_come_in_the_order_of_the_items_not_of_their_ends(two):
    slow_first = [f"__import__('time').sleep({0.2 if n == 0 else 0}) or {n}" for n in range(12)]

    assert list(two.map(eval, slow_first)) == list(range(12))


def test_several_work_at_once_and_none_of_them_is_this_process(two):
    pids = set(two.map(eval, ["__import__('time').sleep(0.1) or __import__('os').getpid()"] * 8))

    assert len(pids) == 2 and os.getpid() not in pids


def test_one_is_this_process():
    with Processes(1) as processes:
        assert set(processes.map(lambda _: os.getpid(), range(3))) == {os.getpid()}


def test_a_single_item_is_done_in_this_process(two):
    assert list(two.map(lambda _: os.getpid(), [0])) == [os.getpid()]


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_function_raises_surfaces_at_its_place(two, count):
    processes = two if count == 2 else Processes(1)
    results = processes.map(eval, ["1", "int('x')", "3"])

    assert next(results) == 1
    with pytest.raises(ValueError, match="invalid literal for int"):
        next(results)


def test_after_a_failure_there_is_work_as_before(two):
    with pytest.raises(ZeroDivisionError):
        list(two.map(eval, ["1 / 0", "1"]))

    assert list(two.map(eval, ["1", "2"])) == [1, 2]


@pytest.mark.parametrize("count", [1, 2])
def test_only_a_few_items_are_taken_ahead_of_an_endless_supply(two, count):
    taken = []
    processes = two if count == 2 else Processes(1)
    results = processes.map(eval, (str(n) for n in itertools.count() if taken.append(n) is None))

    assert [next(results) for _ in range(20)] == list(range(20))
    assert len(taken) <= 20 + 2 * count
    results.close()
    assert list(processes.map(eval, ["7", "8"])) == [7, 8]


def test_no_item_gives_no_result(two):
    assert list(two.map(eval, [])) == []


@pytest.mark.parametrize("how", ["file", "module", "stdin"])
def test_a_script_without_a_guard_is_not_run_again_by_its_workers(tmp_path, how):
    script = """
from pipeline.engine.executors.processes import Processes
before = globals().get("__file__")
print("begun", __name__, __spec__ is None or __spec__.name)
with Processes(2) as processes:
    print(*processes.map(len, ["a", "bc", "def"]))
print(globals().get("__file__") == before)
"""
    (tmp_path / "unguarded.py").write_text(script)
    command = {"file": ["unguarded.py"], "module": ["-m", "unguarded"], "stdin": ["-"]}[how]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run(
        [sys.executable, *command], input=script, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    named = "unguarded" if how == "module" else "True"
    assert (done.stdout.splitlines(), done.stderr) == ([f"begun __main__ {named}", "1 2 3", "True"], "")


def test_a_process_that_is_always_killed_is_told_with_what_may_help():
    with Processes(2) as processes:
        with pytest.raises(WorkError, match="a worker process was killed, three times; is the memory enough"):
            list(processes.map(eval, ["1", KILL_ITSELF, "2"]))
        assert list(processes.map(eval, ["1", "2"])) == [1, 2]


def kill_once(mark: str) -> str:
    """An expression that kills its process unless the file is there, which it leaves."""
    path = f"__import__('pathlib').Path({mark!r})"
    return f"{path}.exists() or ({path}.touch(), {KILL_ITSELF})"


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_killed_process_is_replaced_and_its_item_tried_again(tmp_path, place):
    items = [str(n) for n in range(12)]
    items[place] = kill_once(str(tmp_path / "killed"))

    with Processes(2) as processes:
        assert list(processes.map(eval, items)) == [True if n == place else n for n in range(12)]


def test_losses_with_results_between_them_do_not_end_the_work(tmp_path):
    items = [kill_once(str(tmp_path / str(n))) if n % 8 == 0 else str(n) for n in range(24)]

    with Processes(2) as processes:
        assert list(processes.map(eval, items)) == [True if n % 8 == 0 else n for n in range(24)]


def test_what_items_raise_ends_the_work_and_surfaces(two):
    with pytest.raises(KeyError, match="of the items"):
        list(two.map(eval, _breaking_off()))


def _breaking_off():
    yield "1"
    raise KeyError("of the items")


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(0, 2, []), (4, 2, [[0, 1], [2, 3]]), (5, 2, [[0, 1], [2, 3], [4]]), (2, 9, [[0, 1]])]
)
def test_blocks_are_full_but_for_the_last(count, size, expected):
    assert list(blocks(range(count), size)) == expected


def test_blocks_take_no_more_than_they_give():
    numbers = itertools.count()

    assert next(blocks(numbers, 3)) == [0, 1, 2]
    assert next(numbers) == 3


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_threads_give_results_in_the_order_of_the_items_and_take_few_ahead(threads, count):
    taken = []
    results = in_threads(lambda n: n * n, (n for n in range(count) if taken.append(n) is None), threads)

    for done, result in enumerate(results):
        assert result == done * done
        assert len(taken) <= done + 2 * threads + 1
    assert len(taken) == count


def test_what_fails_in_a_thread_surfaces():
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda n: 1 // n, [1, 0, 2], 2))


SCRIPT = """
import sys, time
from pipeline.engine.executors.processes import Processes
if __name__ == "__main__":
    with Processes(2) as processes:
        pids = set()
        while len(pids) < 2:  # on a busy machine one may have done all before the other has started
            pids |= set(processes.map(eval, ["__import__('time').sleep(0.2) or __import__('os').getpid()"] * 6))
        print(*pids, flush=True)
        list(processes.map(eval, ["__import__('time').sleep(1)"] * 100))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_processes_end_with_the_one_that_started_them_and_leave_the_talking_to_it(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]

    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)
    _, told = process.communicate(timeout=30)

    assert process.returncode == -how
    assert told.count("Traceback") == (1 if how == signal.SIGINT else 0)
    assert len(pids) == 2 and not _alive(pids, patience_s=20)


def _alive(pids: list[int], patience_s: float) -> list[int]:
    until = time.monotonic() + patience_s
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
