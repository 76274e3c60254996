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

from pipeline.engine.processes import Workers, blocks
from pipeline.errors import WorkError

KILL_ITSELF = "__import__('os').kill(__import__('os').getpid(), 9)"


@pytest.fixture(scope="module")
def two():
    with Workers(eval, 2) as workers:
        yield workers


def test_results_come_in_the_order_of_the_items_not_of_their_ends(two):
    slow_first = [f"__import__('time').sleep({0.2 if n == 0 else 0}) or {n}" for n in range(12)]

    assert list(two.map(slow_first)) == list(range(12))


def test_several_work_at_once_and_none_of_them_is_this_process(two):
    pids = set(two.map(["__import__('time').sleep(0.1) or __import__('os').getpid()"] * 8))

    assert len(pids) == 2 and os.getpid() not in pids


def test_one_is_this_process():
    with Workers(lambda _: os.getpid(), 1) as workers:
        assert set(workers.map(range(3))) == {os.getpid()}


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_function_raises_surfaces_at_its_place(two, count):
    workers = two if count == 2 else Workers(eval, 1)
    results = workers.map(["1", "int('x')", "3"])

    assert next(results) == 1
    with pytest.raises(ValueError, match="invalid literal for int"):
        next(results)


def test_after_a_failure_there_is_work_as_before(two):
    with pytest.raises(ZeroDivisionError):
        list(two.map(["1 / 0"]))

    assert list(two.map(["1", "2"])) == [1, 2]


@pytest.mark.parametrize("count", [1, 2])
def test_only_a_few_items_are_taken_ahead_of_an_endless_supply(two, count):
    taken = []
    workers = two if count == 2 else Workers(eval, 1)
    results = workers.map(str(n) for n in itertools.count() if taken.append(n) is None)

    assert [next(results) for _ in range(20)] == list(range(20))
    assert len(taken) <= 20 + 2 * count
    results.close()
    assert list(workers.map(["7"])) == [7]


def test_no_item_gives_no_result(two):
    assert list(two.map([])) == []


@pytest.mark.parametrize("how", ["file", "module", "stdin"])
def test_a_script_without_a_guard_is_not_run_again_by_its_workers(tmp_path, how):
    script = """
from pipeline.engine.processes import Workers
before = globals().get("__file__")
print("begun", __name__, __spec__ is None or __spec__.name)
with Workers(len, 2) as workers:
    print(*workers.map(["a", "bc", "def"]))
print(globals().get("__file__") == before)
"""
    (tmp_path / "unguarded.py").write_text(script)
    command = {"file": ["unguarded.py"], "module": ["-m", "unguarded"], "stdin": ["-"]}[how]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, *command], input=script, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    named = "unguarded" if how == "module" else "True"
    assert (done.stdout.splitlines(), done.stderr) == ([f"begun __main__ {named}", "1 2 3", "True"], "")


def test_a_killed_process_is_told_with_what_may_help():
    with Workers(eval, 2) as workers:
        with pytest.raises(WorkError, match="a worker process was killed; is the memory enough"):
            list(workers.map(["1", KILL_ITSELF, "2"]))
        with pytest.raises(WorkError, match="a worker process was killed"):
            list(workers.map(["1"]))


def test_what_items_raise_ends_the_work_and_surfaces(two):
    with pytest.raises(KeyError, match="of the items"):
        list(two.map(_breaking_off()))


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


SCRIPT = """
import sys, time
from pipeline.engine.processes import Workers
if __name__ == "__main__":
    with Workers(eval, 2) as workers:
        pids = set()
        while len(pids) < 2:  # on a busy machine one may have done all before the other has started
            pids |= set(workers.map(["__import__('time').sleep(0.2) or __import__('os').getpid()"] * 6))
        print(*pids, flush=True)
        list(workers.map(["__import__('time').sleep(1)"] * 100))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_processes_end_with_the_one_that_started_them_and_leave_the_talking_to_it(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
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
