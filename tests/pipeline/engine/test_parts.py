"""Steps done part by part or over all rows: the parts, the processes and the interruptions do not show in what comes out.

Rows say themselves what becomes of them, in the words of their question.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import run as engine
from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import finished, parts, row_count, rows_of, step_folder
from pipeline.engine.run import run_step, run_steps
from pipeline.engine.step import Context, Decide, Decisions, Drop, Make, Outcome, Raw, Step, StepReport
from pipeline.errors import InputError, WorkError
from pipeline.rows.sample import (
    SAMPLE_SCHEMA,
    Decision,
    Dropped,
    Message,
    Sample,
    Source,
    drop,
    sample_from_row,
    sample_id,
)
from pipeline.rows.tables import TextTable

ROOT = Path(__file__).parents[3]
FATES = ("keep", "make two", "make none", "drop", "pass over")
VERDICTS = ("stays", "dull", "odd", "noted", "changed", "noted and changed")


def a_row(number: int, word: str) -> Sample:
    messages = (Message("user", word), Message("assistant", f"{number}."))
    return Sample(
        id=sample_id("en", "math", messages, [f"{number}"]),
        language="en",
        task="math",
        messages=messages,
        mode="pool",
        group_id=f"g{number // 2}",
        source=Source(name="test", title=f"{number}"),
        decisions=(Decision("given", "was there"),) * (number % 3),
    )


def rows_of_words(words: Sequence[str]) -> list[Sample]:
    return [a_row(number, word) for number, word in enumerate(words)]


def given_rows(rows: Sequence[Sample]) -> Step:
    make = Make(lambda none, context: iter(rows), by_part=False)
    return Step(name="given", version=1, does=make, config={}, schema=SAMPLE_SCHEMA)


# Functions of this module, so that other processes find them


def make_by_word(rows: Iterator[Raw], context: Context) -> Iterator[Outcome]:
    for raw in rows:
        row = sample_from_row(raw)
        fate = row.messages[0].content
        if fate == "drop":
            yield drop(row, "too_dull", detail=row.source.title)
        elif fate == "pass over":
            context.pass_over("redirect")
        else:
            context.counters["seen"] += 1
            yield {"keep": row, "make two": (row, replace(row, id=f"{row.id}-2")), "make none": ()}[fate]
    context.facts["items"] = 7


def decide_by_word(table: TextTable, context: Context) -> Decisions:
    """Also in another order than that of the rows."""
    drops: list[Drop] = []
    notes: list[str | None] = []
    languages: list[str] = []
    parents: list[list[str]] = []
    for batch in table.batches():
        for raw in batch.to_pylist():
            verdict, number = raw["messages"][0]["content"], len(notes)
            if verdict in ("dull", "odd"):
                drops.append((number, verdict, f"not {raw['id']}", 0.5, f"row {raw['source']['title']}"))
            notes.append(f"says {raw['messages'][1]['content']}" if "noted" in verdict else None)
            languages.append("fr" if "changed" in verdict else raw["language"])
            parents.append([raw["group_id"]] if "changed" in verdict else raw["parent_ids"])
    context.counters["seen"] += len(notes)
    context.facts["items"] = 7
    made = Decisions.of(drops[::-1], notes)
    kind = SAMPLE_SCHEMA.field("parent_ids").type
    return replace(made, columns={"language": pa.array(languages, pa.string()), "parent_ids": pa.array(parents, kind)})


def naive_decisions(rows: Iterable[Sample], step: str) -> tuple[list[Sample], list[dict[str, Any]]]:
    """What stays, as it is then, and of what does not the id, reason, partner and detail."""
    kept, dropped = [], []
    for row in rows:
        verdict = row.messages[0].content
        if verdict in ("dull", "odd"):
            lost = {"id": row.id, "stage": step, "reason": verdict, "partner_id": f"not {row.id}"}
            dropped.append(lost | {"detail": f"row {row.source.title}", "language": "en", "group_id": row.group_id})
            continue
        changed = {"language": "fr", "parent_ids": (row.group_id,)} if "changed" in verdict else {}
        note = (Decision(step, f"says {row.messages[1].content}"),) if "noted" in verdict else ()
        kept.append(replace(row, **changed, decisions=(*row.decisions, *note)))
    return kept, dropped


@dataclass(frozen=True)
class Numbers:
    """A source of rows with some of the numbers of a range."""

    begin: int
    end: int

    def rows(self) -> Iterator[int]:
        return iter(range(self.begin, self.end))

    def size(self) -> int:
        return 1


def cut(total: int, rows: int) -> list[Numbers]:
    return [Numbers(begin, min(begin + rows, total)) for begin in range(0, total, rows)]


def make_numbers(numbers: Iterator[int], context: Context) -> Iterator[Outcome]:
    for number in numbers:
        row = a_row(number, "keep")
        yield drop(row, "too_dull") if number % 3 == 0 else row


def refuse_the_first(numbers: Iterator[int], context: Context) -> Iterator[Outcome]:
    """The first part is refused once others are being done, which take longer."""
    for number in numbers:
        if number == 0:
            time.sleep(0.3)
            raise InputError("pool.jsonl: line 1: is not JSON")
        time.sleep(0.2)
        yield a_row(number, "keep")


def log_and_maybe_break(numbers: Iterator[int], context: Context, log: Path, error: type[BaseException]) -> Iterator[Outcome]:
    """Tells the log of each part; where the file `break` is, ends in the middle of the part with the number 7."""
    for number, row in enumerate(make_numbers(numbers, context)):
        if not number:
            with log.open("a") as file:
                file.write(f"{row.id}\n")
        if a_row(7, "keep").id == row.id and log.with_name("break").exists():
            raise error("broken off")
        yield row


def kill_in_the_middle(numbers: Iterator[int], context: Context, mark: Path) -> Iterator[Outcome]:
    """The process of the second part is killed once, when it has written half of it."""
    row = a_row(0, "keep")
    for number in numbers:
        for place in range(10_001 if number == 1 else 1):
            yield replace(row, id=f"{number}-{place}")
        if number == 1 and not mark.exists() and multiprocessing.parent_process() is not None:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def step_of(does: Make | Decide, inputs: tuple[Step, ...] = (), name: str = "test", **rest: Any) -> Step:
    return Step(name=name, version=1, does=does, config={}, schema=SAMPLE_SCHEMA, inputs=inputs, **rest)


def run_all(steps: Sequence[Step], work: Path, executor: Processes | None = None, rows_per_part: int = 3) -> StepReport:
    reports: list[StepReport] = []
    run_steps(steps, work, executor or Processes(1), on_report=reports.append, rows_per_part=rows_per_part)
    return reports[-1]


def outcome(step: Step, work: Path) -> tuple[list[Raw], list[Raw]]:
    folder = step_folder(step, work)
    return list(rows_of(folder)), list(rows_of(folder, "dropped"))


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes that are given any work, however little, and find the functions of this module."""
    with pytest.MonkeyPatch.context() as patch, Processes(2) as processes:
        patch.syspath_prepend(ROOT)
        patch.setattr(engine, "WORTH_SPREADING", 0)
        yield processes


# The account


@settings(max_examples=40)
@given(st.lists(st.sampled_from(FATES), max_size=20), st.booleans(), st.integers(1, 6))
def test_of_what_makes_rows_every_row_is_used_or_dropped_for_a_reason(tmp_path_factory, fates, by_part, rows_per_part):
    work = tmp_path_factory.mktemp("work")
    source = given_rows(rows_of_words(fates))
    step = step_of(Make(make_by_word, by_part=by_part), (source,))

    report = run_all([source, step], work, rows_per_part=rows_per_part)

    folder = step_folder(step, work)
    assert report.rows_in == report.rows_used + sum(report.dropped.values()) == len(fates)
    assert report.rows_used == len([fate for fate in fates if fate not in ("drop", "pass over")])
    assert report.rows_out == row_count(folder) == fates.count("keep") + 2 * fates.count("make two")
    assert row_count(folder, "dropped") == report.dropped.get("too_dull", 0) == fates.count("drop")
    assert report.dropped.get("redirect", 0) == fates.count("pass over")
    assert report.counters.get("seen", 0) == report.rows_used
    assert report.counters.get("items") == (7 if fates or not by_part else None)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(VERDICTS), max_size=20), st.booleans(), st.integers(1, 6))
def test_of_what_decides_every_row_is_kept_or_dropped_for_a_reason(tmp_path_factory, verdicts, by_part, rows_per_part):
    work = tmp_path_factory.mktemp("work")
    source = given_rows(rows_of_words(verdicts))
    step = step_of(Decide(decide_by_word, by_part=by_part), (source,))

    report = run_all([source, step], work, rows_per_part=rows_per_part)

    folder = step_folder(step, work)
    assert report.rows_in == report.rows_used + sum(report.dropped.values()) == len(verdicts)
    assert report.rows_out == report.rows_used == row_count(folder)
    assert report.dropped == {verdict: verdicts.count(verdict) for verdict in ("dull", "odd") if verdict in verdicts}
    assert row_count(folder, "dropped") == sum(report.dropped.values())
    assert report.counters.get("seen", 0) == len(verdicts)


# Decisions at the borders of parts


@settings(max_examples=40)
@given(st.lists(st.sampled_from(VERDICTS), max_size=25), st.booleans(), st.integers(1, 7))
def test_drops_notes_and_changes_are_those_of_the_rows_they_were_decided_about(tmp_path_factory, verdicts, by_part, rows_per_part):
    work = tmp_path_factory.mktemp("work")
    rows = rows_of_words(verdicts)
    source = given_rows(rows)
    step = step_of(Decide(decide_by_word, by_part=by_part), (source,))
    run_all([source, step], work, rows_per_part=rows_per_part)

    kept, dropped = outcome(step, work)

    expected, lost = naive_decisions(rows, "test")
    assert [sample_from_row(row) for row in kept] == expected
    assert [{key: row[key] for key in own} for row, own in zip(dropped, lost, strict=True)] == lost


def test_part_n_of_the_output_comes_from_part_n_of_the_input(tmp_path):
    source = given_rows(rows_of_words(["stays", "stays", "dull", "dull", "stays", "odd", "noted"]))
    steps = [step_of(Decide(decide_by_word, by_part=by_part), (source,), f"test-{by_part}") for by_part in (True, False)]
    run_all([source, *steps], tmp_path, rows_per_part=2)

    for step in steps:
        folder = step_folder(step, tmp_path)
        assert [path.name for path in parts(folder)] == [f"part-{n:05d}.parquet" for n in (0, 2, 3)]
        assert [path.name for path in parts(folder, "dropped")] == [f"dropped-{n:05d}.parquet" for n in (1, 2)]


def test_decisions_about_several_inputs_are_about_their_rows_one_input_after_the_other(tmp_path):
    words = [["dull", "noted", "stays"], ["changed", "odd", "noted and changed", "stays"]]
    sources = [replace(given_rows(rows_of_words(own)), name=f"given-{n}") for n, own in enumerate(words)]
    step = step_of(Decide(decide_by_word, by_part=False), tuple(sources))
    run_all([*sources, step], tmp_path, rows_per_part=2)

    expected = [naive_decisions(rows_of_words(own), "test") for own in words]
    kept, dropped = outcome(step, tmp_path)
    assert [sample_from_row(row) for row in kept] == expected[0][0] + expected[1][0]
    assert [row["id"] for row in dropped] == [row["id"] for _, lost in expected for row in lost]


# Parts and processes


def chain(count: int) -> list[Step]:
    """Of each kind one: rows made of a source, made of rows, made of all rows; decided about by part and over all."""
    numbers = step_of(Make(make_words, by_part=True, cut=partial(cut, count)), name="numbers")
    made = step_of(Make(make_by_word, by_part=True), (numbers,), "made")
    again = step_of(Make(make_again, by_part=False), (made,), "again")
    by_part = step_of(Decide(decide_by_word, by_part=True), (again,), "by-part")
    return [numbers, made, again, by_part, step_of(Decide(decide_by_word, by_part=False), (again,), "over-all")]


def make_words(numbers: Iterator[int], context: Context) -> Iterator[Outcome]:
    for number in numbers:
        yield a_row(number, random.Random(number).choice(FATES))


def make_again(rows: Iterator[Raw], context: Context) -> Iterator[Outcome]:
    """Other words, for what decides."""
    for number, raw in enumerate(rows):
        yield replace(a_row(number, random.Random(number).choice(VERDICTS)), id=raw["id"])


def test_how_the_rows_are_cut_and_who_does_the_parts_does_not_show(tmp_path, two):
    steps = chain(60)
    found = []
    for name, executor in (("one", Processes(1)), ("two", two)):
        for rows_per_part in (1, 3, 1000):
            work = tmp_path / f"{name}-{rows_per_part}"
            report = run_all(steps, work, executor, rows_per_part)
            found.append([report, *(outcome(step, work) for step in steps)])

    assert all(own == found[0] for own in found)
    assert [bool(kept) for kept, _ in found[0][1:]] == [True] * 5
    assert [bool(dropped) for _, dropped in found[0][1:]] == [False, True, False, True, True]


@pytest.mark.parametrize("rows_per_part", [1, 7])
def test_every_file_is_the_same_whoever_does_the_parts(tmp_path, two, rows_per_part):
    steps = chain(40)
    files = []
    for name, executor in (("one", Processes(1)), ("two", two)):
        run_all(steps, tmp_path / name, executor, rows_per_part)
        files.append(
            {
                str(path.relative_to(tmp_path / name)): path.read_bytes()
                for path in (tmp_path / name).rglob("*")
                if path.is_file() and path.name != "timings.json" and path.parent.name != "file-hashes"
            }
        )

    assert files[0] == files[1]


# Interruptions


def logged(log: Path) -> list[str]:
    """Which parts were begun, by their first numbers, since the log was last read."""
    names = {a_row(number, "keep").id: f"{number}" for number in range(20)}
    found = [names[line] for line in log.read_text().split()] if log.exists() else []
    log.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, WorkError])
def test_after_an_interruption_only_what_was_not_done_is_done_and_nothing_of_it_shows(tmp_path, error):
    log = tmp_path / "log"
    step = step_of(Make(partial(log_and_maybe_break, log=log, error=error), by_part=True, cut=partial(cut, 14)))
    run_all([step], tmp_path / "undisturbed")
    assert logged(log) == ["0", "3", "6", "9", "12"]
    (tmp_path / "break").touch()
    with pytest.raises(error):
        run_all([step], tmp_path / "work")
    assert logged(log) == ["0", "3", "6"]
    folder = step_folder(step, tmp_path / "work")
    assert not list(folder.glob(".*.tmp"))
    (folder / ".part-00002.17-0123abcd.tmp").write_bytes(b"half")
    (folder / "part-00003.parquet").write_bytes(b"of a task without an account")
    (folder / "task-00004.json").write_text('{"rows_used": 1')
    (folder / "task-00002.scratch").mkdir()
    (tmp_path / "break").unlink()

    report = run_all([step], tmp_path / "work")

    assert logged(log) == ["6", "9", "12"]
    assert report == finished(step_folder(step, tmp_path / "undisturbed"))
    files = [
        {path.name: path.read_bytes() for path in step_folder(step, tmp_path / work).iterdir() if path.name != "timings.json"}
        for work in ("work", "undisturbed")
    ]
    assert files[0] == files[1]


def test_a_part_whose_file_is_gone_is_done_again(tmp_path):
    log = tmp_path / "log"
    step = step_of(Make(partial(log_and_maybe_break, log=log, error=RuntimeError), by_part=True, cut=partial(cut, 14)))
    (tmp_path / "break").touch()
    with pytest.raises(RuntimeError):
        run_all([step], tmp_path)
    (tmp_path / "break").unlink()
    (step_folder(step, tmp_path) / "part-00001.parquet").unlink()
    logged(log)

    run_all([step], tmp_path)

    assert logged(log) == ["3", "6", "9", "12"]
    assert [row["source"]["title"] for row in outcome(step, tmp_path)[0]] == [f"{n}" for n in range(14) if n % 3]


@pytest.mark.parametrize("rows_per_part", [2, 4, 1000])
def test_with_other_parts_than_before_an_interruption_no_row_is_lost_or_there_twice(tmp_path, rows_per_part):
    step = step_of(Make(partial(log_and_maybe_break, log=tmp_path / "log", error=RuntimeError), by_part=True, cut=partial(cut, 14)))
    (tmp_path / "break").touch()
    with pytest.raises(RuntimeError):
        run_all([step], tmp_path, rows_per_part=3)
    (tmp_path / "break").unlink()

    report = run_all([step], tmp_path, rows_per_part=rows_per_part)

    assert [row["source"]["title"] for row in outcome(step, tmp_path)[0]] == [f"{n}" for n in range(14) if n % 3]
    assert report.rows_in == 14


class BrokenOff(Processes):
    """Gives some results and then none."""

    def __init__(self, results: int) -> None:
        super().__init__(1)
        self.results = results

    def map(self, function, items):
        for number, result in enumerate(map(function, items)):
            if number == self.results:
                raise KeyboardInterrupt
            yield result


@pytest.mark.parametrize("results", [0, 2, 4])
def test_decisions_about_all_rows_are_not_made_again_after_an_interruption(tmp_path, monkeypatch, results):
    monkeypatch.setattr(engine, "WORTH_SPREADING", 0)
    calls = []

    def decide(table, context):
        calls.append(1)
        return decide_by_word(table, context)

    source = given_rows(rows_of_words([random.Random(n).choice(VERDICTS) for n in range(14)]))
    step = step_of(Decide(decide, by_part=False), (source,))
    run_all([source, step], tmp_path / "undisturbed")
    for work in (tmp_path / "work", tmp_path / "undisturbed"):
        run_all([source], work)
    with pytest.raises(KeyboardInterrupt):
        run_step(step, tmp_path / "work", BrokenOff(results), 3)

    run_all([source, step], tmp_path / "work")

    assert len(calls) == 2  # one of them undisturbed
    assert outcome(step, tmp_path / "work") == outcome(step, tmp_path / "undisturbed")
    assert not list((tmp_path / "work").rglob("*.arrow"))


def test_wrong_input_in_one_part_leaves_nothing_though_others_are_being_done(tmp_path, two):
    step = step_of(Make(refuse_the_first, by_part=True, cut=partial(cut, 12)))
    list(two.map(len, ["started", "both"] * 4))

    with pytest.raises(InputError, match="line 1"):
        run_step(step, tmp_path, two, 1)
    time.sleep(1.5)  # what was being done has ended

    assert not step_folder(step, tmp_path).exists()


def test_a_worker_that_is_killed_in_the_middle_of_a_part_leaves_no_trace(tmp_path, two):
    make = partial(kill_in_the_middle, mark=tmp_path / "killed")
    step = step_of(Make(make, by_part=True, cut=partial(cut, 4)))

    report = run_step(step, tmp_path / "work", two, 1)
    run_step(step, tmp_path / "undisturbed", Processes(1), 1)

    assert report.rows_out == 10_004
    assert outcome(step, tmp_path / "work") == outcome(step, tmp_path / "undisturbed")
    names = [{path.name for path in step_folder(step, tmp_path / work).iterdir()} for work in ("work", "undisturbed")]
    assert names[0] == names[1]


def test_dropped_rows_that_were_never_whole_are_listed_too(tmp_path):
    """Pages and passages have no messages."""
    page = Dropped(id="page", reason="redirect", language="en", source=Source(name="wiki", title="A page"))
    step = step_of(Make(lambda none, context: [page], by_part=False))
    run_all([step], tmp_path)

    ((dropped,),) = (outcome(step, tmp_path)[1],)

    assert (dropped["id"], dropped["reason"], dropped["messages"], dropped["source"]["title"]) == ("page", "redirect", [], "A page")
